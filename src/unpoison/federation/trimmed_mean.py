"""Trimmed mean of each coordinate (Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
ICML 2018, definition 2)."""

from __future__ import annotations

import math
from typing import Annotated

from annotated_types import Gt, Lt
from torch import Tensor

from ..core.errors import ParameterError
from .aggregator import Aggregator, Updates, by_columns

Trim = Annotated[float, Gt(0), Lt(0.5)]


def aggregate(updates: Updates, *, share: Trim = 0.2) -> Tensor:
    """The mean of each coordinate without its largest and its smallest values, float32 [d].

    Args:
        updates: those of a round.
        share: share of the updates that is left out at each end, rounded down; the paper's is at least that of the attackers.
    """
    count, out = len(updates.values), _left_out(len(updates.values), share)
    return by_columns(updates.values, lambda part: part[out : count - out].mean(0))


def check(count: int, *, share: Trim = 0.2) -> None:
    """Raises ParameterError where so few updates are so trimmed that none is left out."""
    if not _left_out(count, share):
        allowed = f"from {1 / count:.3g} and below 0.5" if count > 2 else "rounds of at least 3 clients"
        raise ParameterError(f"share: {share} given, which leaves out none of {count} updates; allowed: {allowed}")


def _left_out(count: int, share: float) -> int:
    # Rounded first: 0.1 times 30 is a little more than 3, and another product a little less than its number.
    return math.floor(round(share * count, 6))


AGGREGATOR = Aggregator(aggregate=aggregate, check=check)
