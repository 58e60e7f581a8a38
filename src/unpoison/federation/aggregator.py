"""The shape of an aggregator: from the updates of a round's clients to the one that the server goes by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Columns that are sorted at a time: of ten clients some tens of megabytes, whatever the network's size.
_COLUMNS = 1 << 20


class Updates(NamedTuple):
    """What the server sees of a round: no data, no labels, and not who attacks.

    Attributes:
        values: an update per client, its weights after local training less the global ones, float32 [m, d].
        past: the last layer's part of all updates that each of these clients has sent so far, this one's among them, summed,
            float32 [m, h].
    """

    values: Tensor
    past: Tensor


def any_number(count: int, **_: Any) -> None:
    """Any number of updates will do, whatever the parameters."""


@dataclass(frozen=True)
class Aggregator:
    """An aggregator.

    Attributes:
        aggregate: (updates, parameters as keyword-only arguments) -> float32 [d], an average of some kind, so that the server's
            rate means the same whatever the aggregator.
        check: (clients in a round, the same parameters); raises ParameterError where it cannot work with so few.
    """

    aggregate: Callable[..., Tensor]
    check: Callable[..., None] = any_number

    @property
    def parameters(self) -> Callable[..., Any]:
        """The function whose keyword-only arguments are the parameters."""
        return self.aggregate


def by_columns(values: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """A function of each coordinate's m sorted values, from [m, k] to [k], for all coordinates: [m, d] to [d]."""
    return torch.cat([function(part.sort(0).values) for part in values.split(_COLUMNS, dim=1)])


def norms(values: Tensor) -> Tensor:
    """Euclidean norm of each update, float64 [m]: the squares of float32 may be too large for float32."""
    return values.double().square().sum(1).sqrt()


def within(values: Tensor, bound: float | Tensor) -> Tensor:
    """Updates [m, d], those whose norm is above `bound` brought down to it."""
    factor = (bound / norms(values).clamp_min(torch.finfo(torch.float64).tiny)).clamp_max(1)
    return values * factor[:, None].float()
