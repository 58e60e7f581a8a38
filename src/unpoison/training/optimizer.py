"""SGD and Adam by torch's own functions, on a GPU fused into one kernel for all parameters, and Muon.

`torch.optim.SGD` and its siblings import torch's compiler on their first step: two seconds in every process that trains.
`torch.optim.Muon` takes matrices only, and computes in bf16, which a CPU without it emulates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from .muon import is_filter, muon_step
from .recipe import Rate, Recipe

# Of the SGD beside Muon, as in cifar10-airbench.
SGD_MOMENTUM = 0.85


class Optimizer:
    """The optimiser of `recipe` over those of `parameters` that are trained; each step is given its rate."""

    def __init__(self, recipe: Recipe, parameters: Iterable[nn.Parameter]) -> None:
        self.recipe = recipe
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.state: dict[nn.Parameter, list[Tensor]] = {}

    def zero_grad(self) -> None:
        # None, not zeros: the backward pass then writes gradients instead of adding to them.
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, rate: Rate) -> None:
        """One step of every parameter that has a gradient."""
        # What a loss does not reach, such as an unused head, has no gradient and stays as it is, weight decay included.
        trained = [parameter for parameter in self.parameters if parameter.grad is not None]
        if self.recipe.optimizer == "adam":
            self._adam(trained, rate)
        elif self.recipe.optimizer == "sgd":
            self._sgd(trained, rate.lr, rate.momentum, nesterov=self.recipe.nesterov)
        else:
            self._muon([parameter for parameter in trained if is_filter(parameter)], rate)
            # One schedule for both: their rates keep their ratio.
            others = [parameter for parameter in trained if not is_filter(parameter)]
            self._sgd(others, rate.lr * self.recipe.sgd_lr / self.recipe.lr, SGD_MOMENTUM, nesterov=True)

    def tensors(self, names: Mapping[nn.Parameter, str]) -> dict[str, Tensor]:
        """Its running sums by name, those of parameters that were never stepped as well: for checkpoints.

        Args:
            names: the parameters' names.
        """
        adam = self.recipe.optimizer == "adam"
        found: dict[str, Tensor] = {}
        for parameter in self.parameters:
            for number, tensor in enumerate(self._state(parameter, 2 if adam else 1, counted=adam)):
                found[f"{names[parameter]}.{number}"] = tensor
        return found

    def _sgd(self, parameters: list[nn.Parameter], lr: float, momentum: float, *, nesterov: bool) -> None:
        # torch starts the momentum buffer as the first gradient itself: from zero, momentum * 0 + gradient is the same.
        buffers = [self._state(parameter, 1)[0] for parameter in parameters]
        settings = {"momentum": momentum, "dampening": 0.0, "nesterov": nesterov}
        if parameters:
            sgd(parameters, _gradients(parameters), buffers, **settings, **self._common(parameters, lr))  # type: ignore[arg-type]

    def _adam(self, parameters: list[nn.Parameter], rate: Rate) -> None:
        first, second, steps = zip(*(self._state(parameter, 2, counted=True) for parameter in parameters), strict=True)
        # The first beta moves with the schedule as momentum does; `onecycle` moves it.
        settings = {"amsgrad": False, "beta1": rate.momentum, "beta2": 0.999, "eps": 1e-8}
        common = self._common(parameters, rate.lr)
        adam(parameters, _gradients(parameters), [*first], [*second], [], [*steps], **settings, **common)  # type: ignore[arg-type]

    def _muon(self, parameters: list[nn.Parameter], rate: Rate) -> None:
        for parameter, gradient in zip(parameters, _gradients(parameters), strict=True):
            muon_step(parameter, gradient, self._state(parameter, 1)[0], lr=rate.lr, momentum=rate.momentum)

    def _state(self, parameter: nn.Parameter, moments: int, *, counted: bool = False) -> list[Tensor]:
        """Running sums in the parameter's shape, and for Adam the count of its steps; all zero at first."""
        if parameter not in self.state:
            count = [torch.zeros((), device=parameter.device)] if counted else []
            self.state[parameter] = [*(torch.zeros_like(parameter) for _ in range(moments)), *count]
        return self.state[parameter]

    def _common(self, parameters: list[nn.Parameter], lr: float) -> dict[str, float | bool]:
        # Not fused on a CPU: that saves 4 % of a step there at most, and rounds differently.
        fused = parameters[0].device.type == "cuda"
        decay = self.recipe.weight_decay
        return {"fused": fused, "foreach": False, "lr": lr, "weight_decay": decay, "maximize": False}


def _gradients(parameters: list[nn.Parameter]) -> list[Tensor]:
    """Gradients in their parameters' memory formats: a fused step walks through memory and ignores strides."""
    return [_laid_out(parameter.grad, parameter) for parameter in parameters if parameter.grad is not None]


def _laid_out(gradient: Tensor, parameter: nn.Parameter) -> Tensor:
    return gradient if gradient.stride() == parameter.stride() else torch.empty_like(parameter).copy_(gradient)
