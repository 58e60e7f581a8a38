"""Median of each coordinate (Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018,
definition 1)."""

from __future__ import annotations

from torch import Tensor

from .aggregator import Aggregator, Updates, by_columns


def aggregate(updates: Updates) -> Tensor:
    """The median of each coordinate, of an even number of updates the mean of the two in the middle, float32 [d]."""
    count = len(updates.values)
    return by_columns(updates.values, lambda part: (part[(count - 1) // 2] + part[count // 2]) / 2)


AGGREGATOR = Aggregator(aggregate=aggregate)
