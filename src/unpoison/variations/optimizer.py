"""The prior's optimiser: Muon for the filters between its layers, AdamW for all else, at one learning rate.

Muon (Jordan et al. 2024) orthogonalises a filter's momentum; scaled as Liu et al. 2025 do ("Muon is scalable for LLM training",
section 2.2), its steps are as large as AdamW's, so that one rate serves both. On the digits it is worth more than twice the
steps (docs/results.md). By hand, because torch's own takes matrices alone, and importing an optimiser of torch's takes seconds.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..compute.muon import orthogonalised

MOMENTUM, ITERATIONS = 0.9, 3
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
WEIGHT_DECAY = 0.01


class Optimizer:
    """An optimiser of a U-Net's parameters.

    Attributes:
        state: what a training that goes on needs, by name.
    """

    def __init__(self, network: nn.Module) -> None:
        # The first and the last convolution meet pixels, whose directions do differ in weight.
        hidden = {
            name for name, value in network.named_parameters() if value.ndim == 4 and not name.startswith("conv_")
        }
        self._filters = {name: value for name, value in network.named_parameters() if name in hidden}
        self._others = {name: value for name, value in network.named_parameters() if name not in hidden}
        self.state: dict[str, Tensor] = {}
        for name, value in network.named_parameters():
            self.state[f"momentum.{name}"] = torch.zeros_like(value)
            if name not in hidden:
                self.state[f"square.{name}"] = torch.zeros_like(value)

    def zero_grad(self) -> None:
        for parameter in (*self._filters.values(), *self._others.values()):
            parameter.grad = None

    @torch.no_grad()
    def step(self, lr: float, number: int) -> None:
        """The step of this number, counted from 1, at this learning rate."""
        for name, filters in self._filters.items():
            assert filters.grad is not None
            momentum = self.state[f"momentum.{name}"].lerp_(filters.grad, 1 - MOMENTUM)
            # As Nesterov: the gradient counts once more.
            matrix = filters.grad.lerp(momentum, MOMENTUM).flatten(1)
            # An orthogonal matrix has a mean square of 1 / its longer side; 0.2 is what AdamW's steps come to.
            size = 0.2 * max(matrix.shape) ** 0.5
            update = orthogonalised(matrix, ITERATIONS).view(filters.shape)
            filters.mul_(1 - lr * WEIGHT_DECAY).sub_(update, alpha=lr * size)
        others: list[Tensor] = list(self._others.values())
        gradients = [value.grad for value in others if value.grad is not None]
        first = [self.state[f"momentum.{name}"] for name in self._others]
        second = [self.state[f"square.{name}"] for name in self._others]
        torch._foreach_lerp_(first, gradients, 1 - BETA1)
        torch._foreach_mul_(second, BETA2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - BETA2)
        root = torch._foreach_div(second, 1 - BETA2**number)
        torch._foreach_sqrt_(root)
        torch._foreach_add_(root, EPS)
        torch._foreach_mul_(others, 1 - lr * WEIGHT_DECAY)
        torch._foreach_addcdiv_(others, first, root, -lr / (1 - BETA1**number))
