"""Augmentation as batched tensor functions: float images [n, c, h, w] in [0, 1] in, the same out.

Draws come from a CPU generator, one per training run, so results do not depend on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

Augmentation = Callable[[Tensor, Generator], Tensor]


def crop(images: Tensor, generator: Generator) -> Tensor:
    """Random crop after zero padding by an eighth of the side (4 px at 32), as in the CIFAR recipes."""
    n, channels, height, width = images.shape
    pad = max(1, height // 8)
    offsets = torch.randint(0, 2 * pad + 1, (2, n), generator=generator).to(images.device)
    rows = (offsets[0, :, None] + torch.arange(height, device=images.device))[:, None, :, None]
    columns = (offsets[1, :, None] + torch.arange(width, device=images.device))[:, None, None, :]
    sample = torch.arange(n, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    return F.pad(images, (pad, pad, pad, pad))[sample, channel, rows, columns]


def flip(images: Tensor, generator: Generator) -> Tensor:
    """Horizontal flip with probability one half."""
    chosen = (torch.rand(len(images), generator=generator) < 0.5).to(images.device)
    return torch.where(chosen[:, None, None, None], images.flip(3), images)


def cutout(images: Tensor, generator: Generator) -> Tensor:
    """One square of a quarter of the side set to 0 at a random centre (DeVries & Taylor, 2017)."""
    n, _, height, width = images.shape
    half = max(1, height // 8)
    row = torch.randint(0, height, (n, 1, 1), generator=generator).to(images.device)
    column = torch.randint(0, width, (n, 1, 1), generator=generator).to(images.device)
    rows = torch.arange(height, device=images.device)[None, :, None]
    columns = torch.arange(width, device=images.device)[None, None, :]
    inside = (rows >= row - half) & (rows < row + half) & (columns >= column - half) & (columns < column + half)
    return images.masked_fill(inside[:, None], 0.0)


def rotation(images: Tensor, generator: Generator) -> Tensor:
    """Rotation by up to 15 degrees around the centre, bilinear, zero fill."""
    angle = (torch.rand(len(images), generator=generator) * 2 - 1) * (torch.pi / 12)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros(len(images))
    theta = torch.stack([torch.stack([cos, sin, zero], 1), torch.stack([-sin, cos, zero], 1)], 1)
    grid = F.affine_grid(theta.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def colour_jitter(images: Tensor, generator: Generator) -> Tensor:
    """Brightness, then contrast, each scaled by a factor in [0.6, 1.4]."""
    factors = torch.rand(2, len(images), 1, 1, 1, generator=generator).to(images) * 0.8 + 0.6
    images = (images * factors[0]).clamp(0, 1)
    mean = images.mean((1, 2, 3), keepdim=True)
    return ((images - mean) * factors[1] + mean).clamp(0, 1)


AUGMENTATIONS: dict[str, Augmentation] = {
    "crop": crop,
    "flip": flip,
    "cutout": cutout,
    "rotation": rotation,
    "colour_jitter": colour_jitter,
}


def augment(images: Tensor, names: Sequence[str], generator: Generator) -> Tensor:
    """Apply the named augmentations in the order given."""
    for name in names:
        images = AUGMENTATIONS[name](images, generator)
    return images
