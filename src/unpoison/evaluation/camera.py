"""What a camera does to images, at a given strength: does a backdoor answer when its trigger is photographed?

Images are changed as a whole, trigger and all, one change at a time; what direction it takes is drawn per image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from io import BytesIO

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..compute.inference import logits_of
from ..core.arrays import Images, IntArray
from ..core.errors import ParameterError
from ..core.hyperparameters import one_of
from ..core.seeding import uniform
from ..data.imageset import ImageSet
from ..models.classifier import Classifier
from ..poisoning.triggered import Triggered
from .metrics import accuracy

STRENGTHS: Mapping[str, tuple[float, float, float]] = {
    "rotation": (10.0, 20.0, 40.0),
    "scale": (0.9, 0.75, 0.5),
    "shift": (0.05, 0.1, 0.2),
    "blur": (0.5, 1.0, 2.0),
    "brightness": (1.25, 1.6, 2.5),
    "jpeg": (75, 40, 15),
}
"""Three strengths of each change, the weakest first; `photographed` says what they mean."""


def photographed(images: Images, keys: IntArray, change: str, strength: float, *, seed: int) -> Images:
    """The images after one change. One image's result depends on it, its key and the seed alone.

    What comes into view from beyond the border is black, except for `blur`, to which the border goes on.

    Args:
        images: uint8 [n, h, w, c]; not written to.
        keys: index of each image in its split, int64 [n].
        change: `none`, `rotation` (degrees, either way), `scale` (further away, to this share of the size), `shift` (share of the
            shorter side, in any direction), `blur` (standard deviation of a Gaussian in pixels), `brightness` (times this or
            divided by it, each for half of the images), `jpeg` (quality of a JPEG file that the image passes through).
        strength: how much of it.
        seed: seed of the directions.

    Returns:
        uint8 [n, h, w, c], rounded to the nearest.

    Raises:
        ParameterError: an unknown change; a strength out of its range.
    """
    function, least, most = one_of(change, _CHANGES, key="change")
    if not least <= strength <= most or (change == "jpeg" and strength != int(strength)):
        whole = "whole numbers from " if change == "jpeg" else ""
        raise ParameterError(f"strength: {strength} given, allowed with {change}: {whole}{least:g} to {most:g}")
    # In [-1, 1): which way.
    draws = 2 * uniform(seed, f"camera/{change}", keys, 1)[:, 0] - 1
    values = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()
    done: Images = function(values, draws, strength).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return done


def under_camera(
    model: Classifier, test: ImageSet, triggered: Triggered, change: str, strength: float, *, seed: int
) -> dict[str, float]:
    """What a model answers where its test images, clean and triggered, are photographed (`photographed`).

    Args:
        model: the model to grade.
        test: clean test split.
        triggered: its triggered images.
        change: as for `photographed`.
        strength: as for `photographed`.
        seed: as for `photographed`.

    Returns:
        `acc`; `asr`; and `without`, the share of the same images without the trigger that get the attacker's label as well: a
        model may give it to whatever is turned or dark.
    """
    everything = np.arange(len(test))
    clean = photographed(test.gather(everything), everything, change, strength, seed=seed)
    answers = logits_of(model, ImageSet(clean, test.labels, test.classes))
    overlay = triggered.overlay
    stamped = photographed(overlay.images[:], overlay.index, change, strength, seed=seed)
    received = ImageSet(stamped, overlay.labels, test.classes)
    return {
        "acc": accuracy(answers, test.labels),
        "asr": accuracy(logits_of(model, received), overlay.labels),
        "without": accuracy(answers[torch.from_numpy(overlay.index)], overlay.labels),
    }


def _rotation(images: Tensor, draws: NDArray[np.float64], degrees: float) -> Tensor:
    angles = np.radians(np.where(draws < 0, -degrees, degrees))
    return _seen(images, np.cos(angles), np.sin(angles), np.zeros((2, len(draws))))


def _scale(images: Tensor, draws: NDArray[np.float64], share: float) -> Tensor:
    return _seen(
        images, np.full(len(draws), 1 / share), np.zeros(len(draws)), np.zeros((2, len(draws))), fine=round(1 / share)
    )


def _shift(images: Tensor, draws: NDArray[np.float64], share: float) -> Tensor:
    length = share * min(images.shape[2:])
    towards = np.stack([np.cos(math.pi * draws), np.sin(math.pi * draws)])
    return _seen(images, np.ones(len(draws)), np.zeros(len(draws)), length * towards)


def _seen(
    images: Tensor, along: NDArray[np.float64], aside: NDArray[np.float64], moved: NDArray[np.float64], fine: int = 1
) -> Tensor:
    """Images [n, c, h, w] turned and scaled about their middle and then moved, bilinearly, black from beyond the border.

    Args:
        images: images.
        along: cosine of the angle, clockwise, over the scale, float64 [n].
        aside: its sine over the scale.
        moved: columns and rows, float64 [2, n].
        fine: samples per pixel and axis: of an image that gets smaller, every pixel is to count.
    """
    height, width = images.shape[2:]
    # Of every pixel of the result, from the middle, where it was before; `grid_sample` has borders at -1 and 1.
    x, y = ((torch.arange(side * fine) + 0.5) / fine - side / 2 for side in (width, height))
    cosine, sine, right, down = (torch.from_numpy(part).float()[:, None, None] for part in (along, aside, *moved))
    x, y = x - right, (y[:, None] - down)
    columns, rows = cosine * x + sine * y, cosine * y - sine * x
    grid = torch.stack([columns * (2 / width), rows * (2 / height)], -1)
    sampled = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return F.avg_pool2d(sampled, fine) if fine > 1 else sampled


def _blur(images: Tensor, draws: NDArray[np.float64], deviation: float) -> Tensor:
    reach = math.ceil(3 * deviation)
    weights = torch.exp(-((torch.arange(-reach, reach + 1) / deviation) ** 2) / 2)
    weights /= weights.sum()
    padded = F.pad(images, [reach] * 4, mode="replicate")
    rows = sum(weight * padded.narrow(2, step, images.shape[2]) for step, weight in enumerate(weights))
    return sum(weight * rows.narrow(3, step, images.shape[3]) for step, weight in enumerate(weights))


def _brightness(images: Tensor, draws: NDArray[np.float64], factor: float) -> Tensor:
    factors = np.where(draws < 0, 1 / factor, factor)
    return images * torch.from_numpy(factors).float()[:, None, None, None]


def _jpeg(images: Tensor, draws: NDArray[np.float64], quality: float) -> Tensor:
    done = torch.empty_like(images)
    for number, image in enumerate(images.to(torch.uint8).numpy()):
        file = BytesIO()
        # Pillow has colours last, and grey images without an axis for them.
        Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(
            file, "JPEG", quality=int(quality)
        )
        with Image.open(file) as read:
            pixels = torch.from_numpy(np.array(read))
        done[number] = pixels if len(image) == 1 else pixels.permute(2, 0, 1)
    return done


_Change = Callable[[Tensor, NDArray[np.float64], float], Tensor]
# Each with its least and largest strength.
_CHANGES: dict[str, tuple[_Change, float, float]] = {
    "none": (lambda images, draws, strength: images, 0, 0),
    "rotation": (_rotation, 0, 180),
    "scale": (_scale, 0.1, 1),
    "shift": (_shift, 0, 1),
    "blur": (_blur, 0.1, 16),
    "brightness": (_brightness, 1, 100),
    "jpeg": (_jpeg, 1, 95),
}
