"""Krum (Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", NeurIPS 2017, section 4).

An update's score is the sum of its squared distances to the m - f - 2 nearest others; the one of least score is taken, or with
`keep` above 1, Multi-Krum in their evaluation, the mean of so many.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.errors import ParameterError
from ..core.hyperparameters import Count, Whole
from .aggregator import Aggregator, Updates


def aggregate(updates: Updates, *, faulty: Whole = 1, keep: Count = 1) -> Tensor:
    """The mean of the `keep` updates that lie nearest to others, float32 [d].

    Args:
        updates: those of a round, at least 2 * faulty + 3.
        faulty: attackers in a round that it is to withstand, f.
        keep: updates that are averaged; 1 is Krum, more is Multi-Krum.
    """
    values = updates.values
    # Row by row in float64: a product of matrices would lose what tells near updates apart.
    distances = torch.stack([(values - row).square().sum(1, dtype=torch.float64) for row in values])
    # The nearest of all is the update itself, at 0.
    nearest = distances.sort(1).values[:, 1 : len(values) - faulty - 1]
    chosen = nearest.sum(1).argsort(stable=True)[:keep]
    return values[chosen].mean(0)


def check(count: int, *, faulty: Whole = 1, keep: Count = 1) -> None:
    """Raises ParameterError where the rounds are too small for so many attackers, or for so many that are kept."""
    if count < 2 * faulty + 3:
        allowed = f"up to {(count - 3) // 2}" if count >= 3 else "rounds of at least 3 clients"
        raise ParameterError(
            f"faulty: {faulty} given for rounds of {count} clients, allowed: {allowed}, as krum needs 2 * faulty + 3"
        )
    if keep > count - faulty:
        raise ParameterError(f"keep: {keep} given, allowed: 1 to {count - faulty}, the round's clients less the faulty")


AGGREGATOR = Aggregator(aggregate=aggregate, check=check)
