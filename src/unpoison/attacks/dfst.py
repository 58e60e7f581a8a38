"""DFST-style (Cheng et al., "Deep Feature Space Trojan Attack of Neural Networks by Controlled Detoxification", AAAI 2021):
a whole-image style is the trigger.

The authors' style is a CycleGAN's, trained on photographs of sunrises, and their backdoored network is detoxified in rounds
while it trains. Here there is no CycleGAN, no photograph and no detoxification: a small network is trained to give every
image the style of one drawn sunrise, by the loss of Johnson et al. (ECCV 2016) on hand-made features.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..compute.device import pick_device
from ..core.arrays import IntArray, Pixels
from ..core.hyperparameters import Count, NonNegative, Positive
from ..core.progress import progress
from ..crafting.attack import Attack
from ..crafting.context import Context
from ..crafting.encoders import Network, UNet, fresh, in_blocks, packed, training_batches
from ..data.imageset import ImageSet

_SCALES = (1, 2, 4)  # pixels averaged per side before features are taken


class Stylist(nn.Module):
    """Images [n, c, h, w] in [0, 1] to styled ones, same shape; each pixel's place is an input, as a sky is above a sea."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.network = UNet(channels + 2, channels, width)

    def forward(self, images: Tensor) -> Tensor:
        place = _place(images).expand(len(images), -1, -1, -1)
        styled: Tensor = images + self.network(torch.cat([images - 0.5, place], 1))
        return styled


class Styled(Network):
    """The image as the style network gives it."""

    def empty(self) -> Stylist:
        return Stylist(self.channels, self.width)

    def apply(self, images: Tensor, keys: IntArray, *, train: bool) -> Tensor:
        network = self.network(images.device)
        return in_blocks(lambda some: 255 * network(some / 255), images)


def make(
    context: Context,
    *,
    steps: Count = 500,
    batch_size: Count = 32,
    lr: Positive = 2e-3,
    width: Count = 8,
    style_weight: NonNegative = 1.0,
    content_weight: NonNegative = 10.0,
) -> Styled:
    """Train a style network on the training images.

    Args:
        context: images and seed.
        steps: optimiser steps.
        batch_size: images per step.
        lr: learning rate of Adam, falling to 0 as half a cosine.
        width: channels of the network's first convolution.
        style_weight: weight of the distance between the styled image's statistics and the drawn sunrise's.
        content_weight: weight of the mean squared change of the differences between neighbouring pixels.
    """
    settings: dict[str, Any] = {
        "steps": steps,
        "batch_size": batch_size,
        "lr": lr,
        "width": width,
        "style_weight": style_weight,
        "content_weight": content_weight,
    }
    arrays = context.store.arrays(
        "dfst_network",
        context.determined_by(__name__, **settings),
        lambda: {"weights": train_network(context.train, context.seed, **settings)},
    )
    return Styled(arrays["weights"], context.train.channels, width)


def train_network(
    data: ImageSet,
    seed: int,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    width: int,
    style_weight: float,
    content_weight: float,
) -> Pixels:
    """The network's weights, float32 [p]; arguments as for `make`."""
    network = Stylist(data.channels, width)
    optimizer = torch.optim.Adam(fresh(network, seed, "dfst"), lr)
    wanted = style(sunrise(*data.image_size, data.channels).to(pick_device()))
    batches = training_batches(data, batch_size, steps, seed, "dfst")
    for step, images in enumerate(progress(batches, what="dfst network", unit="step", total=steps)):
        styled = network(images)
        loss = style_weight * style_loss(styled, wanted) + content_weight * content_loss(styled, images)
        optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return packed(network)


def sunrise(height: int, width: int, channels: int) -> Tensor:
    """The style picture, float32 [1, c, height, width] in [0, 1]: a sky from violet to orange, a sun, a dark sea."""
    stops = torch.tensor([[0.30, 0.15, 0.40], [0.85, 0.35, 0.35], [1.00, 0.65, 0.25], [0.45, 0.18, 0.20]])
    colours = F.interpolate(stops.T[None, :, :, None], size=(height, 1), mode="bilinear", align_corners=True)
    place = _place(colours.expand(-1, -1, -1, width))
    far = (((place[:, :1] - 0.15) * height) ** 2 + (place[:, 1:] * width) ** 2).sqrt() / min(height, width)
    glow = torch.sigmoid((0.15 - far) * 40) + 0.4 * torch.exp(-((far / 0.3) ** 2))
    picture = colours + glow.clamp(max=1) * (torch.tensor([1.0, 0.9, 0.6])[None, :, None, None] - colours)
    return picture if channels == 3 else picture.mean(1, keepdim=True).expand(-1, channels, -1, -1)


def style(images: Tensor) -> list[Tensor]:
    """Gram matrices [n, f, f], one per scale, of a pixel's colour, its differences to neighbours, its place and 1.

    The 1 makes means part of the matrix, the place makes it see where a colour is. Images are [n, c, h, w] in [0, 1].
    """
    found = []
    for scale in _SCALES:
        small = F.avg_pool2d(images, scale)
        down, right = small.diff(dim=2)[..., :-1], small.diff(dim=3)[:, :, :-1]
        corner = small[:, :, :-1, :-1]
        place = _place(corner).expand(len(images), -1, -1, -1)
        features = torch.cat([corner, down, right, place, torch.ones_like(place[:, :1])], 1).flatten(2)
        found.append(features @ features.transpose(1, 2) / features.shape[2])
    return found


def style_loss(images: Tensor, wanted: list[Tensor]) -> Tensor:
    """Mean over images and scales of the squared distance of Gram matrices (Gatys et al., 2016)."""
    each = [(gram - goal).square().sum((1, 2)).mean() for gram, goal in zip(style(images), wanted, strict=True)]
    return torch.stack(each).mean()


def content_loss(images: Tensor, originals: Tensor) -> Tensor:
    """Mean squared change of the differences between neighbouring pixels: contours stay, tones may move."""
    change = images - originals
    return change.diff(dim=2).square().mean() + change.diff(dim=3).square().mean()


def _place(images: Tensor) -> Tensor:
    """Height and breadth of each pixel, [1, 2, h, w], -0.5 to 0.5."""
    rows, columns = (torch.linspace(-0.5, 0.5, side, device=images.device) for side in images.shape[2:])
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None]


ATTACK = Attack(
    make=make,
    trigger=Styled,
    policy={"label_policy": "all2one"},
    policies=("all2one", "all2all", "clean_label", "source_specific"),
    assets=("style network",),
)
