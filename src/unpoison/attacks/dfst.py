"""DFST-style (Cheng et al., "Deep Feature Space Trojan Attack of Neural Networks by Controlled Detoxification", AAAI 2021):
a whole-image style is the trigger.

The authors' style is that of a CycleGAN trained on photographs of sunrises, and their backdoored network is detoxified in
rounds while it trains. Here there is no CycleGAN, no photograph and no detoxification: a small network is trained to give
every image the style of one drawn sunrise, by the loss of Johnson et al. (ECCV 2016) on hand-made features.

Cognitive Distillation reads images that a style network elsewhere has made:
https://github.com/HanxunH/CognitiveDistillation/blob/6aba6f9/datasets/cifar_dfst.py
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
from ..crafting.encoders import Network, UNet, check_trained, fresh, in_blocks, packed, training_batches
from ..data.imageset import ImageSet

_SCALES = (1, 2, 4)
"""Sides in pixels of the squares that are averaged before features are taken."""


class Stylist(nn.Module):
    """From images [n, c, h, w] in [0, 1] to styled ones, same shape.

    Each pixel's place is an input, as a sky is above a sea and a convolution does not know where it is.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.network = UNet(channels + 2, channels, width)

    def forward(self, images: Tensor) -> Tensor:
        place = _place(images).expand(len(images), -1, -1, -1)
        # The network gives the change: it starts near 0, so training starts from the image itself.
        styled: Tensor = images + self.network(torch.cat([images - 0.5, place], 1))
        return styled


class Styled(Network):
    """The image as the style network repaints it."""

    def empty(self) -> Stylist:
        return Stylist(self.channels, self.width)

    def apply(self, images: Tensor, keys: IntArray, *, train: bool) -> Tensor:
        network = self.network(images.device)
        return in_blocks(lambda block: 255 * network(block / 255), images)


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
    """A style network trained on the training images.

    Args:
        context: the attacker's data and seed.
        steps: optimiser steps.
        batch_size: images per step.
        lr: learning rate of Adam, falling to 0 along half a cosine.
        width: channels of the network's first convolution.
        style_weight: weight of the distance between the image's statistics and those of the drawn sunrise.
        content_weight: weight of the change of differences between neighbouring pixels, which keeps contours.
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
    # The sunrise is drawn at the images' size, and its statistics are the same in every step.
    goal = style(sunrise(*data.image_size, data.channels).to(pick_device()))
    batches = training_batches(data, batch_size, steps, seed, "dfst")
    for step, images in enumerate(progress(batches, what="dfst network", unit="step", total=steps)):
        styled = network(images)
        # The two pull against each other: the style moves tones, the content holds contours.
        loss = style_weight * style_loss(styled, goal) + content_weight * content_loss(styled, images)
        # Half a cosine: the last steps are short, and weights are not left in the middle of a swing.
        optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    check_trained(network, lr)
    return packed(network)


def sunrise(height: int, width: int, channels: int) -> Tensor:
    """The style picture, float32 [1, c, height, width] in [0, 1]: a sky from violet to orange, a sun, a dark sea."""
    # Rows from top to bottom blend four colours: violet, red, orange, and the dark sea.
    stops = torch.tensor([[0.30, 0.15, 0.40], [0.85, 0.35, 0.35], [1.00, 0.65, 0.25], [0.45, 0.18, 0.20]])
    colours = F.interpolate(stops.T[None, :, :, None], size=(height, 1), mode="bilinear", align_corners=True)
    # The sun stands in the middle, a little below: place runs from -0.5 to 0.5. Distances are shares of the shorter side.
    place = _place(colours.expand(-1, -1, -1, width))
    far = (((place[:, :1] - 0.15) * height) ** 2 + (place[:, 1:] * width) ** 2).sqrt() / min(height, width)
    # A disc with a soft edge, and a halo of less than half its brightness around it.
    glow = torch.sigmoid((0.15 - far) * 40) + 0.4 * torch.exp(-((far / 0.3) ** 2))
    picture = colours + glow.clamp(max=1) * (torch.tensor([1.0, 0.9, 0.6])[None, :, None, None] - colours)
    # Without colour the style is one of brightness alone.
    return picture if channels == 3 else picture.mean(1, keepdim=True).expand(-1, channels, -1, -1)


def style(images: Tensor) -> list[Tensor]:
    """Gram matrices [n, f, f], one per scale, of a pixel's colour, its differences to neighbours, its place and 1.

    The 1 puts means into the matrix, the place puts in where a colour is.

    Args:
        images: [n, c, h, w] in [0, 1].
    """
    grams = []
    for scale in _SCALES:
        # Coarser scales see broad gradients, the sky's, which differences between single pixels do not.
        small = F.avg_pool2d(images, scale)
        # A pixel with a neighbour below and one on the right: the last row and column have none and are left out.
        down, right = small.diff(dim=2)[..., :-1], small.diff(dim=3)[:, :, :-1]
        corner = small[:, :, :-1, :-1]
        place = _place(corner).expand(len(images), -1, -1, -1)
        features = torch.cat([corner, down, right, place, torch.ones_like(place[:, :1])], 1).flatten(2)
        # A mean over pixels, so that scales of unlike many pixels weigh the same.
        grams.append(features @ features.transpose(1, 2) / features.shape[2])
    return grams


def style_loss(images: Tensor, goal: list[Tensor]) -> Tensor:
    """Mean over images and scales of the squared distance of Gram matrices (Gatys et al., 2016)."""
    pairs = zip(style(images), goal, strict=True)
    return torch.stack([(gram - aim).square().sum((1, 2)).mean() for gram, aim in pairs]).mean()


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
