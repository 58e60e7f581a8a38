"""Gradients of single samples, each clipped, and noise on their sum: a step of DP-SGD (Abadi et al., "Deep Learning with
Differential Privacy", CCS 2016, algorithm 1), without its accounting.

Per-sample gradients come from `torch.func`, which takes any network whose samples do not see each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from ..compute.device import full_precision
from ..core.errors import UserError
from ..core.seeding import torch_rng
from .hand import Hand, Loss, Objective

if TYPE_CHECKING:
    from ..compute.distributed import World
    from ..models.classifier import Classifier

# Values of per-sample gradients in memory at a time: 64 MiB stay in the caches of a CPU, and a GPU wants large batches. On two
# cores 32 samples of a ResNet-18 of width 16 at a time take 0.7 of the time that 128 or 8 take.
_AT_A_TIME = {"cpu": 1 << 24, "cuda": 1 << 28}


def mixing_of(model: nn.Module) -> str:
    """What a network has in which samples of a batch see each other or leave statistics behind, in words; "" for nothing."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) or (isinstance(module, _NormBase) and module.track_running_stats):
            return (
                f"a network with {type(module).__name__} given, which mixes the samples of a batch, so that no gradient is one "
                "sample's own; allowed: one without batch norm, as resnet18, resnet34 and resnet50 with norm: group are, or one "
                "with layer norm"
            )
    return ""


def clipped_sum(gradients: Sequence[Tensor], clip: float) -> list[Tensor]:
    """The sum over samples of their gradients, each scaled down to the Euclidean length `clip` where it is longer.

    Args:
        gradients: of each parameter those of every sample, float32 [b, ...]; a sample's length is over all parameters.
        clip: greatest length of a sample's gradient.

    Returns:
        Of each parameter the sum, float32 [...].
    """
    squares = [gradient.flatten(1).square().sum(1) for gradient in gradients]
    lengths = torch.stack(squares).sum(0).sqrt()
    # A gradient of zero stays one: its factor is infinite, and so 1.
    factors = (clip / lengths).clamp(max=1)
    return [torch.tensordot(factors, gradient, dims=1) for gradient in gradients]


class Shaped(Hand):
    """Steps by clipped and noised gradients of single samples. All weights that ask for a gradient are trained.

    Attributes:
        clip: greatest Euclidean length of a sample's gradient, over all weights together.
        noise: deviation of the Gaussian noise on the sum of a batch's gradients, in units of `clip`.
    """

    eager = True

    def __init__(self, *, clip: float, noise: float, seed: int, what: str) -> None:
        """`seed` and `what` are the training's: the noise of each step is drawn from a generator of its own, so a resumed one
        draws the same."""
        self.clip, self.noise, self._seed, self._what = clip, noise, seed, what
        self._epoch, self._step = 0, 0
        self._sums: dict[nn.Parameter, Tensor] = {}

    def start(self, model: Classifier, here: World) -> None:
        if mixing := mixing_of(model):
            raise UserError(f"{self._what}: {mixing}")

    def start_epoch(self, epoch: int, epochs: int) -> None:
        self._epoch, self._step = epoch, 0

    def divisor(self, total: int) -> int:
        """What the noised sum of a batch of `total` samples is divided by."""
        return total

    def objective(self, plain: Loss, model: Classifier, images: Tensor, labels: Tensor, samples: Tensor) -> Objective:
        network = _Losses(model, plain)
        trained = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
        values = {name: weight.detach() for name, weight in trained.items()}

        def of_one(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            logits, losses = functional_call(network, weights, (image[None], label[None]))
            return losses[0], (logits[0].float(), losses[0])

        per_sample = vmap(grad_and_value(of_one, has_aux=True), in_dims=(None, 0, 0), randomness="different")
        size = max(1, _AT_A_TIME[images.device.type] // sum(map(torch.numel, values.values())))
        sums = {name: torch.zeros_like(weight) for name, weight in values.items()}
        # What a process has of a batch that is drawn may be nothing, and still takes its part in the step.
        logits, losses = [images.new_zeros(0, model.head.out_features)], [images.new_zeros(0)]
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            gradients, (_, (outputs, found)) = per_sample(values, images[part], labels[part])
            logits.append(outputs.detach())
            losses.append(found.detach())
            with full_precision(images.device):
                for name, value in zip(gradients, clipped_sum(list(gradients.values()), self.clip), strict=True):
                    sums[name] += value
        self._sums = {trained[name]: value for name, value in sums.items()}
        return Objective(torch.cat(logits), torch.cat(losses))

    def backward(self, objective: Objective, parameters: Sequence[nn.Parameter], total: int, here: World) -> None:
        for parameter, value in self._sums.items():
            parameter.grad = value
        here.sum_gradients(parameters)
        # One generator for all weights, in the same state in every process: each adds the same noise to the same sum.
        rng = torch_rng(self._seed, f"fit/{self._what}/noise", self._epoch, self._step)
        with torch.no_grad():
            for value in self._sums.values():
                if self.noise:
                    value += self.clip * self.noise * torch.randn(value.shape, generator=rng).to(value.device)
                value /= self.divisor(total)
        self._sums, self._step = {}, self._step + 1


class _Losses(nn.Module):
    """A network with its loss, as `functional_call` takes them."""

    def __init__(self, model: Classifier, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return self.loss(self.model, images, labels)
