"""Bytes of an image file to RGB pixels of one size, or the reason why not.

What each kind of file becomes:

- greyscale, 1-bit: the grey in all three channels; 16-bit: the high byte of each value;
- palette: its colours; alpha or a transparent palette entry: composed over white;
- CMYK, YCbCr: Pillow's plain conversion, without colour profiles;
- a rotation or mirroring in EXIF is carried out;
- the first picture of a phone's multi-picture JPEG; animations (PNG, WebP) are refused.
"""

from __future__ import annotations

import io
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from ..core.arrays import Images

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM")
MAX_PIXELS = 64_000_000
"""Largest image, in pixels. More are refused before any is decoded: it may be a decompression bomb."""

Resize = Literal["crop", "stretch", "pad"]


class DefectError(ValueError):
    """An image that cannot be used; the message is a few words, without the file's name."""


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
    try:
        # Opening reads the header alone; the named formats keep Pillow's rarer and more fragile readers out.
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DefectError(f"oversized: {image.width}x{image.height} pixels, at most {MAX_PIXELS} allowed")
            frames = getattr(image, "n_frames", 1)
            if image.format in ("PNG", "WEBP") and frames > 1:
                raise DefectError(f"animated: {frames} frames")
            if side is not None and image.format == "JPEG":
                # A large photograph is decoded at a half, quarter or eighth, never below twice the size asked for.
                image.draft(image.mode, (2 * side, 2 * side))
            # A rotation in EXIF is carried out here, as an array has no place to note it.
            return to_square(_to_rgb(ImageOps.exif_transpose(image)), side, resize)
    except DefectError:
        raise
    except Image.DecompressionBombError:
        raise DefectError(f"oversized: more than {MAX_PIXELS} pixels") from None
    except Image.UnidentifiedImageError:
        raise DefectError("not a readable JPEG, PNG, WebP or BMP file") from None
    except Exception as error:  # decoders of hostile files end in any exception; each one is reported with its words
        words = " ".join(str(error).split()) or type(error).__name__
        raise DefectError(f"{'truncated' if 'truncated' in words.lower() else 'unreadable'}: {words}") from None


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


def _to_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB, as this module's head says for each kind."""
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
