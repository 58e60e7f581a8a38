"""Splits of a source: train, test, reserve (trusted, labelled), public (trusted, unlabelled)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import Gt, Lt

from ..core.arrays import IntArray
from ..core.errors import ParameterError
from ..core.hyperparameters import Count, Whole
from ..core.seeding import numpy_rng

Place = tuple[str, IntArray]
"""A part of the source and rows of it, sorted."""


@dataclass(frozen=True, kw_only=True)
class SplitSettings:
    """Sizes and seed of the splits. Every draw is balanced over the classes, as far as they have samples.

    Attributes:
        split_seed: seed for the draws. Which sample lies in which split is a property of the data set, so the run's `seed`
            does not change it.
        train_limit: most training samples; null takes all. A lower limit takes a subset of a higher one.
        test_share: share of each class that becomes the test split, where the source has no test part.
        reserve: number of trusted, labelled images set apart, from the source's `reserve` part where it has one.
        public: number of trusted images without labels, for the prior, from the source's `public` part where it has one.
        trusted: part that the two are taken from otherwise: `train`, as in published evaluations, or `test` where the
            training part is of unknown origin.
    """

    split_seed: Whole = 0
    train_limit: Count | None = None
    test_share: Annotated[float, Gt(0), Lt(1)] = 0.2
    reserve: Whole = 600
    public: Whole = 1200
    trusted: Literal["train", "test"] = "train"


def arrange(labels: dict[str, IntArray], settings: SplitSettings) -> dict[str, Place]:
    """The place of each split in the source, by the split's name.

    Args:
        labels: labels by part of the source, int64 [n].
        settings: sizes and seed.

    Raises:
        UserError: a part does not have as many samples as are asked for.
    """
    seed = settings.split_seed
    # What is left of each part while splits are taken out of it. A test split comes first where the source has no test
    # part, so the trusted splits can be taken from either.
    left = {part: (part, np.arange(len(part_labels))) for part, part_labels in labels.items()}
    if "test" not in left:
        test = _share(labels["train"], settings.test_share, seed)
        left["test"] = ("train", test)
        left["train"] = ("train", np.setdiff1d(np.arange(len(labels["train"])), test))
    splits: dict[str, Place] = {}
    for name, count in (("reserve", settings.reserve), ("public", settings.public)):
        source = name if name in labels else settings.trusted
        part, rows = left[source]
        # A part of the source's own may be smaller than the number asked for: it is all there is.
        count = min(count, len(rows)) if name in labels else count
        if count > len(rows) or (source in ("train", "test") and count and count == len(rows)):
            raise ParameterError(
                f"{name}: {count} given, allowed: fewer than {len(rows)}, what is left of the source's {source} part"
            )
        drawn = rows[balanced(labels[part][rows], count, seed, name)]
        splits[name] = part, drawn
        left[source] = part, np.setdiff1d(rows, drawn)
    # The limit comes last, so the trusted splits are the same whatever it is.
    part, rows = left["train"]
    if settings.train_limit is not None and settings.train_limit < len(rows):
        rows = rows[balanced(labels[part][rows], settings.train_limit, seed, "train_limit")]
    splits["train"] = part, rows
    splits["test"] = left["test"]
    return splits


def balanced(labels: IntArray, count: int, seed: int, purpose: str) -> IntArray:
    """`count` positions, sorted, as even over the classes as their sizes allow; fewer are a subset of more."""
    # One permutation for any count: what varies with the count is only how many are taken from the front.
    rng = numpy_rng(seed, "splits", purpose)
    order = rng.permutation(len(labels))
    shuffled = labels[order]
    by_class = np.argsort(shuffled, kind="stable")
    sizes = np.unique(shuffled, return_counts=True)[1]
    # Each sample's turn within its class, in the shuffled order: the lowest turns first means round and round the classes.
    turn = np.empty(len(labels), np.int64)
    turn[by_class] = np.concatenate([np.arange(size) for size in sizes]) if len(sizes) else []
    return np.sort(order[np.argsort(turn, kind="stable")[:count]])


def _share(labels: IntArray, share: float, seed: int) -> IntArray:
    """Positions of a share of each class, at least one and never all, so a class with a single sample gives none."""
    rng = numpy_rng(seed, "splits", "test")
    parts = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        count = min(max(1, round(share * len(members))), len(members) - 1)
        parts.append(members[:count])
    return np.sort(np.concatenate(parts))
