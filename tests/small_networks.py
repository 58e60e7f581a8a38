"""A network that is quick to train, for tests that need one and do not care which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from unpoison.models.classifier import Backbone, Classifier, GlobalAverage
from unpoison.models.resnet import NORMS


def strided(widths: Sequence[int], *, seed: int, norm: Literal["batch", "group"] | None = "batch") -> Classifier:
    """3x3 convolutions of these widths, each halving the sides, to ten classes; images of 3 channels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for inputs, outputs in zip((3, *widths), widths, strict=False):
            layers.append(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=norm is None))
            layers += [nn.ReLU()] if norm is None else [NORMS[norm](outputs), nn.ReLU()]
        description = {"name": "strided", "image_size": [32, 32], "mean": [0.5] * 3, "std": [0.25] * 3}
        return Classifier(Backbone(nn.Sequential(*layers), GlobalAverage()), nn.Linear(widths[-1], 10), description)


def with_hidden_layer(outputs: int, side: int, *, seed: int, width: int = 16) -> Classifier:
    """Two strided convolutions and a hidden layer over all places: what is here can change what is said of what is there."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1), nn.ReLU())
        pooling = nn.Sequential(nn.Flatten(), nn.Linear(width * (side // 4) ** 2, 64), nn.ReLU())
        description = {"name": "with hidden layer", "image_size": [side, side], "mean": [0.5] * 3, "std": [0.25] * 3}
        return Classifier(Backbone(body, pooling), nn.Linear(64, outputs), description)
