"""The part of a training set that detectors score where scoring all of it would take too long."""

from __future__ import annotations

import numpy as np

from ..core.arrays import IntArray
from ..core.errors import ParameterError
from ..core.seeding import numpy_rng

LEAST = 3
"""Fewest samples per class, on average: of fewer, activation clustering tells nothing, and spectral signatures of one."""


def check_sample(count: int, *, most: int, classes: int) -> None:
    """Raises ParameterError for more samples than there are, or for fewer than `LEAST` for each class.

    Args:
        count: number of samples wanted.
        most: number of training images, or the most that there can be.
        classes: number of classes.
    """
    if count > most:
        raise ParameterError(f"sample: {count} given, allowed: at most {most}, the training images; null: all")
    if count < (least := min(LEAST * classes, most)):
        raise ParameterError(
            f"sample: {count} given, allowed: at least {least}, {LEAST} for each of {classes} classes; null: all"
        )


def draw_sample(labels: IntArray, count: int, *, seed: int) -> IntArray:
    """`count` samples with the classes' shares, int64 [count], sorted: the same for every detector.

    Args:
        labels: labels as received, int64 [n]; the truth has no part in the draw.
        count: number of samples, at most n.
        seed: seed for the choice within each class.
    """
    present, sizes = np.unique(labels, return_counts=True)
    # Largest remainders: the whole part of each class's share, then one more for those that lost most by it. In whole
    # numbers, as rounding would decide between equal remainders; of these the first classes win.
    counts, remainders = np.divmod(sizes * count, len(labels))
    counts[np.argsort(-remainders, kind="stable")[: count - counts.sum()]] += 1
    # A generator per class: another class's samples do not shift the draw.
    parts = [
        numpy_rng(seed, "detect/sample", int(label)).permutation(np.flatnonzero(labels == label))[:wanted]
        for label, wanted in zip(present, counts, strict=True)
    ]
    return np.sort(np.concatenate(parts))
