"""Augmentation as batched tensor functions: float images [n, c, h, w] in [0, 1] in, the same out.

Drawing and applying are separate steps: random numbers come from a CPU generator, one per training run, so results do
not depend on the device, and the numbers of a whole epoch move to the device at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


@dataclass(frozen=True)
class Batch:
    """Batch as a draw sees it.

    Attributes:
        index: samples in the batch, int64 [n].
        epoch: number of the epoch, from 0.
        size: height and width of the images.
        generator: CPU generator of the training run.
    """

    index: Tensor
    epoch: int
    size: tuple[int, int]
    generator: Generator

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True)
class Augmentation:
    """An augmentation in two steps.

    Attributes:
        draw: a batch to random numbers, one row per image, [n, ...].
        apply: images and these numbers, on the images' device, to augmented images.
    """

    draw: Callable[[Batch], Tensor]
    apply: Callable[[Tensor, Tensor], Tensor]


def _draw_shift(batch: Batch, pad: int) -> Tensor:
    # Offsets into the padded image, from 0 to twice the padding; all rows are drawn before all columns.
    return torch.randint(0, 2 * pad + 1, (2, len(batch)), generator=batch.generator).T


def _draw_crop(batch: Batch) -> Tensor:
    return _draw_shift(batch, max(1, batch.size[0] // 8))


def _draw_translate(batch: Batch) -> Tensor:
    return _draw_shift(batch, max(1, batch.size[0] // 16))


def crop(images: Tensor, offsets: Tensor) -> Tensor:
    """Random crop after zero padding by an eighth of the side (4 px at 32), as in the CIFAR recipes."""
    return _shifted(images, offsets, max(1, images.shape[2] // 8), "constant")


def translate(images: Tensor, offsets: Tensor) -> Tensor:
    """Random shift by up to a sixteenth of the side (2 px at 32), the border mirrored, as in cifar10-airbench."""
    return _shifted(images, offsets, max(1, images.shape[2] // 16), "reflect")


def _shifted(images: Tensor, offsets: Tensor, pad: int, mode: str) -> Tensor:
    n, channels, height, width = images.shape
    device = images.device
    # One gather for the whole batch: index tensors of shapes [n, 1, 1, 1], [1, c, 1, 1], [n, 1, h, 1] and [n, 1, 1, w]
    # broadcast to the pixels of every image's own window into its padded version.
    rows = (offsets[:, 0, None] + torch.arange(height, device=device))[:, None, :, None]
    columns = (offsets[:, 1, None] + torch.arange(width, device=device))[:, None, None, :]
    sample = torch.arange(n, device=device)[:, None, None, None]
    channel = torch.arange(channels, device=device)[None, :, None, None]
    return F.pad(images, (pad, pad, pad, pad), mode=mode)[sample, channel, rows, columns]


def _draw_flip(batch: Batch) -> Tensor:
    return torch.rand(len(batch), generator=batch.generator) < 0.5


def _draw_alternating_flip(batch: Batch) -> Tensor:
    """Every image in every second epoch; a hash of its index, the same in all epochs, decides which half begins."""
    # Knuth's multiplicative hash (2^32 over the golden ratio) spreads neighbours in the set over both halves.
    return ((batch.index * 2654435761 >> 16) + batch.epoch) % 2 == 0


def flip(images: Tensor, chosen: Tensor) -> Tensor:
    """Horizontal flip, with probability one half or in every second epoch (`alternating_flip`, as in cifar10-airbench)."""
    return torch.where(chosen[:, None, None, None], images.flip(3), images)


def _draw_cutout(batch: Batch) -> Tensor:
    height, width = batch.size
    row = torch.randint(0, height, (len(batch), 1, 1), generator=batch.generator)
    column = torch.randint(0, width, (len(batch), 1, 1), generator=batch.generator)
    return torch.cat([row, column], 1)


def cutout(images: Tensor, centres: Tensor) -> Tensor:
    """One square of a quarter of the side set to 0 at a random centre (DeVries & Taylor, 2017)."""
    _, _, height, width = images.shape
    # Half the square's side. A centre near the border leaves part of the square outside, as in the paper.
    half = max(1, height // 8)
    row, column = centres[:, 0:1], centres[:, 1:2]
    rows = torch.arange(height, device=images.device)[None, :, None]
    columns = torch.arange(width, device=images.device)[None, None, :]
    inside = (rows >= row - half) & (rows < row + half) & (columns >= column - half) & (columns < column + half)
    return images.masked_fill(inside[:, None], 0.0)


def _draw_rotation(batch: Batch) -> Tensor:
    return (torch.rand(len(batch), generator=batch.generator) * 2 - 1) * (torch.pi / 12)


def rotation(images: Tensor, angle: Tensor) -> Tensor:
    """Rotation by up to 15 degrees around the centre, bilinear, zero fill."""
    # One 2 x 3 matrix per image, from output to input coordinates, in which the centre is the origin.
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    theta = torch.stack([torch.stack([cos, sin, zero], 1), torch.stack([-sin, cos, zero], 1)], 1)
    grid = F.affine_grid(theta.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def _draw_colour_jitter(batch: Batch) -> Tensor:
    return torch.rand(2, len(batch), generator=batch.generator).T * 0.8 + 0.6


def colour_jitter(images: Tensor, factors: Tensor) -> Tensor:
    """Brightness, then contrast, each scaled by a factor in [0.6, 1.4]."""
    brightness, contrast = factors[:, 0, None, None, None], factors[:, 1, None, None, None]
    # Clamped after either step: contrast stretches around the mean of what an image can hold.
    images = (images * brightness).clamp(0, 1)
    mean = images.mean((1, 2, 3), keepdim=True)
    return ((images - mean) * contrast + mean).clamp(0, 1)


AUGMENTATIONS: dict[str, Augmentation] = {
    "crop": Augmentation(_draw_crop, crop),
    "flip": Augmentation(_draw_flip, flip),
    "cutout": Augmentation(_draw_cutout, cutout),
    "rotation": Augmentation(_draw_rotation, rotation),
    "colour_jitter": Augmentation(_draw_colour_jitter, colour_jitter),
    "translate": Augmentation(_draw_translate, translate),
    "alternating_flip": Augmentation(_draw_alternating_flip, flip),
}


def draw(names: Sequence[str], batch: Batch) -> list[Tensor]:
    """Random numbers of the named augmentations for a batch, on the CPU, drawn in the order given."""
    return [AUGMENTATIONS[name].draw(batch) for name in names]


def apply(images: Tensor, names: Sequence[str], drawn: Sequence[Tensor]) -> Tensor:
    """Images after the named augmentations, in the order given; the numbers in `drawn` lie on the images' device."""
    if not len(images):
        return images  # torch pads and samples no empty batch, which one that is drawn can be
    for name, numbers in zip(names, drawn, strict=True):
        images = AUGMENTATIONS[name].apply(images, numbers)
    return images
