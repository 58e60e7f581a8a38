"""PPM, PGM and PBM: a short header in text, then values in bytes or in text, and nothing behind them."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checked import Checked, DefectError, cut_off, limit

# White space and comments, then a number. Possessive: nothing is tried twice, however long a comment is.
_NUMBER = re.compile(rb"(?:\s|#[^\r\n]*+[\r\n])*+(\d{1,10})")
_COMMENT = re.compile(rb"#[^\r\n]*+")
_VALUES = re.compile(rb"[\d\s]*+")
_MOST_TEXT, _MOST_COMMENTS = 32 << 20, 10_000
"""Bytes of values written as text, and comments between them."""


def check(data: bytes, most: int) -> Checked:
    """A PNM file with exactly the values that its header announces, as one of 8 bits.

    Raises:
        DefectError: too few values, or more; one past the maximum; more than 32 MiB of text.
    """
    kind, place = data[1] - ord("0"), 2
    numbers: list[int] = []
    for _ in range(2 if kind in (1, 4) else 3):
        found = _NUMBER.match(data, place)
        if not found:
            raise cut_off("the header")
        numbers.append(int(found[1]))
        place = found.end()
    width, height, highest = (*numbers, 1)[:3]
    if not width or not height or not 0 < highest < 65536:
        raise DefectError("unreadable: a header that PNM does not know")
    limit(width, height, most)
    count = width * height * (3 if kind in (3, 6) else 1)
    # One white space ends the header of the binary kinds.
    body = data[place:] if kind < 4 else data[place + 1 :]
    if kind == 4:
        needed = (width + 7) // 8 * height
        _check_length(body[needed:].strip(), len(body), needed)
        return Checked(b"P4\n%d %d\n" % (width, height) + body[:needed], width, height)
    values = _from_text(body, count, single=kind == 1) if kind < 4 else _from_bytes(body, count, wide=highest > 255)
    if values.max() > highest:
        raise DefectError(f"unreadable: a value of {values.max()}, past the maximum of {highest}")
    raster = _to_bytes(values, kind, highest)
    header = b"P%d\n%d %d\n255\n" % (6 if kind in (3, 6) else 5, width, height)
    return Checked(header + raster.tobytes(), width, height, deep=highest > 255)


def _check_length(rest: bytes, length: int, needed: int) -> None:
    if length < needed:
        raise cut_off(f"{length} of {needed} values")
    if rest:
        raise DefectError("unreadable: more values than its size needs")


def _from_bytes(body: bytes, count: int, *, wide: bool) -> NDArray[Any]:
    needed = count * (2 if wide else 1)
    _check_length(body[needed:].strip(), len(body), needed)
    return np.frombuffer(body, ">u2" if wide else np.uint8, count)


def _from_text(body: bytes, count: int, *, single: bool) -> NDArray[Any]:
    if len(body) > _MOST_TEXT:
        raise DefectError(f"oversized: {len(body) >> 20} MiB of text, at most {_MOST_TEXT >> 20} allowed")
    if body.count(b"#") > _MOST_COMMENTS:
        raise DefectError(f"oversized: more than {_MOST_COMMENTS} comments")
    text = _COMMENT.sub(b"", body)
    if not _VALUES.fullmatch(text):
        raise DefectError("unreadable: something else than numbers")
    # The digits of a bitmap may stand without a space between them.
    values: NDArray[Any] = np.fromstring(b"" if single else text, np.int64, sep=" ")
    if single:
        values = np.frombuffer(b"".join(text.split()), np.uint8) - ord("0")
    _check_length(b"x" * (len(values) > count), len(values), count)
    return values


def _to_bytes(values: NDArray[Any], kind: int, highest: int) -> NDArray[Any]:
    """Values as 8 bits: scaled to 255, or to 65,535 of which the high byte is taken. In a bitmap 1 is black."""
    if kind == 1:
        return (255 * (1 - values)).astype(np.uint8)
    if highest == 255:
        return values.astype(np.uint8)
    scale = 65535 if highest > 255 else 255
    table = np.rint(np.arange(highest + 1) / highest * scale).astype(np.int64)
    return (table >> 8 if highest > 255 else table).astype(np.uint8)[values]
