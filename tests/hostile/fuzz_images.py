"""Readers of pictures, pickles and published files."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np

from hostile.fuzz import Reader
from picture_bytes import (
    JPEG,
    PIXELS,
    PNG,
    PPM,
    PROGRESSIVE,
    SMOOTH,
    UPRIGHT,
    WEBP,
    bmp,
    chunk,
    encoded,
    exif,
    jpeg_with,
    png_with,
    segment,
    webp_with,
)
from unpoison.core.errors import UserError
from unpoison.sources.attributes import MOST_VALUE, read_table
from unpoison.sources.decode import decode
from unpoison.sources.formats import idx
from unpoison.sources.pickles import load_plain

Value = tuple[tuple[int, ...], bytes]


def _read(data: bytes, folder: Path) -> Value:
    pixels = decode(data, None, "crop")
    return pixels.shape, pixels.tobytes()


def _exactly(valid: Any, value: Any) -> bool:
    """PNG: every chunk that decides about pixels has a checksum."""
    return bool(valid == value)


def _some_picture(_: Any, value: Value) -> bool:
    """JPEG, WebP, BMP, PPM: without a checksum, other values, and sizes that fit them, may have been meant."""
    shape, content = value
    return len(shape) == 3 and shape[2] == 3 and len(content) == int(np.prod(shape))


def _png() -> list[bytes]:
    grey = PIXELS[..., 0]
    return [
        PNG,
        encoded(grey % 4, "PNG", transparency=1),
        encoded(np.uint16(grey) * 257, "PNG"),
        png_with(chunk(b"eXIf", exif(UPRIGHT)[6:]), chunk(b"tEXt", b"k\0v"), chunk(b"gAMA", b"\0\0\xb1\x8f")),
    ]


def _jpeg() -> list[bytes]:
    small = SMOOTH[:32, :24]
    return [
        JPEG,
        PROGRESSIVE,
        encoded(small, "JPEG", restart_marker_blocks=1),
        jpeg_with(segment(0xE1, exif(UPRIGHT)), segment(0xFE, b"words")),
    ]


def _read_pickle(data: bytes, folder: Path) -> str:
    try:
        return repr(load_plain(data))
    except ValueError as error:
        raise UserError(str(error)) from None


def _pickles() -> list[bytes]:
    value = {b"data": np.arange(12, dtype=np.uint8).reshape(2, 6), b"labels": [1, 2], b"name": b"x"}
    return [pickle.dumps(value, protocol) for protocol in (3, 4)]


def _read_idx(data: bytes, folder: Path) -> list[int]:
    """The images of a set of three, with labels that are as they should be."""
    images = folder / "images"
    images.write_bytes(data)
    (folder / "labels").write_bytes(b"\0\0\x08\1" + struct.pack(">I", 3) + bytes(range(3)))
    source = idx(tuple("0123456789"))(images, folder / "labels", images, folder / "labels")
    return [int(source.labels["train"].sum()), len(source.names["test"])]


def _idx() -> list[bytes]:
    plain = b"\0\0\x08\3" + struct.pack(">3I", 3, 4, 4) + bytes(range(48))
    return [plain, gzip.compress(plain, mtime=0)]


def _tables() -> list[bytes]:
    return [b"image,smiling,who\nb/2.png,1,7\nb/1.png,0,12\n", b"2\nsmiling male\nb/2.png  1 -1\nb/1.png -1 -1\n"]


def _read_table(data: bytes, folder: Path) -> Any:
    (folder / "t.csv").write_bytes(data)
    return read_table(folder / "t.csv")


def _is_table(_: Any, table: Any) -> bool:
    """Text carries no digest: any table within the rules may have been meant."""
    rows, columns = table.values.shape
    right = table.values.min() >= 0 and table.values.max() <= MOST_VALUE
    return right and sorted(table.rows.values()) == list(range(rows)) and len(set(table.names)) == columns


READERS = [
    Reader("png", _png, _read, _exactly),
    Reader("jpeg", _jpeg, _read, _some_picture),
    Reader(
        "webp",
        lambda: [WEBP, encoded(PIXELS, "WEBP"), webp_with((b"EXIF", exif(UPRIGHT)), flags=8)],
        _read,
        _some_picture,
    ),
    Reader("bmp", lambda: [bmp(), encoded(PIXELS[..., 0], "BMP")], _read, _some_picture),
    Reader(
        "pnm",
        lambda: [PPM[:-1] + b"\1", b"P3 2 2 255\n" + b"9 8 7 " * 4, b"P4 9 2\n\xff\x80\x80\0"],
        _read,
        _some_picture,
    ),
    # What a pickle says cannot be checked, as long as it is plain.
    Reader("pickle", _pickles, _read_pickle, lambda _, value: isinstance(value, str)),
    Reader("idx", _idx, _read_idx, lambda valid, value: valid == value),
    Reader("attributes", _tables, _read_table, _is_table),
]
