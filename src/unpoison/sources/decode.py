"""Bytes of an image file to RGB pixels of one size, or the reason why not.

What each kind of file becomes:

- greyscale, 1-bit: the grey in all three channels; 16-bit: the high byte of each value;
- palette: its colours; alpha or a transparent palette entry: composed over white;
- CMYK, YCbCr: Pillow's plain conversion, without colour profiles;
- a rotation or mirroring in EXIF is carried out;
- the first picture of a phone's multi-picture JPEG; animations (PNG, WebP) are refused.

`data.pictures` opens the file; here its pixels get their size.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from ..core.arrays import Images
from ..data.pictures import MAX_PIXELS, DefectError, check_picture, load_picture

__all__ = ["MAX_PIXELS", "DefectError", "Resize", "decode", "decode_noting", "resized", "to_square"]

Resize = Literal["crop", "stretch", "pad"]


class _Room:
    """Pixels that may be in decoding at once, over all threads: one picture of the largest size, or many small ones."""

    def __init__(self, pixels: int) -> None:
        self._all = self._free = pixels
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Waits until there is room for `pixels`; more than there ever is wait for all of it."""
        pixels = min(pixels, self._all)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= pixels)
            self._free -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._free += pixels
                self._changed.notify_all()


_ROOM = _Room(MAX_PIXELS)


def decode(data: bytes, side: int | None, resize: Resize) -> Images:
    """Decode an image file.

    Args:
        data: bytes of the file; they decide the format, not its name.
        side: pixels per side of the result; None leaves the size as it is.
        resize: way to a square; see `to_square`.

    Returns:
        uint8 [height, width, 3].

    Raises:
        DefectError: unreadable, truncated, animated, of another format, or more than `MAX_PIXELS` large.
    """
    return decode_noting(data, side, resize)[0]


def decode_noting(data: bytes, side: int | None, resize: Resize) -> tuple[Images, bool]:
    """As `decode`, and whether the file has 16 bits of which the upper four are never used: almost black at its high byte."""
    name, checked = check_picture(data, most=MAX_PIXELS)
    with _ROOM.taken(checked.width * checked.height):
        # A large photograph is decoded at a half, quarter or eighth, never below twice the size asked for.
        image, dim = load_picture(name, checked, near=None if side is None else 2 * side)
        return to_square(image, side, resize), dim


def resized(pixels: Images, side: int | None, resize: Resize) -> Images:
    """Pixels uint8 [height, width, 1 or 3] in the size asked for, with their channels as they are."""
    if side is None or pixels.shape[:2] == (side, side):
        return pixels
    # Pillow wants greyscale without an axis for channels.
    grey = pixels.shape[2] == 1
    out = to_square(Image.fromarray(pixels[..., 0] if grey else pixels), side, resize)
    return out[..., None] if grey else out


def to_square(image: Image.Image, side: int | None, resize: Resize) -> Images:
    """Pixels of an image as a square of `side` pixels, by Pillow's antialiased bicubic filter.

    An image that has the size already, or any size where `side` is None, is left as it is.

    Args:
        image: image of any size.
        side: pixels per side, or None.
        resize: `crop` scales the shorter side to `side` and takes the centre, `pad` scales the longer side and centres the
            image on black, `stretch` scales both sides, whatever the proportions.
    """
    if side is not None and image.size != (side, side):
        if resize == "crop":
            image = ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
        elif resize == "pad":
            image = ImageOps.pad(image, (side, side), Image.Resampling.BICUBIC, color=0)
        else:
            image = image.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.uint8)
