"""What the formats' readers share: `Checked`, the part of a file that decides about pixels, and `DefectError`."""

from __future__ import annotations

from dataclasses import dataclass


class DefectError(ValueError):
    """An image that cannot be used; the message is a few words, without the file's name."""


_LONGEST = 65_535


@dataclass(frozen=True)
class Checked:
    """A picture file that is whole as far as its format can tell.

    Attributes:
        data: the file again, without what does not decide about pixels (profiles, texts, thumbnails).
        width: pixels, as stored.
        height: pixels, as stored.
        orientation: EXIF's way to see it upright, 1 to 8; anything else is no way.
        deep: whether values have 16 bits.
        longer: a JPEG's file with more picture data at the end, which decodes to the same pixels if none were missing.
        scans: passes of a JPEG over the picture.
    """

    data: bytes
    width: int
    height: int
    orientation: int = 1
    deep: bool = False
    longer: bytes = b""
    scans: int = 1


def limit(width: int, height: int, most: int) -> None:
    """Raises DefectError for more than `most` pixels, or a side past 65,535; asked as soon as the size is known."""
    if width * height > most:
        raise DefectError(f"oversized: {width}x{height} pixels, at most {most} allowed")
    # Decoders keep a list of rows, and several of them a buffer of a row.
    if max(width, height) > _LONGEST:
        raise DefectError(f"oversized: {width}x{height} pixels, at most {_LONGEST} a side allowed")


def cut_off(what: str) -> DefectError:
    return DefectError(f"truncated: {what}")
