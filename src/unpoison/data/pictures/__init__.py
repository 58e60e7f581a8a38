"""Picture files of strangers: known by content, whole as far as their format can tell, in RGB and upright.

A file is looked at before any decoder sees it: what its format carries to prove itself whole (end marks, counts,
checksums), how large it is, and what of it decides about pixels. Everything else (colour profiles, texts, thumbnails, EXIF
beside the orientation) is left out, so that it can neither stop a picture nor change it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from hashlib import sha256

import numpy as np
from PIL import Image

from . import bmp, jpeg, png, pnm, webp
from .checked import Checked, DefectError, cut_off

__all__ = ["FORMATS", "MAX_FILE_BYTES", "MAX_PIXELS", "Checked", "DefectError", "check_picture", "load_picture"]

MAX_PIXELS = 64_000_000
"""Largest image, in pixels. More are refused before any is decoded: it may be a decompression bomb."""

MAX_FILE_BYTES = 256 << 20
"""Largest file."""

FORMATS: dict[str, Callable[[bytes, int], Checked]] = {
    "JPEG": jpeg.check,
    "PNG": png.check,
    "WEBP": webp.check,
    "BMP": bmp.check,
    "PPM": pnm.check,
}
"""Pillow's names of the formats that are read, and what checks each. Its rarer and more fragile readers stay out."""

_STRIP = 1 << 20  # pixels that are converted at a time
_HELD = 1 << 22  # pixels of which two pictures are held at once
_SMALL = 1 << 16  # pixels of a JPEG that is always looked at to its last bit
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def check_picture(data: bytes, *, most: int = MAX_PIXELS) -> tuple[str, Checked]:
    """The format of a picture file and what of it decides about pixels.

    Args:
        data: bytes of the file; they decide the format, not its name.
        most: pixels allowed.

    Raises:
        DefectError: not a picture that is read; damaged; animated; larger than `most`.
    """
    name = _format_of(data)
    return name, FORMATS[name](data, most)


def load_picture(name: str, checked: Checked, *, near: int | None = None) -> tuple[Image.Image, bool]:
    """Decode a picture.

    Args:
        name: its format, one of `FORMATS`.
        checked: what `check_picture` gives.
        near: pixels per side that are enough: a larger JPEG is decoded at a half, quarter or eighth, never below.

    Returns:
        The picture in RGB, upright, and whether it has 16 bits of which the upper four are never used.

    Raises:
        DefectError: the decoder gives up; a JPEG's picture data end early.
    """
    try:
        image = _decoded(name, checked.data, near)
        if name == "JPEG" and _may_lack_data(image, checked):
            image = _with_all_data(image, checked, near)
        dim = checked.deep and _dim(image)
        image = _to_rgb(image)
        way = _UPRIGHT.get(checked.orientation)
        return (image.transpose(way) if way is not None else image), dim
    except DefectError:
        raise
    except Image.UnidentifiedImageError:
        raise DefectError(f"unreadable: not a {name} file that is understood") from None
    except Exception as error:  # decoders of hostile files end in any exception; each one is reported with its words
        words = " ".join(str(error).split()) or type(error).__name__
        words = words if words.isprintable() else repr(words)[1:-1]
        raise DefectError(f"{'truncated' if 'truncated' in words.lower() else 'unreadable'}: {words}") from None


def _format_of(data: bytes) -> str:
    if data.startswith(png.SIGNATURE):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith(b"BM"):
        return "BMP"
    if data[:1] == b"P" and data[1:2] in b"123456" and data[2:3].isspace():
        return "PPM"
    raise DefectError("not a readable JPEG, PNG, WebP or BMP file")


def _decoded(name: str, data: bytes, near: int | None) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=[name]) as image:
        if near is not None and name == "JPEG":
            image.draft(image.mode, (near, near))
        image.load()
        return image


def _may_lack_data(image: Image.Image, checked: Checked) -> bool:
    """Whether a second look is worth its while: in a large JPEG of one scan, where the last pixel is of middle grey."""
    # Where data end early, decoders leave blocks of that grey; only a part of the very last block would have another colour.
    if checked.scans > 1 or checked.width * checked.height <= _SMALL:
        return True
    last = image.getpixel((image.width - 1, image.height - 1))
    if isinstance(last, tuple) and len(last) == 3:
        last = 0.299 * last[0] + 0.587 * last[1] + 0.114 * last[2]
    return not isinstance(last, int | float) or abs(last - 128) <= 2


def _with_all_data(image: Image.Image, checked: Checked, near: int | None) -> Image.Image:
    """The picture again, which is the same where more data follow its own: else some were missing."""
    # A scan has no length, but its decoder stops at the last pixel.
    if image.width * image.height <= _HELD:
        if _decoded("JPEG", checked.longer, near).tobytes() != image.tobytes():
            raise cut_off("the picture data end before the last pixel")
        return image
    # Of larger pictures one at a time is held in memory.
    seen = _digest(image)
    image.close()
    if _digest(_decoded("JPEG", checked.longer, near)) != seen:
        raise cut_off("the picture data end before the last pixel")
    return _decoded("JPEG", checked.data, near)


def _digest(image: Image.Image) -> bytes:
    digest = sha256()
    for strip in _strips(image):
        digest.update(strip.tobytes())
    return digest.digest()


def _strips(image: Image.Image) -> Iterator[Image.Image]:
    """The image, a million pixels at a time."""
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _dim(image: Image.Image) -> bool:
    """Whether no value reaches 16 of 256, the alpha channel's apart."""
    if image.mode.startswith("I"):
        return bool(np.asarray(image).max() < 1 << 12)
    extrema = [image.getchannel(band).getextrema() for band in image.getbands() if band != "A"]
    return all(high < 16 for _, high in extrema)  # type: ignore[operator]


def _to_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB, strip by strip, as a conversion of the whole would hold it several times."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    out, top = Image.new("RGB", image.size), 0
    for strip in _strips(image):
        out.paste(_strip_to_rgb(strip), (0, top))
        top += strip.height
    return out


def _strip_to_rgb(image: Image.Image) -> Image.Image:
    # 16-bit greyscale: Pillow's own conversion would clip all values above 255 to white.
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray((values.clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    # Transparent pixels have colours of their own, often black; over white is how viewers show them.
    if image.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in image.info:
        colours = image.convert("RGBA")
        white = Image.new("RGBA", colours.size, "white")
        return Image.alpha_composite(white, colours).convert("RGB")
    return image.convert("RGB")
