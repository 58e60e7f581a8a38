"""Networks of an attacker that are trained beside the victim: their first weights, their optimiser, what they share as triggers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..compute.distributed import World
from ..core.arrays import Pixels
from ..core.errors import ParameterError, UserError
from ..core.seeding import derive
from ..models.classifier import Classifier
from ..poisoning.trigger import Trigger
from .encoders import check_trained, loaded, packed, unpacked

MEAN, STD = 0.5, 0.25
"""What images are normalised with before a victim is known: the defaults of `models.build`."""


@dataclass(frozen=True)
class Normalising(Trigger):
    """A trigger whose networks see images normalised as the victim does.

    Attributes:
        mean: mean of each channel, for images in [0, 1], float32 [c].
        std: standard deviation of each channel, likewise.
    """

    mean: NDArray[np.float32]
    std: NDArray[np.float32]

    def as_seen_by(self, model: Classifier) -> Self:
        """The trigger with a classifier's mean and standard deviation."""
        mean, std = (value.detach().flatten().cpu().numpy() for value in (model.mean, model.std))
        return replace(self, mean=mean, std=std)

    def normalised(self, images: Tensor) -> Tensor:
        """Images [n, c, h, w] in [0, 1] with this mean and standard deviation taken out."""
        mean, std = (torch.from_numpy(value).to(images).view(1, -1, 1, 1) for value in (self.mean, self.std))
        return (images - mean) / std

    def frozen(self, make: Callable[[], nn.Module], weights: Pixels, device: torch.device) -> nn.Module:
        """The network out of `make` with these weights, in evaluation mode, built once for each device."""
        if (key := (id(weights), device)) not in self._built:
            self._built[key] = unpacked(make, weights, device)
        return self._built[key]

    # In the instance's dictionary and no field, so it is neither written to disk nor compared.
    @cached_property
    def _built(self) -> dict[tuple[int, torch.device], nn.Module]:
        return {}


def statistics(channels: int) -> dict[str, NDArray[np.float32]]:
    """`mean` and `std` of a `Normalising` trigger before a victim is known."""
    return {"mean": np.full(channels, MEAN, np.float32), "std": np.full(channels, STD, np.float32)}


def first_weights(make: Callable[[], nn.Module], seed: int, purpose: str) -> Pixels:
    """The weights of a new network as torch's layers draw theirs, from (seed, purpose): float32 [p], as `packed`."""
    # In a fork of torch's generator: the global state stays as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, purpose))
        return packed(make())


class Learner:
    """A network that is trained by Adam and goes on from a checkpoint: its moments are there before the first step.

    Attributes:
        network: the network on its device, in training mode.
        lr: learning rate of Adam.
    """

    def __init__(
        self,
        make: Callable[[], nn.Module],
        weights: Pixels,
        device: torch.device,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        self.network, self.lr = loaded(make, weights, device).train(), lr
        self.parameters = list(self.network.parameters())
        self._adam = torch.optim.Adam(self.parameters, lr, betas)
        for parameter in self.parameters:
            self._adam.state[parameter] = {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def step(self, here: World, *, lr: float | None = None) -> None:
        """A step by the gradients that are there, of all processes together, and none are left behind."""
        for group in self._adam.param_groups:
            group["lr"] = group["lr"] if lr is None else lr
        for parameter in self.parameters:
            # A share without a stamped image reached no weight, and what is summed must be as long in every process.
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        here.sum_gradients(self.parameters)
        self._adam.step()
        self._adam.zero_grad()
        # At every step, as nobody says which is the last: the trigger has one process's statistics otherwise.
        here.average_buffers(self.network)

    def check(self, attack: str) -> None:
        """Raises UserError where a weight is not finite, by the learning rate of the attack's block."""
        try:
            check_trained(self.network, self.lr)
        except ParameterError as error:
            # Not of the recipe that the victim is trained by.
            raise UserError(f"{attack}.{error}") from None

    def follow(self, loss: Tensor) -> None:
        """Take the gradients of a loss for the network, and for nothing else that it went through."""
        for parameter, gradient in zip(self.parameters, torch.autograd.grad(loss, self.parameters), strict=True):
            parameter.grad = gradient

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Weights, statistics and moments, for `Hand.tensors`."""
        found = tensors_of(name, self.network)
        for number, parameter in enumerate(self.parameters):
            found |= {f"{name}.{number}.{key}": value for key, value in self._adam.state[parameter].items()}
        return found


def tensors_of(name: str, network: nn.Module) -> dict[str, Tensor]:
    """A network's weights and statistics by name, for `Hand.tensors`."""
    return {f"{name}.{key}": value for key, value in network.state_dict().items()}
