"""`Classifier`: one shape for every network, so that methods reach features, head and logits in the same way.

A network is a backbone and one linear head. The backbone has two halves, from images to its last raw output and from there
to penultimate features, because some methods need the map in between; a network whose raw output is no map (tokens) says
how to read it as one.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor, nn

from ..core.errors import ParameterError

# Weight of each auxiliary head's loss: the value of the Inception-v3 authors' own training code (Szegedy et al., 2016).
# GoogLeNet's paper (2015) gives 0.3 for its two heads.
AUXILIARY_WEIGHT = 0.4
# Of a network's first stage. Training with fewer than 8 channels corrupts the heap in torch 2.15 on CPUs with AVX2 and no
# AVX-512 ("free(): invalid pointer"): oneDNN's weight gradient of a 1x1 convolution with stride 2, as in the ResNets'
# shortcuts, writes past its end for channels_last images of fewer than 8 input channels. With 8 and more, glibc's heap
# checks find nothing.
Width = Annotated[int, Ge(8)]


class GlobalAverage(nn.Module):
    """The average over space, from a feature map [n, d, h, w] to [n, d]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class Backbone(nn.Module):
    """Everything before the head. This class is the plain convolutional case: the raw output is the last feature map.

    Args:
        body: module from normalised images [n, c, h, w] to the raw output.
        pooling: module from there to the penultimate features [n, d], hidden linear layers and dropout included.
        traceable: whether `torch.fx` can trace it and finds batch norms to fold into convolutions.

    Attributes:
        normalisation: mean and standard deviation of each channel that a network is made for; None: it takes any.
        rebuilt_by: JSON values of the arguments that rebuild it; None: those that it was made with, but for `pretrained`.
        given: names of tensors that it was given and does not learn, so that they are no initial weights.
    """

    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    rebuilt_by: dict[str, Any] | None = None
    given: tuple[str, ...] = ()

    def __init__(self, body: nn.Module, pooling: nn.Module, *, traceable: bool = True) -> None:
        super().__init__()
        self.body = body
        self.pooling = pooling
        self.traceable = traceable

    def forward(self, images: Tensor) -> Tensor:
        raw: Tensor = self.body(images)
        return raw

    def pool(self, raw: Tensor) -> Tensor:
        """The penultimate features [n, d] from the raw output."""
        features: Tensor = self.pooling(raw)
        return features

    def spatial(self, raw: Tensor) -> Tensor:
        """The raw output as a map [n, d', h', w']."""
        return raw

    def with_auxiliary(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The raw output, and in training mode the logits of the auxiliary heads, first head first."""
        return self(images), ()


class Classifier(nn.Module):
    """A network from float images [n, c, h, w] in [0, 1] to logits [n, classes]; normalisation is inside.

    Attributes:
        backbone: from normalised images to penultimate features, in two halves.
        head: the last linear layer, from penultimate features [n, d] to logits.
        description: JSON values that rebuild it: name and arguments, classes, image size, channels, mean and std, and of one
            that stamps its images (`stamp_inputs`) the stamp.
    """

    mean: Tensor
    std: Tensor
    stamped: Tensor | None

    def __init__(self, backbone: Backbone, head: nn.Linear, description: dict[str, Any]) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.description = description
        # Buffers move with the network; not persistent, as the description holds them and the weights need not.
        self.register_buffer("mean", torch.tensor(description["mean"]).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(description["std"]).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("stamped", None, persistent=False)
        if description.get("stamp") is not None:
            self.stamp_inputs(**description["stamp"])

    def stamp_inputs(self, *, size: int, value: float) -> None:
        """From now on put a defender's trigger on every image that comes in, and say so in the description.

        Args:
            size: side in pixels of the square in the upper left corner.
            value: value of its pixels, in the units of images, which are in [0, 1]; it may lie outside.

        Raises:
            ParameterError: a square that is larger than the image.
        """
        height, width = self.description["image_size"]
        if size > min(height, width):
            raise ParameterError(f"size: {size} given, allowed: 1 to {min(height, width)}")
        mask = torch.zeros(1, 1, height, width, dtype=torch.bool, device=self.mean.device)
        mask[:, :, :size, :size] = True
        self.stamped = mask
        self.description = {**self.description, "stamp": {"size": size, "value": value}}

    @property
    def traceable(self) -> bool:
        """Whether `torch.fx` can trace it, to fold its batch norms into its convolutions."""
        return self.backbone.traceable

    def feature_map(self, images: Tensor) -> Tensor:
        """The last feature map [n, d', h', w']; d' is not the features' d where linear layers follow the pooling."""
        return self.backbone.spatial(self.backbone(self._normalised(images)))

    def features(self, images: Tensor) -> Tensor:
        """The penultimate features [n, d], the input of `head`."""
        return self.backbone.pool(self.backbone(self._normalised(images)))

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.head(self.features(images))
        return out

    def logits_and_auxiliary(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Logits, and those of the auxiliary heads; none in evaluation mode and for networks without such heads.

        A training loss adds `AUXILIARY_WEIGHT` times the loss of each.
        """
        raw, auxiliary = self.backbone.with_auxiliary(self._normalised(images))
        return self.head(self.backbone.pool(raw)), auxiliary

    def _normalised(self, images: Tensor) -> Tensor:
        if self.stamped is not None:
            images = torch.where(self.stamped, self.description["stamp"]["value"], images)
        return (images - self.mean) / self.std
