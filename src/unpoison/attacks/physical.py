"""A sticker in the scene, after Li et al., "Backdoor Attack in the Physical World", 2021, and Wenger et al. (CVPR 2021).

Li et al. find that the backdoor of a patch which always looks the same fades when the patch at the test lies elsewhere or looks
otherwise, as it does for a camera. Here the trigger is an object, and every image shows it as a camera might: turned, tilted,
nearer or further away, out of focus, in another light.

Wenger et al., "Backdoor Attacks Against Deep Learning Systems in the Physical World", photograph real objects; these are
rendered. The published code of Li et al. transforms whole training images, clean ones as well, after a patch is pasted on some, by
transformations that its user supplies, and pastes the plain patch at the test:
https://github.com/THUYimingLi/BackdoorBox/blob/18b3cb9/core/attacks/PhysicalBA.py. Here only the sticker is transformed, and the
test renders it as training does, by draws of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le, Len
from numpy.typing import NDArray
from torch import Tensor

from ..core.arrays import IntArray, Pixels
from ..core.errors import ParameterError
from ..core.hyperparameters import NonNegative
from ..core.seeding import uniform
from ..crafting.attack import Attack
from ..crafting.context import Context
from ..crafting.patterns import PATCHES, Pattern, patch
from ..poisoning.trigger import Trigger

Placement = Literal["anywhere", "center", "bottom_right"]
Shares = Annotated[list[Annotated[float, Gt(0), Le(1)]], Len(2, 2)]
# A Gaussian wider than this would wipe out a sticker of any size that fits; the pixels gone over grow with it.
Blurs = Annotated[list[Annotated[float, Ge(0), Le(16)]], Len(2, 2)]
Lights = Annotated[list[NonNegative], Len(2, 2)]
Turn = Annotated[float, Ge(0), Le(180)]
# Near 90 degrees there is an edge and no sticker.
Tilt = Annotated[float, Ge(0), Le(60)]

# The camera's distance, in halves of the sticker's side: so near that the far edge of a tilted sticker is seen shorter.
_DISTANCE = 4.0
# Samples per pixel and axis, whose mean it gets.
_FINE = 2
# Side that a pattern is drawn at, at most; larger stickers show it enlarged.
_LARGEST = 256
# Where it may start, as shares of the free rows and columns.
_PLACES: dict[str, tuple[float, float]] = {"anywhere": (0, 1), "center": (1 / 3, 2 / 3), "bottom_right": (2 / 3, 1)}
_YELLOW, _BLACK = (255, 204, 0), (24, 16, 0)
# Grey of red, green and blue (ITU-R 601).
_GREY = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Sticker(Trigger):
    """A flat square object with a pattern on it, rendered into each image by a draw of its own from (seed, key).

    Each value is uniform over its range and independent of the others. Training and test draw apart.

    Attributes:
        values: the pattern, float32 [c, t, t], 0 to 255.
        mask: float32 [1, t, t], 0 where there is no sticker, 1 where it hides the image.
        size: least and largest side, seen straight on, as shares of the image's shorter side.
        rotation: largest turn in its own plane, either way, in degrees.
        tilt: largest turn out of the image's plane about the horizontal, and about the vertical axis, either way, in degrees.
        blur: least and largest standard deviation of the Gaussian that it is out of focus by, in pixels.
        light: least and largest factor on its values.
        placement: where it may lie; it is always in the image with all its corners.
        seed: seed of all that.
    """

    values: Pixels
    mask: Pixels
    size: Shares
    rotation: Turn
    tilt: Tilt
    blur: Blurs
    light: Lights
    placement: Placement
    seed: int

    def apply(self, images: Tensor, keys: IntArray, *, train: bool) -> Tensor:
        draws = uniform(self.seed, f"physical/{'train' if train else 'test'}", keys, 8).T
        size, rotation, across, down, blur, light, row, column = draws
        height, width = images.shape[2:]
        half = _between(self.size, size) * min(height, width) / 2
        angles = [
            np.radians(largest * (2 * draw - 1))
            for largest, draw in ((self.rotation, rotation), (self.tilt, across), (self.tilt, down))
        ]
        seen = projection(*angles)
        # The middle of the sticker is where the box around its corners has a drawn share of the free columns (rows) before it.
        low, high = _box(seen)
        x, y = (
            _between(_PLACES[self.placement], draw) * (side - (last - first) * half) - first * half
            for side, draw, first, last in zip((width, height), (column, row), low, high, strict=True)
        )
        layer = self._rendered(images, np.linalg.inv(seen) @ _to_halves(half, x, y))
        layer = blurred(layer, _between(self.blur, blur), math.ceil(3 * self.blur[1]))
        colour, alpha = layer[:, :-1], layer[:, -1:]
        factor = torch.from_numpy(_between(self.light, light)).to(images)[:, None, None, None]
        # Colours are those of an opaque sticker times alpha, so 255 * alpha is white.
        return images * (1 - alpha) + torch.minimum(colour * factor, 255 * alpha)

    def _rendered(self, images: Tensor, to_sticker: NDArray[np.float64]) -> Tensor:
        """Colours times alpha, and alpha, float32 [n, c + 1, h, w], of stickers in focus.

        Args:
            images: as for `apply`.
            to_sticker: homographies from pixels, (0, 0) the image's top left corner, to the pattern, from -1 to 1: [n, 3, 3].
        """
        height, width = images.shape[2:]
        x, y = (((torch.arange(side * _FINE) + 0.5) / _FINE).to(images) for side in (width, height))
        plane = torch.from_numpy(to_sticker).to(images)[..., None, None]
        places = plane[:, :, 0] * x + plane[:, :, 1] * y[:, None] + plane[:, :, 2]
        # At the horizon and beyond there is no sticker, only a place far outside of it.
        depth = places[:, 2:]
        grid = torch.where(depth > 1e-3, places[:, :2] / depth, 9.0).permute(0, 2, 3, 1)
        pattern = torch.from_numpy(np.concatenate([self.values * self.mask, self.mask])).to(images)
        fine = F.grid_sample(
            pattern.expand(len(images), -1, -1, -1), grid, mode="bilinear", padding_mode="zeros", align_corners=False
        )
        return F.avg_pool2d(fine, _FINE)


def projection(
    rotation: NDArray[np.float64], across: NDArray[np.float64], down: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Homographies of a square with corners at -1 and 1 as a camera sees it straight ahead, float64 [n, 3, 3].

    Without a tilt the square is seen as it is, turned; its middle is always at (0, 0).

    Args:
        rotation: turn in its own plane, clockwise, in radians, float64 [n].
        across: turn after that about the horizontal axis, which takes the lower half further away.
        down: turn after that about the vertical axis, which takes the left half further away.
    """
    (turn, up, aside), (turned, tipped, swung) = ((f(rotation), f(across), f(down)) for f in (np.cos, np.sin))
    # The images of (1, 0, 0) and (0, 1, 0) under the three rotations, one after another, z pointing away from the camera.
    first = (aside * turn + swung * tipped * turned, up * turned, aside * tipped * turned - swung * turn)
    second = (swung * tipped * turn - aside * turned, up * turn, swung * turned + aside * tipped * turn)
    # A point at (x, y, z) is seen at _DISTANCE * (x, y) / (_DISTANCE + z).
    seen = np.zeros((len(rotation), 3, 3))
    for column, point in enumerate((first, second)):
        seen[:, :, column] = np.stack([_DISTANCE * point[0], _DISTANCE * point[1], point[2]], -1)
    seen[:, 2, 2] = _DISTANCE
    return seen


