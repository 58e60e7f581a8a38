"""Networks between `compact` and others, for `recipes.py`: what a change of its shape brings. None is in the library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from unpoison.models.classifier import Backbone, Classifier, GlobalAverage
from unpoison.models.compact import Residual, ScaledMax

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


class Both(nn.Module):
    """Global maximum and global average side by side, [n, 2 d]."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([ScaledMax()(x), x.mean((2, 3))], 1)


def build(
    like: Classifier,
    seed: int,
    *,
    widths: Sequence[int] = (32, 128, 128),
    depths: Sequence[int] = (2, 2, 2),
    residual: bool = False,
    activation: str = "relu",
    pooling: Literal["max", "avg", "both"] = "max",
) -> Classifier:
    """`compact` with other stages, with the classes and the images of `like`.

    Args:
        like: any classifier for the data.
        seed: seed of the head.
        widths: channels of each stage.
        depths: convolutions in each stage.
        residual: a residual block of two convolutions in the place of all but a stage's first.
        activation: a name out of `ACTIVATIONS`.
        pooling: what features are of the last map: its maximum times 1/8, its average, or both.
    """
    channels, act = int(like.description["channels"]), ACTIVATIONS[activation]

    def convolution(given: int, made: int, *, pool: bool = False) -> list[nn.Module]:
        layer = nn.Conv2d(given, made, 3, padding=1, bias=False)
        nn.init.dirac_(layer.weight.data[:given])
        return [layer, *([nn.MaxPool2d(2)] if pool else []), nn.BatchNorm2d(made), act()]

    given = 8 * channels
    layers: list[nn.Module] = [nn.Conv2d(channels, given, 2), act()]
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        for width, depth in zip(widths, depths, strict=True):
            layers += convolution(given, width, pool=True)
            given = width
            if residual:
                layers.append(Residual(width))
            else:
                layers += [part for _ in range(depth - 1) for part in convolution(width, width)]
        pooled = {"max": ScaledMax, "avg": GlobalAverage, "both": Both}[pooling]()
        head = nn.Linear(given * (2 if pooling == "both" else 1), int(like.description["num_classes"]))
    return Classifier(Backbone(nn.Sequential(*layers), pooled), head, like.description)
