"""The multiple gradient descent algorithm: weights of several losses, by which their gradients together are as short as can be.

Désidéri, "Multiple-gradient descent algorithm (MGDA) for multiobjective optimization", 2012; with several tasks of one network
Sener & Koltun, "Multi-Task Learning as Multi-Objective Optimization", NeurIPS 2018, section 3. The normalisations and the
bounds of two weights are those of https://github.com/ebagdasa/backdoors101/blob/9f48fbb/losses/loss_functions.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..compute.device import full_precision
from ..compute.distributed import World

Normalise = Literal["none", "l2", "loss", "loss+"]
Floats = NDArray[np.float64]

# Of two weights none is below the second, as published: a loss whose gradient is the shorter by far keeps a share.
_MOST, _LEAST = 0.999, 0.001
# Largest divisor by a loss.
_CAP = 10.0


def balanced(gram: Floats, losses: Floats, normalise: Normalise) -> Floats:
    """The weights, from 0, sum 1, that make the weighted sum of the normalised gradients shortest: float64 [k].

    A gradient is divided by n + 1e-5, where n is 1 (`none`), its length (`l2`), min(L, 10) (`loss`) or min(L times its length,
    10) (`loss+`), L being its loss. A loss without a gradient has no part: it would be all of the shortest sum.

    Args:
        gram: dot products of the gradients as they are, float64 [k, k].
        losses: the losses, float64 [k].
        normalise: what the gradients are divided by.
    """
    lengths = np.sqrt(np.diag(gram))
    # One that overflows has none either: the sum below is then not finite, and the training loop says so.
    there = np.flatnonzero((lengths > 0) & np.isfinite(lengths))
    found = np.zeros(len(gram))
    if len(there):
        by = {
            "none": np.ones(len(gram)),
            "l2": lengths,
            "loss": np.minimum(losses, _CAP),
            "loss+": np.minimum(losses * lengths, _CAP),
        }[normalise] + 1e-5
        found[there] = shortest((gram / np.outer(by, by))[np.ix_(there, there)])
    return found


def shortest(gram: Floats) -> Floats:
    """The weights, from 0, sum 1, of the shortest point in the convex hull of k vectors: float64 [k].

    Two weights have a closed form, and stay within 0.001 and 0.999. More are found among all sets of vectors: of the set that
    the point lies between, the conditions of Lagrange are linear, and of few losses there are few sets.

    Args:
        gram: dot products of the vectors, float64 [k, k].
    """
    if len(gram) == 1:
        return np.ones(1)
    if len(gram) == 2:
        first = _of_two(gram[0, 0], gram[0, 1], gram[1, 1])
        return np.array([first, 1 - first])
    scaled = gram / max(float(np.diag(gram).max()), np.finfo(float).tiny)
    best, least = np.eye(len(gram))[np.argmin(np.diag(scaled))], float(np.diag(scaled).min())
    for size in range(2, len(gram) + 1):
        for chosen in combinations(range(len(gram)), size):
            weights = np.zeros(len(gram))
            weights[list(chosen)] = _between(scaled[np.ix_(chosen, chosen)])
            value = float(weights @ scaled @ weights)
            if (weights >= 0).all() and value < least:
                best, least = weights, value
    return best


def _of_two(first: float, both: float, second: float) -> float:
    """The first weight of two, from the dot products of the first with itself, of both, and of the second with itself."""
    if both >= first:
        return _MOST
    if both >= second:
        return _LEAST
    return (second - both) / (first + second - 2 * both)


def _between(gram: Floats) -> Floats:
    """The weights, of any sign and with sum 1, of the shortest point of the plane through vectors; NaN where they are dependent.

    Of dependent vectors some can be left out, and the smaller set has the same point.
    """
    size = len(gram)
    conditions = np.block([[gram, np.ones((size, 1))], [np.ones((1, size)), np.zeros((1, 1))]])
    if np.linalg.cond(conditions) > 1e12:
        return np.full(size, np.nan)
    return np.linalg.solve(conditions, np.append(np.zeros(size), 1.0))[:size]


class Balance:
    """The losses of a step, weighed by `balanced`, and the gradient of their weighted sum.

    Args:
        model: the network whose parameters the gradients are of.
        here: the processes: gradients and losses are those of the whole batch.
        total: samples of the whole batch.
    """

    def __init__(self, model: nn.Module, here: World, total: int) -> None:
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.here, self.total = here, total
        self.gradients: list[Tensor] = []
        self.losses: list[Tensor] = []

    def add(self, losses: Sequence[Tensor]) -> None:
        """Take in losses of one graph, which is freed: each a sum over this process's samples, []."""
        for number, loss in enumerate(losses):
            # One vector per loss: the dot products of all of them are then one product of matrices.
            last = number == len(losses) - 1
            found = torch.autograd.grad(loss / self.total, self.parameters, retain_graph=not last, allow_unused=True)
            parts = [
                torch.zeros_like(parameter).flatten() if gradient is None else gradient.flatten()
                for parameter, gradient in zip(self.parameters, found, strict=True)
            ]
            self.gradients.append(torch.cat(parts))
            self.losses.append(loss.detach().float())

    def weighed(self, normalise: Normalise) -> tuple[Tensor, Floats]:
        """The weighted sum of this process's losses, [], and the weights.

        Its gradient is at hand: the graph goes no further than the parameters.
        """
        with full_precision(self.gradients[0].device):
            own, sums = torch.stack(self.gradients), torch.stack(self.losses)
            whole, mean = own, sums / self.total
            if self.here.size > 1:
                whole, mean = own.clone(), mean.clone()
                self.here.sum(whole)
                self.here.sum(mean)
            gram = (whole @ whole.T).double().cpu().numpy()
            weights = balanced(gram, mean.double().cpu().numpy(), normalise)
            factors = torch.from_numpy(weights).to(own)
            flat = torch.cat([parameter.flatten() for parameter in self.parameters])
            pull = self.total * (flat * (factors @ own)).sum()
            # The value is that of the losses, the gradient theirs as well.
            return pull - pull.detach() + (factors * sums).sum(), weights
