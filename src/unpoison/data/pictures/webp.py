"""WebP: chunks in a RIFF file, which has a length and no checksum."""

from __future__ import annotations

import struct

from .checked import Checked, DefectError, cut_off, limit
from .exif import orientation_of

# Flags of the header VP8X.
_PROFILE, _ALPHA, _EXIF, _XMP = 0x20, 0x10, 0x08, 0x04
_PICTURE = (b"VP8 ", b"VP8L")
_MOST = 100_000  # chunks


def check(data: bytes, most: int) -> Checked:
    """A WebP file of one picture, whose lengths fit each other.

    Raises:
        DefectError: animated; shorter than its lengths say; without a picture.
    """
    length = struct.unpack_from("<I", data, 4)[0]
    if len(data) < 20 or 8 + length > len(data):
        raise cut_off(f"{len(data)} bytes of {8 + length}")
    size: tuple[int, int] | None = None
    kept: list[bytes] = []
    names: list[bytes] = []
    orientation, flags, place = 1, 0, 12
    while place < 8 + length and len(names) < _MOST:
        if place + 8 > 8 + length:
            raise cut_off("a chunk's header")
        name, body_length = struct.unpack_from("<4sI", data, place)
        body = place + 8
        # A chunk of odd length is padded; the last one's padding is sometimes left out.
        end = min(body + body_length + body_length % 2, 8 + length)
        if body + body_length > 8 + length:
            raise cut_off(f"a chunk of {body_length} bytes")
        if not names and name not in (*_PICTURE, b"VP8X"):
            raise DefectError("unreadable: the first chunk is none of VP8, VP8L and VP8X")
        names.append(name)
        if name == b"VP8X" and body_length >= 10:
            flags, width, height = data[body], data[body + 4 : body + 7], data[body + 7 : body + 10]
            size = 1 + int.from_bytes(width, "little"), 1 + int.from_bytes(height, "little")
            limit(*size, most)
            described = bytes([flags & ~(_PROFILE | _EXIF | _XMP)])
            kept.append(data[place:body] + described + data[body + 1 : end])
        elif name in (*_PICTURE, b"ALPH", b"ANIM", b"ANMF"):
            kept.append(data[place:end])
            if name in _PICTURE:
                size = size or _size(name, data[body : body + 10])
                limit(*size, most)
        elif name == b"EXIF":
            orientation = orientation_of(data[body : body + body_length])
        place = end
    if (frames := names.count(b"ANMF")) > 1:
        raise DefectError(f"animated: {frames} frames")
    if size is None or not (frames or any(name in names for name in _PICTURE)):
        raise cut_off("no picture")
    if flags & _ALPHA and b"VP8 " in names and b"ALPH" not in names:
        raise DefectError("unreadable: the alpha channel (ALPH) that it announces is absent")
    inner = b"WEBP" + b"".join(kept)
    return Checked(b"RIFF" + struct.pack("<I", len(inner)) + inner, *size, orientation)


def _size(name: bytes, head: bytes) -> tuple[int, int]:
    """Width and height from the first ten bytes of a lossy or lossless picture."""
    if name == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF
