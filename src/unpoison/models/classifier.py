"""`Classifier`: one shape for every network, so that methods reach features, head and logits the same way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Classifier(nn.Module):
    """A network from float images [n, c, h, w] in [0, 1] to logits [n, classes]; normalisation is inside.

    Attributes:
        body: normalised images to the last feature map [n, d, h', w'].
        head: the last linear layer, penultimate features [n, d] to logits.
        description: what rebuilds it: architecture name and arguments, classes, input size, mean and std.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, head: nn.Linear, description: dict[str, Any]) -> None:
        super().__init__()
        self.body = body
        self.head = head
        self.description = description
        self.register_buffer("mean", torch.tensor(description["mean"]).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(description["std"]).view(1, -1, 1, 1), persistent=False)

    def feature_map(self, images: Tensor) -> Tensor:
        """The last feature map [n, d, h', w']."""
        out: Tensor = self.body((images - self.mean) / self.std)
        return out

    def features(self, images: Tensor) -> Tensor:
        """The penultimate features [n, d]: the last feature map, averaged over space."""
        return self.feature_map(images).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.head(self.features(images))
        return out
