"""Splits of a source: train, test, reserve (trusted, labelled), public (trusted, unlabelled)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Lt
from pydantic import PlainValidator
from pydantic_core import PydanticCustomError

from ..core.arrays import IntArray
from ..core.errors import ParameterError
from ..core.hyperparameters import Count, Whole
from ..core.seeding import numpy_rng

Place = tuple[str, IntArray]
"""A part of the source and rows of it, sorted."""

MOST = {"reserve": 600, "public": 1200}
"""Most images that are set apart unless a number is asked for; digits and published sets give as many."""
_SHARES, _FEW = {"reserve": 10, "public": 5}, 50


def _number_or_share(value: Any) -> float:
    """`value` where it is a whole number from 0 or a share; one message for both, which a union of types has not."""
    if (type(value) is int and value >= 0) or (type(value) is float and 0 < value < 1):
        return value
    raise PydanticCustomError(
        "size", "allowed: a whole number from 0, or a share of the training images, above 0 and below 1"
    )


NumberOrShare = Annotated[float, PlainValidator(_number_or_share)]
"""A whole number of images, `int`, or a share of the training images, `float`."""


@dataclass(frozen=True, kw_only=True)
class SplitSettings:
    """Sizes and seed of the splits. Every draw is balanced over the classes and leaves one sample of each that has any.

    Attributes:
        split_seed: seed for the draws. Which sample lies in which split is a property of the data set, so the run's `seed`
            does not change it.
        train_limit: most training samples; null takes all. A lower limit takes a subset of a higher one.
        test_share: share of each class that becomes the test split, where the source has no test part. 0: there is none, and
            no model has an accuracy on images that it was not trained on.
        reserve: number of trusted, labelled images, from the source's `reserve` part where it has one; null is that part
            as a whole, or else a share; see `_share_of`. A number between 0 and 1 is a share of the source's training part:
            of all in it but the test split where that is taken out of it, before any other split and `train_limit` are.
        reserve_from: `held_out`: images that are set apart, which the training set lacks. `train`: images of the training
            set that results, which keeps them. `other`: the `reserve` part that another source was opened as; null is
            `MOST` of it or all there is.
        public: number of trusted images without labels, for the prior, from the source's `public` part where it has one;
            null is that part as a whole, or else a share.
        trusted: part that the two are taken from otherwise: `train`, as in published evaluations, or `test` where the
            training part is of unknown origin.
    """

    split_seed: Whole = 0
    train_limit: Count | None = None
    test_share: Annotated[float, Ge(0), Lt(1)] = 0.2
    reserve: NumberOrShare | None = None
    reserve_from: Literal["held_out", "train", "other"] = "held_out"
    public: Whole | None = None
    trusted: Literal["train", "test"] = "train"


def arrange(labels: dict[str, IntArray], settings: SplitSettings, classes: Sequence[str] = ()) -> dict[str, Place]:
    """The place of each split in the source, by the split's name.

    Args:
        labels: labels by part of the source, int64 [n].
        settings: sizes and seed.
        classes: class names, for messages.

    Raises:
        UserError: a part does not have as many samples as are asked for, one left in each of its classes.
    """
    seed = settings.split_seed
    # What is left of each part while splits are taken out of it. A test split comes first where the source has no test
    # part, so the trusted splits can be taken from either.
    left = {part: (part, np.arange(len(part_labels))) for part, part_labels in labels.items()}
    if "test" not in left:
        test = _share(labels["train"], settings.test_share, seed)
        left["test"] = ("train", test)
        left["train"] = ("train", np.setdiff1d(np.arange(len(labels["train"])), test))
    whole = len(left[settings.trusted][1])
    reserve = reserve_count(settings.reserve, len(left["train"][1]))
    splits: dict[str, Place] = {}
    for name, count in (("reserve", reserve), ("public", settings.public)):
        if name == "reserve" and settings.reserve_from == "train":
            continue
        if name == "reserve" and settings.reserve_from == "other":
            count = min(MOST[name], len(labels[name])) if count is None else count
            if count > len(labels[name]):
                raise ParameterError(
                    f"reserve: {size_said(settings.reserve, count)}, allowed: at most {len(labels[name])}, the images of "
                    "these classes in reserve_path"
                )
        if name in labels:
            # A part of the source's own may be smaller than the number asked for: it is all there is.
            all_there_is = len(labels[name])
            count = all_there_is if count is None else min(count, all_there_is)
            splits[name] = name, balanced(labels[name], count, seed, name)
            continue
        part, rows = left[settings.trusted]
        spare = len(rows) - len(np.unique(labels[part][rows]))
        if count is None:
            count = min(_share_of(name, whole), spare)
        elif count > spare:
            raise ParameterError(
                f"{name}: {size_said(getattr(settings, name), count)}, allowed: at most {spare} of the {len(rows)} samples "
                f"that are left of the source's {settings.trusted} part, as one stays in every class "
                f"({_smallest(labels[part][rows], classes)})"
            )
        drawn = rows[balanced(labels[part][rows], count, seed, name, keep=1)]
        splits[name] = part, drawn
        left[settings.trusted] = part, np.setdiff1d(rows, drawn)
    # The limit comes last, so the trusted splits are the same whatever it is.
    part, rows = left["train"]
    if settings.train_limit is not None and settings.train_limit < len(rows):
        present = len(np.unique(labels[part][rows]))
        if settings.train_limit < present:
            raise ParameterError(
                f"train_limit: {settings.train_limit} given, allowed: at least {present}, one training sample for each of "
                f"the {present} classes ({_smallest(labels[part][rows], classes)})"
            )
        rows = rows[balanced(labels[part][rows], settings.train_limit, seed, "train_limit")]
    splits["train"] = part, rows
    splits["test"] = left["test"]
    if settings.reserve_from == "train":
        count = _share_of("reserve", len(rows)) if reserve is None else reserve
        if count > len(rows):
            raise ParameterError(
                f"reserve: {size_said(settings.reserve, count)}, allowed: at most {len(rows)}, the training images that it "
                "is drawn from"
            )
        splits["reserve"] = part, rows[balanced(labels[part][rows], count, seed, "reserve")]
    return splits


def reserve_count(reserve: float | None, train: int) -> int | None:
    """The number of images that `reserve` stands for, a share being one of `train` images and at least one image."""
    return max(1, round(reserve * train)) if isinstance(reserve, float) else reserve


def size_said(given: float | None, count: int) -> str:
    """A size in words, for a message: as it was given, and the number where that is another."""
    return f"{given} given" if isinstance(given, int) else f"{'null' if given is None else given} given, {count} images"


def _share_of(name: str, whole: int) -> int:
    """Images set apart of `whole` unless a number is asked for: a tenth for the reserve and a fifth for the public split.

    At most `MOST`; of a small part a quarter each, up to 50, as no method can do with a few.
    """
    return min(MOST[name], max(whole // _SHARES[name], min(_FEW, whole // 4)))


def _smallest(labels: IntArray, classes: Sequence[str]) -> str:
    """The class with the fewest samples, in words."""
    present, sizes = np.unique(labels, return_counts=True)
    least = int(sizes.argmin())
    name = classes[present[least]] if len(classes) else present[least]
    return f"the smallest, {name}, has {sizes[least]}"


def balanced(labels: IntArray, count: int, seed: int, purpose: str, *, keep: int = 0) -> IntArray:
    """`count` positions, sorted, as even over the classes as their sizes allow; fewer are a subset of more.

    Of every class, `keep` samples are not drawn; `count` must leave as many.
    """
    # One permutation for any count: what varies with the count is only how many are taken from the front.
    rng = numpy_rng(seed, "splits", purpose)
    order = rng.permutation(len(labels))
    shuffled = labels[order]
    by_class = np.argsort(shuffled, kind="stable")
    sizes = np.unique(shuffled, return_counts=True)[1]
    # Each sample's turn within its class, in the shuffled order: the lowest turns first means round and round the classes.
    turn = np.empty(len(labels), np.int64)
    turn[by_class] = np.concatenate([np.arange(size) for size in sizes]) if len(sizes) else []
    if keep:
        # Those whose turn comes last in their class stand behind all others.
        size_of = np.empty(len(labels), np.int64)
        size_of[by_class] = np.repeat(sizes, sizes)
        turn[turn >= size_of - keep] += len(labels)
    return np.sort(order[np.argsort(turn, kind="stable")[:count]])


def _share(labels: IntArray, share: float, seed: int) -> IntArray:
    """Positions of a share of each class, at least one and never all, so a class with a single sample gives none; of 0 none."""
    if not share:
        return np.zeros(0, np.int64)
    rng = numpy_rng(seed, "splits", "test")
    parts = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        count = min(max(1, round(share * len(members))), len(members) - 1)
        parts.append(members[:count])
    return np.sort(np.concatenate(parts))
