"""Ranks of scores. A list needs an order among equal scores too, and a sample's number is no neutral one.

In a folder's order, neighbours are of one class: ties broken by number put whole classes in front of others.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from ..core.arrays import IntArray


def tie_break(sample: int) -> int:
    """Place of a sample among those of equal score: a hash of its number, the same for every detector and seed."""
    return int.from_bytes(hashlib.sha256(int(sample).to_bytes(8, "little")).digest()[:8], "little")


def order(scores: NDArray[np.floating], samples: IntArray | None = None) -> IntArray:
    """Samples by falling score, equal ones by `tie_break`: int64 [n].

    Args:
        scores: score of each sample, [n].
        samples: their numbers, int64 [n]; None: 0 to n - 1.
    """
    samples = np.arange(len(scores)) if samples is None else samples
    ties = np.array([tie_break(sample) for sample in samples], np.uint64)
    return samples[np.lexsort((ties, -np.asarray(scores, np.float64)))]


def rising(scores: NDArray[np.floating]) -> IntArray:
    """Samples by rising score, equal ones by `tie_break`: int64 [n]."""
    return order(-np.asarray(scores, np.float64))


def ranks(scores: NDArray[np.floating]) -> tuple[IntArray, IntArray]:
    """First and last rank that each sample may claim, int64 [n] twice; 1 is the most suspicious.

    The two are equal where no other sample has the same score; the mean of both is the mean rank of a tie.
    """
    _, inverse, counts = np.unique(-np.asarray(scores, np.float64), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - counts + 1)[inverse], last[inverse]
