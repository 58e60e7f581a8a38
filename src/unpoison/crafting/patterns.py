"""Pixel patterns of published triggers, as values and a mask of the opaque pixels: patches, four corners, stripes.

Where they were published: the links in attacks/badnets.py, attacks/blended.py and attacks/lc.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..core.arrays import IntArray, Pixels
from ..core.errors import ParameterError
from ..core.seeding import numpy_rng
from ..data.pictures import MAX_FILE_BYTES, DefectError, check_picture, load_picture

Rows = Sequence[Sequence[int]]

_HEX = "#[0-9a-fA-F]{6}"
PATCHES = (
    "checkerboard, grid, white, black, #rrggbb, checkerboard_#rrggbb_#rrggbb, dbr_grid, cd, backdoors101, single_pixel"
)
# A transparent cell; every other value is one of 0 to 255.
_CLEAR = -1
_DRAWN: dict[str, Rows] = {
    "dbr_grid": [[0, 0, 255], [0, 255, 0], [255, 0, 255]],
    "backdoors101": [[255, 0, 255], [_CLEAR, 255, _CLEAR], [_CLEAR, _CLEAR, 0], [_CLEAR, 255, _CLEAR], [255, 0, 255]],
    "single_pixel": [[255]],
}
# Top left, top right, bottom left, bottom right.
_LC_LEFT, _LC_RIGHT = ([[255, 0, 0], [0, 255, 0], [255, 0, 255]], [[0, 0, 255], [0, 255, 0], [255, 0, 255]])
_LC: list[Rows] = [_LC_LEFT, _LC_RIGHT, _LC_LEFT, _LC_RIGHT]
_DBR: list[Rows] = [
    [[255, 0, 255], [0, 255, 0], [255, 0, 0]],
    [[255, 0, 255], [0, 255, 0], [0, 0, 255]],
    [[255, 0, 0], [0, 255, 0], [255, 0, 255]],
    [[0, 0, 255], [0, 255, 0], [255, 0, 255]],
]


class Pattern(NamedTuple):
    """A pattern and where it hides the image.

    Attributes:
        values: float32 [1 or c, h, w], 0 to 255.
        mask: float32 [1, h, w], 1 where the pattern hides the image, else 0.
    """

    values: Pixels
    mask: Pixels


def patch(name: str, size: int | None, channels: int) -> Pattern:
    """A patch by name.

    Args:
        name: name of the pattern, as in `badnets.make`.
        size: smaller edge in pixels; None: as published. A pattern published at one size only is resized (nearest).
        channels: 1 or 3; colours become grey levels (ITU-R 601) for one channel.

    Raises:
        ParameterError: unknown name; a single pixel of another size than 1.
    """
    if name == "single_pixel" and size not in (None, 1):
        raise ParameterError(f"size: {size} given, allowed with single_pixel: 1 or null")
    if name in _DRAWN:
        # Resized with its transparent cells, so that the mask follows from the resized values.
        cells = _resize(_DRAWN[name], size)
        return Pattern(np.maximum(cells, 0), (cells != _CLEAR).astype(np.float32))
    # The rest is drawn by rule at any size; 3 pixels are what was published.
    side = 3 if size is None else size
    values = _cd(side) if name == "cd" else _checkers(name, side, channels)
    return Pattern(values.astype(np.float32), np.ones((1, side, side), np.float32))


def lc_corners(height: int, width: int, size: int = 3) -> Pattern:
    """The four corners of label-consistent attacks (Turner et al. 2019), as in BackdoorBench.

    There an amplitude is added and clipped. With `values` v and `mask` m it is amplitude * (2v - 255) * m, so that for
    amplitude 1 the result is v itself, 255 or 0.

    Args:
        height: height of the image in pixels.
        width: width of the image in pixels.
        size: side of each of the four patches, at most half the image's side. BackdoorBench resizes the 32 x 32 mask
            (nearest), which gives 3 at 32 pixels, 6 at 64, 21 at 224.
    """
    return _corners(_LC, height, width, size, first=0)


def dbr_corners(height: int, width: int, size: int = 3) -> Pattern:
    """D-BR's four corners: other patterns, and those on the left and at the top leave one pixel free to the border.

    Args:
        height: height of the image in pixels.
        width: width of the image in pixels.
        size: side of each of the four patches; two of them and one pixel fit in the image.
    """
    return _corners(_DBR, height, width, size, first=1)


def strip(width: int) -> Pixels:
    """Vertical stripes of NAD, CD and D-BR: float32 [1, 1, width], trunc(20 sin(0.8 j)) modulo 256 in column j.

    The negative half of the sine wraps to 237…255, which makes a weak sine a nearly black and white pattern.
    """
    # The published code casts the sine to uint8: the fraction is dropped, and negative values wrap around.
    wave = np.trunc(20 * np.sin(0.8 * np.arange(width))) % 256
    return wave.astype(np.float32).reshape(1, 1, width)


def noise(shape: tuple[int, int, int], seed: int, purpose: str) -> Pixels:
    """Noise uniform over 0…255, drawn from (seed, purpose), for images of `shape` (height, width, channels): [c, h, w]."""
    drawn = numpy_rng(seed, purpose).integers(0, 256, shape, dtype=np.uint8)
    return _channels_first(drawn)


def whole_image(name: str, shape: tuple[int, int, int]) -> Pixels:
    """A pattern of the image's size by name, [c, h, w].

    Args:
        name: `struppek_noise` (the one pattern of Struppek et al., uniform over 0…254, whatever the seed), `strip`, or
            the path of an image file, resized (bilinear).
        shape: height, width and channels of the images.

    Raises:
        ParameterError: the file is missing or not an image.
    """
    height, width, channels = shape
    if name == "struppek_noise":
        # The published seed and call: another generator or order of dimensions gives another pattern.
        published = torch.randint(0, 255, shape, generator=torch.Generator().manual_seed(42))
        return _channels_first(published.numpy())
    if name == "strip":
        return np.ascontiguousarray(np.broadcast_to(strip(width), (channels, height, width)))
    image = (
        _picture(Path(name)).convert("L" if channels == 1 else "RGB").resize((width, height), Image.Resampling.BILINEAR)
    )
    return _channels_first(np.asarray(image).reshape(shape))


def _picture(path: Path) -> Image.Image:
    """A picture file in RGB, by the reader that looks at those of strangers."""
    try:
        if not path.is_file():
            raise FileNotFoundError("no such file")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DefectError(f"oversized: more than {MAX_FILE_BYTES >> 20} MiB")
        return load_picture(*check_picture(path.read_bytes()))[0]
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it, and every defect
        raise ParameterError(
            f"pattern: {str(path)!r} given ({error}), allowed: noise, struppek_noise, strip or an image file"
        ) from None


def _channels_first(image: NDArray[Any]) -> Pixels:
    """An image [h, w, c] as float32 [c, h, w]."""
    return np.ascontiguousarray(image.astype(np.float32).transpose(2, 0, 1))


def nearest(length: int, size: int) -> IntArray:
    """The cell, of `length` ones, that each of `size` pixels shows after a resize to the nearest: int64 [size]."""
    # The pixel's centre (i + 1/2) / size falls in cell floor((2 i + 1) length / (2 size)), in whole numbers.
    return (2 * np.arange(size) + 1) * length // (2 * size)


def _resize(rows: Rows, size: int | None) -> Pixels:
    """Cells as float32 [1, h, w] with `size` pixels in a row, and as many rows as keep their proportions."""
    cells = np.array(rows, np.float32)
    height, width = cells.shape
    if size is not None:
        cells = cells[nearest(height, height * size // width)][:, nearest(width, size)]
    return cells[None]


def _corners(patches: list[Rows], height: int, width: int, size: int, *, first: int) -> Pattern:
    """Four patches of `size` pixels on planes of the image's size, those at the top and left starting at `first`."""
    values, mask = np.zeros((2, 1, height, width), np.float32)
    places = [(row, column) for row in (first, height - size) for column in (first, width - size)]
    for rows, (row, column) in zip(patches, places, strict=True):
        corner = np.s_[:, row : row + size, column : column + size]
        values[corner], mask[corner] = _resize(rows, size), 1
    return Pattern(values, mask)


