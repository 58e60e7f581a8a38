"""What is not finite is refused where it arises: the largest of NaN logits is class 0, and the rank of a NaN is chance."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..core.errors import UserError


def not_finite(model: nn.Module) -> list[str]:
    """Names of the weights and buffers (batch norm's statistics) that hold a value which is not finite."""
    tensors = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    if not tensors:
        return []
    # Of all tensors at once: asking each for its answer would make the CPU wait for a GPU a hundred times.
    finite = torch.stack([value.isfinite().all() for value in tensors.values()]).tolist()
    return [name for name, whole in zip(tensors, finite, strict=True) if not whole]


def check_network(model: nn.Module, what: str) -> None:
    """Raises UserError where a weight or buffer of the network, `what` in the message, is not finite."""
    if bad := not_finite(model):
        raise UserError(
            f"{what}: {len(bad)} of {len(model.state_dict())} tensors of the network are not finite ({bad[0]}); "
            "allowed: a network whose training has not diverged"
        )


def check_rows(rows: Tensor, what: str) -> None:
    """Raises UserError where rows [n, ...], `what` in the message, are not finite, with their number."""
    if bad := int((~rows.isfinite()).flatten(1).any(1).sum()):
        raise UserError(
            f"{what}: not finite for {bad} of {len(rows)} images; allowed: a network whose training has not diverged"
        )


def check_finite(method: str, values: NDArray[np.floating[Any]], of: str, rows: str = "samples") -> None:
    """Raises UserError where a row of values [n, ...] of a method is not finite: the model has diverged.

    Args:
        method: name of the method.
        values: what was computed, a row for each of n.
        of: what the values are, in words ("features").
        rows: what the rows stand for, in words.
    """
    if bad := int((~np.isfinite(values)).reshape(len(values), -1).any(1).sum()):
        raise UserError(
            f"{method}: {of} of {bad} of {len(values)} {rows} are not finite; allowed: those of a sound model"
        )
