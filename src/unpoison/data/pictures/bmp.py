"""BMP: a size of the file and one of the picture, no checksum."""

from __future__ import annotations

import struct

from .checked import Checked, DefectError, cut_off, limit

_HEADERS = (12, 40, 52, 56, 64, 108, 124)
_RUN_LENGTH, _FIELDS = (1, 2), 3
_MOST_RUNS = 4 << 20
"""Bytes of run-length data, and pixels that come of them: their decoder works one by one."""


def check(data: bytes, most: int) -> Checked:
    """A BMP file that has all rows, and at least one size that says so.

    Raises:
        DefectError: shorter than its size needs; a width, height or depth that none of its sizes agrees with.
    """
    if len(data) < 26:
        raise cut_off("the header")
    total, _, start, header = struct.unpack_from("<4I", data, 2)
    if header not in _HEADERS or len(data) < 14 + header:
        raise DefectError(f"unreadable: a BMP header of {header} bytes")
    if header == 12:
        width, height, _, bits = struct.unpack_from("<4H", data, 18)
        compression, size, colours, entry = 0, 0, 0, 3
    else:
        width, height, _, bits, compression, size, _, _, colours = struct.unpack_from("<iiHHII2iI", data, 18)
        height, entry = abs(height), 4
    if width <= 0 or height == 0:
        raise DefectError("unreadable: no width or height")
    limit(width, height, most)
    # Some writers give the end of the header where a palette follows.
    earliest = 14 + header + (12 if compression == _FIELDS and header == 40 else 0)
    if start == 14 + header and bits <= 8:
        start += entry * (colours or 1 << bits)
    start = start or earliest
    if start < earliest:
        raise DefectError("unreadable: the picture begins within the header")
    if compression in _RUN_LENGTH:
        if start + size > len(data):
            raise cut_off(f"{len(data) - start} bytes of {size}")
        if max(len(data) - start, width * height) > _MOST_RUNS:
            raise DefectError(f"oversized: {len(data) - start} bytes of runs for {width}x{height} pixels")
        return Checked(data, width, height)
    wanted = (width * bits + 31) // 32 * 4 * height
    if len(data) - start < wanted:
        raise cut_off(f"{len(data) - start} bytes of {wanted}")
    # Writers leave one size or the other at nonsense, and pad; where none agrees, the width or the height is damaged.
    if not any(0 <= stated - wanted <= 3 for stated in (size, total - start, len(data) - start)):
        raise DefectError("unreadable: its sizes contradict each other")
    return Checked(data, width, height)
