"""Fusion of detectors by ranks, without labels: what several of them find suspicious."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..data.ranks import ranks
from ..data.scores import Scores


def fused(scores: Mapping[str, Scores]) -> Scores | None:
    """Minus the mean of a sample's ranks, as shares of all samples: ranks, as scores have no common scale.

    Args:
        scores: scores by detector.

    Returns:
        Scores of the same samples, with the cost of all detectors; None of fewer than two detectors, or where they scored
        different samples.
    """
    every = list(scores.values())
    if len(every) < 2 or any(not _same_samples(every[0], other) for other in every[1:]):
        return None
    # Of a tie, the mean of the ranks that it takes.
    places = [np.mean(ranks(one.values), axis=0) / len(one.values) for one in every]
    values = -np.mean(places, axis=0).astype(np.float32)
    return Scores(values, sum(one.forward_passes for one in every), index=every[0].index)


def _same_samples(one: Scores, other: Scores) -> bool:
    if one.index is None or other.index is None:
        return one.index is other.index and len(one.values) == len(other.values)
    return np.array_equal(one.index, other.index)
