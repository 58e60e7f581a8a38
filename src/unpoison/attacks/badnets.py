"""BadNets: a small patch pasted on the image (Gu et al., "BadNets", 2017), with the patterns seen in published code."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..hyperparameters import Count
from ..seeding import numpy_rng
from .trigger import Arrays, Images

_HEX = "#[0-9a-fA-F]{6}"
PATTERNS = "checkerboard, grid, white, black, #rrggbb, checkerboard_#rrggbb_#rrggbb"


@dataclass(frozen=True)
class PatchTrigger:
    """Pastes `patch` uint8 [size, size, channels] in the bottom right corner or at a place drawn per image."""

    patch: NDArray[np.uint8]
    location: str
    seed: int

    @property
    def settings(self) -> dict[str, Any]:
        return {"location": self.location, "seed": self.seed}

    @property
    def arrays(self) -> Arrays:
        return {"patch": self.patch}

    def __call__(self, images: Images, keys: NDArray[np.int64]) -> Images:
        stamped = images.copy()
        size, (height, width) = len(self.patch), images.shape[1:3]
        if self.location == "bottom_right":
            stamped[:, height - size :, width - size :] = self.patch
            return stamped
        for image, key in zip(stamped, keys, strict=True):
            rng = numpy_rng(self.seed, "badnets/location", int(key))
            row, column = rng.integers(height - size + 1), rng.integers(width - size + 1)
            image[row : row + size, column : column + size] = self.patch
        return stamped


def make(
    shape: tuple[int, int, int],
    seed: int,
    *,
    pattern: str = "checkerboard",
    size: Count = 3,
    location: Literal["bottom_right", "random"] = "bottom_right",
) -> PatchTrigger:
    """A patch for images of `shape` (height, width, channels).

    Args:
        pattern: `checkerboard` (black where row + column is even, white where odd: Struppek et al.), `grid` (white where
            even, and 1 of 255 where odd, because 0 means transparent in BackdoorBench's files), `white`, `black`, one
            `#rrggbb` colour, or `checkerboard_#c1_#c2` (c2 where even, c1 where odd).
        size: side of the square patch in pixels.
        location: the last `size` rows and columns, or drawn per image from (seed, image index), rows and columns apart.

    Raises:
        UserError: unknown pattern; patch larger than the image.
    """
    height, width, channels = shape
    if size > min(height, width):
        raise UserError(f"attack.badnets.size: {size} given, allowed: 1 to {min(height, width)}, the image's side")
    return PatchTrigger(_draw(pattern, size, channels), location, seed)


def restore(settings: dict[str, Any], arrays: Arrays) -> PatchTrigger:
    return PatchTrigger(arrays["patch"], settings["location"], settings["seed"])


def _draw(pattern: str, size: int, channels: int) -> NDArray[np.uint8]:
    even: tuple[int, ...]
    odd: tuple[int, ...]
    if pattern == "checkerboard":
        even, odd = (0, 0, 0), (255, 255, 255)
    elif pattern == "grid":
        even, odd = (255, 255, 255), (1, 1, 1)
    elif pattern in ("white", "black"):
        even = odd = (255, 255, 255) if pattern == "white" else (0, 0, 0)
    elif re.fullmatch(_HEX, pattern):
        even = odd = _rgb(pattern)
    elif re.fullmatch(f"checkerboard_{_HEX}_{_HEX}", pattern):
        odd, even = (_rgb(colour) for colour in pattern.split("_")[1:])
    else:
        raise UserError(f"attack.badnets.pattern: {pattern!r} given, allowed: {PATTERNS}")
    if channels == 1:
        even, odd = ((round(0.299 * r + 0.587 * g + 0.114 * b),) for r, g, b in (even, odd))
    is_odd = (np.add.outer(np.arange(size), np.arange(size)) % 2 == 1)[..., None]
    return np.where(is_odd, np.array(odd), np.array(even)).astype(np.uint8)


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(colour[1:])
    return red, green, blue
