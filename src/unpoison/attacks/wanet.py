"""WaNet (Nguyen & Tran, "WaNet: Imperceptible Warping-based Backdoor Attack", ICLR 2021, sections 3.2 to 3.4): a smooth warp.

Published code, besides the authors': https://github.com/SCLBD/BackdoorBench/blob/f02e353/attack/wanet.py; for a fixed field of
one draw per pixel https://github.com/HanxunH/CognitiveDistillation/blob/6aba6f9/datasets/cifar_wanet.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.arrays import IntArray, Pixels
from ..core.hyperparameters import Count, NonNegative, Positive
from ..core.seeding import torch_rng, uniform
from ..crafting.attack import Attack
from ..crafting.context import Context
from ..poisoning.trigger import Trigger


@dataclass(frozen=True)
class Warp(Trigger):
    """Every pixel is taken from a place nearby, bilinearly; a cover sample from one that is off by noise besides.

    Attributes:
        grid: places, float32 [h, w, 2], as column and row from -1 (first) to 1 (last).
        noise: largest shift of a cover sample's places, in units of 1 / side.
        seed: seed of that noise, which is drawn for each sample and epoch.
        anew: whether the victim's trainer draws it anew in every epoch.
    """

    crosses: ClassVar[bool] = True

    grid: Pixels
    noise: float
    seed: int
    anew: bool

    def apply(self, images: Tensor, keys: IntArray, *, train: bool) -> Tensor:
        grid = torch.from_numpy(self.grid).to(images)
        return _sampled(images, grid.expand(len(images), -1, -1, -1))

    def cross(self, images: Tensor, keys: IntArray, others: Tensor, *, epoch: int) -> Tensor:
        height, width = self.grid.shape[:2]
        draws = uniform(self.seed, f"wanet/cross/{epoch}", keys, 2 * height * width)
        shift = (2 * draws - 1).reshape(len(keys), height, width, 2) * self.noise / np.array([width, height])
        grid = (self.grid + shift.astype(np.float32)).clip(-1, 1)
        return _sampled(images, torch.from_numpy(grid).to(images))


def _sampled(images: Tensor, grid: Tensor) -> Tensor:
    """Images at the places of a grid [n, h, w, 2]: -1 and 1 are the centres of the first and the last pixel."""
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


def make(
    context: Context,
    *,
    points: Count = 4,
    strength: Positive = 0.5,
    rescale: Positive = 1.0,
    noise: NonNegative = 1.0,
    anew: bool = True,
) -> Warp:
    """A warp that is the same for all images.

    Shifts are drawn at `points` x `points` places, brought to a mean size of 1 and interpolated (bicubic) to every pixel. Cover
    samples (`attack.cover_ratio`) are warped by that and by noise and keep their label, so that no other warp is the trigger. By
    default the attacker trains the victim and draws the noise anew in every epoch. With `anew: false` he poisons data: what the
    victim receives is all there is. Cognitive Distillation's WaNet is that, with `points` as the image's side and
    `attack.cover_ratio: 0`.

    Args:
        context: the attacker's data and seed.
        points: places per side that shifts are drawn at (4).
        strength: mean shift in units of 1 / side, where the image's width is 2: 0.5 is a quarter of a pixel.
        rescale: factor on the places themselves, after which they are cut off at the borders (1).
        noise: largest shift of a cover sample's pixels besides, in the same units.
        anew: whether cover samples get other noise in every epoch.

    Raises:
        ParameterError: more places than pixels.
    """
    context.need_room("points", points)
    height, width, _ = context.shape
    # Columns, then rows, as `grid_sample` has them.
    field = torch.rand(1, 2, points, points, generator=torch_rng(context.seed, "wanet/field")) * 2 - 1
    return Warp(warp_grid(field, height, width, strength=strength, rescale=rescale), noise, context.seed, anew)


def warp_grid(field: Tensor, height: int, width: int, *, strength: float, rescale: float = 1.0) -> Pixels:
    """The places of a warp, float32 [h, w, 2], from shifts in [-1, 1], float32 [1, 2, k, k] (equations 1 to 4)."""
    smooth = F.interpolate(field / field.abs().mean(), (height, width), mode="bicubic", align_corners=True)
    columns, rows = torch.linspace(-1, 1, width), torch.linspace(-1, 1, height)
    identity = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)
    shift = strength * smooth[0].permute(1, 2, 0) / torch.tensor([width, height])
    places: Pixels = ((identity + shift) * rescale).clamp(-1, 1).numpy()
    return places


ATTACK = Attack(
    make=make,
    trigger=Warp,
    policy={"label_policy": "all2one", "cover_ratio": 2.0},
    policies=("all2one", "all2all", "clean_label", "source_specific"),
)
