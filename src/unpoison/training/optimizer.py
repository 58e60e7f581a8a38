"""SGD and Adam, by torch's own functions; on a GPU fused into one kernel for all parameters.

`torch.optim.SGD` and its siblings import torch's compiler on their first step: two seconds in every process that trains.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from .recipe import Rate, Recipe


class Optimizer:
    """The optimiser of `recipe` over those of `parameters` that are trained; each step is given its rate."""

    def __init__(self, recipe: Recipe, parameters: Iterable[nn.Parameter]) -> None:
        self.recipe = recipe
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.state: dict[nn.Parameter, tuple[Tensor, ...]] = {}

    def zero_grad(self) -> None:
        # None, not zeros: the backward pass then writes gradients instead of adding to them.
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, rate: Rate) -> None:
        """One step of every parameter that has a gradient."""
        # What a loss does not reach, such as an unused head, has no gradient and stays as it is, weight decay included.
        trained = [parameter for parameter in self.parameters if parameter.grad is not None]
        gradients = [_laid_out(parameter.grad, parameter) for parameter in trained if parameter.grad is not None]
        for parameter in trained:
            if parameter not in self.state:
                self.state[parameter] = self._new_state(parameter)
        # torch's functions take one list per kind of state: from (first, second, steps) per parameter to three lists.
        state = [list(kind) for kind in zip(*(self.state[parameter] for parameter in trained), strict=True)]
        # Not on a CPU: the fused kernel saves 4 % of a step there at most, and rounds differently.
        fused = trained[0].device.type == "cuda"
        common = {
            "fused": fused,
            "foreach": False,
            "lr": rate.lr,
            "weight_decay": self.recipe.weight_decay,
            "maximize": False,
        }
        if self.recipe.optimizer == "adam":
            first, second, steps = state
            # The first beta moves with the schedule as momentum does; `onecycle` moves it.
            betas = {"beta1": rate.momentum, "beta2": 0.999, "eps": 1e-8}
            adam(trained, gradients, first, second, [], steps, amsgrad=False, **betas, **common)  # type: ignore[arg-type]
        else:
            nesterov = self.recipe.nesterov
            sgd(trained, gradients, *state, momentum=rate.momentum, dampening=0.0, nesterov=nesterov, **common)  # type: ignore[arg-type]

    def _new_state(self, parameter: nn.Parameter) -> tuple[Tensor, ...]:
        """Adam's two moments and its count of steps, or SGD's momentum buffer, all zero."""
        # torch starts the momentum buffer as the first gradient itself: from zero, momentum * 0 + gradient is the same.
        if self.recipe.optimizer == "sgd":
            return (torch.zeros_like(parameter),)
        return torch.zeros_like(parameter), torch.zeros_like(parameter), torch.zeros((), device=parameter.device)


def _laid_out(gradient: Tensor, parameter: nn.Parameter) -> Tensor:
    """The gradient in the parameter's memory format: a fused step walks through memory and ignores strides."""
    return gradient if gradient.stride() == parameter.stride() else torch.empty_like(parameter).copy_(gradient)