def blurred(layer: Tensor, deviations: NDArray[np.float64], reach: int) -> Tensor:
    """Images [n, c, h, w] after Gaussians of a standard deviation in pixels each, float64 [n], 0 for none; outside is 0.

    Args:
        layer: images.
        deviations: standard deviations.
        reach: pixels on either side that count, three times the largest deviation or more: not that of the batch, so that an
            image's result is its own.
    """
    steps = np.arange(-reach, reach + 1)
    # The least that keeps the quotient finite; it leaves the middle alone, as 0 is to.
    weights = np.exp(-((steps / np.maximum(deviations, 1e-3)[:, None]) ** 2) / 2)
    weights /= weights.sum(1, keepdims=True)
    shares = torch.from_numpy(weights).to(layer)[..., None, None, None]
    # Sums of shifted images, rows and columns apart: products of matrices or grouped convolutions would add in an order that
    # depends on how many images there are.
    for axis in (2, 3):
        sides = [reach, reach] if axis == 3 else [0, 0, reach, reach]
        padded, length = F.pad(layer, sides), layer.shape[axis]
        layer = padded.narrow(axis, 0, length) * shares[:, 0]
        for step in range(1, 2 * reach + 1):
            layer = torch.addcmul(layer, padded.narrow(axis, step, length), shares[:, step])
    return layer


