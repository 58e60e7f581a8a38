"""The one entry of EXIF that decides about pixels: tag 274, the orientation."""

from __future__ import annotations

import struct

_ORIENTATION = 274
# TIFF's whole numbers: byte, short and long, without and with sign.
_WHOLE = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}


def orientation_of(exif: bytes) -> int:
    """The orientation in a block of EXIF, 1 where it has none; whatever else the block holds is not looked at."""
    block = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None or len(block) < 8:
        return 1
    start = struct.unpack_from(f"{order}I", block, 4)[0]
    if start + 2 > len(block):
        return 1
    count = struct.unpack_from(f"{order}H", block, start)[0]
    # A count that lies ends with the block: at most 65,535 entries of 12 bytes.
    for place in range(start + 2, min(start + 2 + 12 * count, len(block) - 11), 12):
        tag, kind, values = struct.unpack_from(f"{order}HHI", block, place)
        if tag == _ORIENTATION and kind in _WHOLE and values == 1:
            return int(struct.unpack_from(f"{order}{_WHOLE[kind]}", block, place + 8)[0])
    return 1
