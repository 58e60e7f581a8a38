"""Norm clipping (Sun et al., "Can You Really Backdoor Federated Learning?", 2019, section "Norm thresholding of updates").

Updates longer than a bound are brought down to it, then averaged. The paper picks a number for its network; without one the
bound here is the median of the round's norms, which needs no number and holds as long as most clients are honest.
"""

from __future__ import annotations

from torch import Tensor

from ..core.hyperparameters import Positive
from .aggregator import Aggregator, Updates, norms, within


def aggregate(updates: Updates, *, bound: Positive | None = None) -> Tensor:
    """The mean of the clipped updates, float32 [d].

    Args:
        updates: those of a round.
        bound: largest Euclidean norm of an update; null: the median of the round's.
    """
    values = updates.values
    return within(values, norms(values).quantile(0.5) if bound is None else bound).mean(0)


AGGREGATOR = Aggregator(aggregate=aggregate)
