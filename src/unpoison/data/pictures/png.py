"""PNG: chunks with a checksum each, compressed rows with another one, and an end mark."""

from __future__ import annotations

import re
import struct
import zlib

from .checked import Checked, DefectError, cut_off, limit
from .exif import orientation_of

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Chunks that decide about pixels: the critical ones and transparency go to the decoder; of animation and EXIF one figure
# is read here.
_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")
_LOOKED_AT = (b"acTL", b"eXIf", b"IEND")
# Chunks that describe: damage in them is nobody's loss. Unknown names are not among them, as damage may have made the name.
_DESCRIBING = (
    b"iCCP cICP gAMA cHRM sRGB sBIT sPLT bKGD hIST pHYs tIME tEXt zTXt iTXt oFFs pCAL sCAL sTER gIFg gIFx vpAg dSIG"
).split()
_DECIDING = re.compile(b"|".join((*_KEPT, *_LOOKED_AT)))
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# Adam7's seven passes: first column and row, and steps.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_BLOCK = 1 << 20
_MOST = 100_000  # chunks


def check(data: bytes, most: int) -> Checked:
    """A PNG file with every checksum that guards pixels looked at.

    Raises:
        DefectError: animated; no end mark; a checksum that is wrong; compressed data that end early.
    """
    kept: list[bytes] = [SIGNATURE]
    rows: list[memoryview] = []
    header, orientation = b"", 1
    view, place = memoryview(data), len(SIGNATURE)
    for _ in range(_MOST):
        if place + 12 > len(data):
            raise cut_off("no end mark (IEND)")
        length, name = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if end > len(data):
            raise cut_off(f"{_shown(name)} chunk of {length} bytes")
        body = view[place + 8 : end - 4]
        if not _sound(name, body, data[end - 4 : end]):
            raise DefectError(f"unreadable: wrong checksum of the {_shown(name)} chunk")
        if name == b"IHDR" and not header:
            header = bytes(body)
            _check_header(header, most)
        elif name == b"IHDR" or not header:
            raise DefectError("unreadable: the header (IHDR) is not the first chunk, or there are two")
        if name in _KEPT:
            kept.append(data[place:end])
        elif name == b"acTL" and not rows and length >= 4 and (frames := struct.unpack_from(">I", body)[0]) > 1:
            raise DefectError(f"animated: {frames} frames")
        elif name == b"eXIf":
            orientation = orientation_of(bytes(body))
        if name == b"IDAT":
            rows.append(body)
        if name == b"IEND":
            kept.append(data[place:end])
            break
        place = end
    else:
        raise DefectError(f"unreadable: more than {_MOST} chunks")
    width, height, depth = struct.unpack_from(">IIB", header)
    _check_rows(rows, _raw_size(header))
    return Checked(b"".join(kept), width, height, orientation, deep=depth == 16)


def _sound(name: bytes, body: memoryview, checksum: bytes) -> bool:
    """Whether a chunk may be trusted: by its checksum, or because it describes and hides none that decides about pixels."""
    if zlib.crc32(body, zlib.crc32(name)) == int.from_bytes(checksum, "big"):
        return True
    # A wrong length may have swallowed the chunks behind.
    return name in _DESCRIBING and not _DECIDING.search(body)


def _shown(name: bytes) -> str:
    return name.decode("ascii", "backslashreplace") if name.isalpha() else repr(name)[2:-1]


def _check_header(header: bytes, most: int) -> None:
    if len(header) != 13 or header[9] not in _CHANNELS or header[8] not in (1, 2, 4, 8, 16) or header[12] > 1:
        raise DefectError("unreadable: a header (IHDR) that PNG does not know")
    width, height = struct.unpack_from(">II", header)
    limit(width, height, most)


def _raw_size(header: bytes) -> int:
    """Bytes of all rows before compression, with a byte for each row's filter."""
    width, height, depth, colour = struct.unpack_from(">IIBB", header)
    bits = depth * _CHANNELS[colour]
    if not header[12]:
        return int(height * (1 + (width * bits + 7) // 8))
    sizes = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in _PASSES]
    return sum(h * (1 + (w * bits + 7) // 8) for w, h in sizes if w > 0 and h > 0)


def _check_rows(rows: list[memoryview], size: int) -> None:
    """Expand the compressed rows once, a block at a time, up to the size that the header announces."""
    # The decoder stops at the last row, which is before the stream's own checksum.
    inflate, left = zlib.decompressobj(), size
    try:
        for row in rows:
            rest: bytes | memoryview = row
            while rest and left and not inflate.eof:
                left -= len(inflate.decompress(rest, min(left, _BLOCK)))
                rest = inflate.unconsumed_tail
            # Behind the last row: what is left of the stream, of which a little is looked at.
            if rest and not inflate.eof:
                inflate.decompress(rest, 1)
    except zlib.error as error:
        raise DefectError(f"unreadable: {error}") from None
    if left:
        raise cut_off(f"{left} of {size} bytes of picture data are missing")