def _cd(size: int) -> Pixels:
    """Cognitive Distillation's pattern, 3 x 3 fields: white are two at the bottom left, the centre and the top right one."""
    one, two = size // 3, 2 * size // 3
    values = np.zeros((1, size, size), np.float32)
    values[:, two:, :two] = values[:, one:two, one:two] = values[:, :one, two:] = 255
    return values


def _checkers(name: str, size: int, channels: int) -> Pixels:
    """A checkerboard of two colours, or of one twice, float32 [channels, size, size]."""
    even: tuple[int, ...]
    odd: tuple[int, ...]
    if name == "checkerboard":
        even, odd = (0, 0, 0), (255, 255, 255)
    elif name == "grid":
        even, odd = (255, 255, 255), (1, 1, 1)
    elif name in ("white", "black"):
        even = odd = (255, 255, 255) if name == "white" else (0, 0, 0)
    elif re.fullmatch(_HEX, name):
        even = odd = _rgb(name)
    elif re.fullmatch(f"checkerboard_{_HEX}_{_HEX}", name):
        # Struppek et al. name the colour of the odd cells first.
        odd, even = (_rgb(colour) for colour in name.split("_")[1:])
    else:
        raise ParameterError(f"pattern: {name!r} given, allowed: {PATCHES}, four_corners, lc_corners")
    if channels == 1:
        even, odd = ((round(0.299 * r + 0.587 * g + 0.114 * b),) for r, g, b in (even, odd))
    # Even cells are those with an even sum of row and column, the top left one among them.
    is_odd = np.add.outer(np.arange(size), np.arange(size)) % 2 == 1
    return np.where(is_odd, np.reshape(odd, (-1, 1, 1)), np.reshape(even, (-1, 1, 1))).astype(np.float32)


def _rgb(colour: str) -> tuple[int, int, int]:
    """Red, green and blue of `#rrggbb`."""
    red, green, blue = bytes.fromhex(colour[1:])
    return red, green, blue