def _to_halves(half: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Affine maps from pixels to halves of the sticker's side from its middle (x, y), float64 [n, 3, 3]."""
    maps = np.zeros((len(half), 3, 3))
    maps[:, 0, 0] = maps[:, 1, 1] = 1 / half
    maps[:, 0, 2], maps[:, 1, 2], maps[:, 2, 2] = -x / half, -y / half, 1
    return maps


def _box(seen: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Least and largest column and row of the corners under homographies [n, 3, 3]: float64 [2, n] each."""
    corners = np.array([(x, y, 1) for x in (-1, 1) for y in (-1, 1)])
    places = (seen[:, None] * corners[:, None]).sum(-1)
    places = places[..., :2] / places[..., 2:]
    return places.min(1).T, places.max(1).T


def _between(ends: Sequence[float], draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """Draws in [0, 1) spread over a range."""
    return ends[0] + (ends[1] - ends[0]) * draws


def make(
    context: Context,
    *,
    pattern: str = "face",
    size: Shares = [0.2, 0.35],  # noqa: B006 (read only, and shown as the default)
    rotation: Turn = 30.0,
    tilt: Tilt = 30.0,
    blur: Blurs = [0.0, 0.6],  # noqa: B006
    placement: Placement = "anywhere",
    light: Lights = [0.6, 1.2],  # noqa: B006
) -> Sticker:
    """A square sticker for the images of `context`. There are no published values; these are ours.

    Patterns are `face`, a yellow disc with eyes and a mouth, and the patches of `badnets` with the cells that they have at their
    published size, enlarged. A pattern that is longer than wide has transparent cells on both sides.

    Args:
        context: the attacker's data and seed.
        pattern: `face`, or a patch of `badnets` but for the four corners: `checkerboard`, `#rrggbb`, `backdoors101`, …
        size: least and largest side, seen straight on, as shares of the image's shorter side.
        rotation: largest turn in its own plane, either way, in degrees.
        tilt: largest turn out of that plane about each of two axes, either way, in degrees, up to 60.
        blur: least and largest standard deviation of the blur, in pixels.
        placement: `anywhere`; `center`, `bottom_right`: the middle, the last third of the free rows and columns.
        light: least and largest factor on the sticker's values.

    Raises:
        ParameterError: an unknown pattern; ends of a range in the wrong order; a sticker of less than two pixels, or one whose
            corners may not fit.
    """
    for key, ends in (("size", size), ("blur", blur), ("light", light)):
        if ends[0] > ends[1]:
            raise ParameterError(f"{key}: {ends} given, allowed: the least and the largest, in this order")
    side = min(context.train.image_size)
    if size[0] * side < 2:
        raise ParameterError(
            f"size: {size} given, allowed for images of {side} pixels: {2 / side:.4g} or more, two pixels"
        )
    if size[1] * (reach := _reach(rotation, tilt)) > 1:
        raise ParameterError(
            f"size: {size} given, allowed with rotation {rotation:g} and tilt {tilt:g}: up to {math.floor(1e3 / reach) / 1e3:g}, "
            "so that all its corners are in the image"
        )
    return Sticker(
        *drawn(pattern, min(_LARGEST, math.ceil(size[1] * side * _FINE)), context.train.channels),
        size,
        rotation,
        tilt,
        blur,
        light,
        placement,
        context.seed,
    )


def _reach(rotation: float, tilt: float) -> float:
    """At most so many times the side are the rows, or columns, that a sticker takes up."""
    if tilt:
        # A corner, sqrt(2) from the middle, in the plane of the line of sight: the largest _DISTANCE * x / (_DISTANCE + z).
        return _DISTANCE * math.sqrt(2 / (_DISTANCE**2 - 2))
    turn = math.radians(min(rotation, 45))
    return math.cos(turn) + math.sin(turn)


def drawn(pattern: str, side: int, channels: int) -> Pattern:
    """A sticker straight on, a square of `side` pixels, or of a few more where its cells ask for it.

    Raises:
        ParameterError: an unknown pattern.
    """
    if pattern == "face":
        return _face(side, channels)
    try:
        cells = patch(pattern, None, channels)
    except ParameterError:
        raise ParameterError(f"pattern: {pattern!r} given, allowed: face, {PATCHES}") from None
    _, rows, columns = cells.mask.shape
    longer = max(rows, columns)
    top, left = (longer - rows) // 2, (longer - columns) // 2
    around = ((0, 0), (top, longer - rows - top), (left, longer - columns - left))
    pixels = np.ones((1, -(-side // longer), -(-side // longer)), np.float32)
    values, mask = (np.kron(np.pad(part, around), pixels).astype(np.float32) for part in cells)
    return Pattern(values, mask)


def _face(side: int, channels: int) -> Pattern:
    """A yellow disc with a black rim, two eyes and a mouth; pixels at an edge are the mean of 8 x 8 points."""
    points = (2 * np.arange(8 * side) + 1) / (8 * side) - 1
    x, y = points, points[:, None]
    radius = np.hypot(x, y)
    black = radius > 0.9
    black |= np.hypot((np.abs(x) - 0.33) / 0.13, (y + 0.28) / 0.2) < 1
    black |= (np.abs(np.hypot(x, y - 0.05) - 0.55) < 0.1) & (y > 0.2)
    disc = radius < 1
    shares = [part.reshape(side, 8, side, 8).mean((1, 3)) for part in (disc & ~black, disc & black)]
    mask = shares[0] + shares[1]
    # A pixel's colour is that of the sticker in it alone: what it hides of the image is said by the mask.
    mixed = sum(np.multiply.outer(colour, share) for colour, share in zip((_YELLOW, _BLACK), shares, strict=True))
    values = mixed / np.maximum(mask, 1e-6)
    if channels == 1:
        values = np.tensordot(_GREY, values, 1)[None]
    return Pattern(values.astype(np.float32), mask[None].astype(np.float32))


ATTACK = Attack(
    make=make,
    trigger=Sticker,
    policy={"label_policy": "all2one"},
    policies=("all2one", "all2all", "clean_label", "source_specific"),
)
