"""JPEG: segments and scans. It has an end mark and counts, no checksum: a changed byte inside a scan cannot be told."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from math import ceil

from .checked import Checked, DefectError, cut_off, limit
from .exif import orientation_of

_MOST_SCANS, _MOST_PASSED, _MOST_SEGMENTS = 100, 1_300_000_000, 10_000
"""Scans, pixels times scans, and segments: more than encoders write. Each scan costs a pass over the whole picture."""
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
_SOI, _EOI, _SOS, _DRI, _COM, _JFIF, _EXIF, _ADOBE = 0xD8, 0xD9, 0xDA, 0xDD, 0xFE, 0xE0, 0xE1, 0xEE
_APPLICATION = range(0xE0, 0xF0)
# A scan ends before the first mark that is neither a stuffed byte, nor a restart, nor filling.
_SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_MARK = re.compile(rb"\0*+\xff++[^\xff]", re.DOTALL)
_RESTART = re.compile(rb"\xff([\xd0-\xd7])")
# JFIF 1.1 without density or thumbnail: its presence alone decides about colours.
_PLAIN_JFIF = b"\xff\xe0\x00\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0"
# More picture data, for scans that lack some: bits of every kind, no mark.
_FILLING = b"\x69\xd2\xa5\x4b\x96\x2d\x5a\xb4" * 16


@dataclass
class _Frame:
    """What the frame header announces, and what the scans have brought of it so far.

    Attributes:
        factors: sampling factors (horizontal, vertical) by component.
        precision: bit position that each of a component's 64 coefficients has reached; 0 is all of it.
    """

    width: int
    height: int
    progressive: bool
    factors: dict[int, tuple[int, int]]
    precision: dict[int, list[int]] = field(default_factory=dict)
    scans: int = 0
    interval: int = 0


def check(data: bytes, most: int) -> Checked:
    """A JPEG file whose marks and counts are complete; its thumbnails, profiles and texts are left out.

    Raises:
        DefectError: no end mark; scans, or restart marks within one, are missing; more scans than any encoder writes.
    """
    kept, frame, orientation, interval = [data[:2]], None, 1, 0
    place, last_scan = 2, 0
    for _ in range(_MOST_SEGMENTS):
        place, mark = _next_mark(data, place)
        if mark == _EOI:
            break
        if mark == _SOI or mark == 1 or 0xD0 <= mark <= 0xD7:
            raise DefectError("unreadable: a mark in the wrong place")
        length = int.from_bytes(data[place : place + 2], "big")
        body, end = data[place + 2 : place + length], place + length
        if length < 2 or end > len(data):
            raise cut_off("a segment")
        segment = data[place - 2 : end]
        if mark in _FRAMES:
            if frame:
                raise DefectError("unreadable: two frame headers")
            frame = _read_frame(body, progressive=mark in _PROGRESSIVE)
            limit(frame.width, frame.height, most)
            kept.append(segment)
        elif mark == _SOS:
            if not frame:
                raise DefectError("unreadable: a scan before the frame header")
            found = _SCAN_END.search(data, end)
            if not found:
                raise cut_off("no end mark (EOI)")
            scan = data[end : found.start()]
            _count_scan(frame, body, scan, interval)
            kept += [segment, scan]
            last_scan, end = len(kept), found.start()
        elif mark in _APPLICATION or mark == _COM:
            if mark == _JFIF and body.startswith(b"JFIF\0") and len(body) >= 14:
                kept.append(_PLAIN_JFIF)
            elif mark == _ADOBE and body.startswith(b"Adobe") and len(body) >= 12:
                kept.append(segment)
            elif mark == _EXIF and body.startswith(b"Exif\0\0") and orientation == 1:
                orientation = orientation_of(body)
        else:
            if mark == _DRI and len(body) == 2:
                interval = int.from_bytes(body, "big")
            kept.append(segment)
        place = end
    else:
        raise DefectError(f"unreadable: more than {_MOST_SEGMENTS} segments")
    if not frame or not frame.scans:
        raise cut_off("no picture")
    _check_complete(frame)
    end_mark = b"\xff\xd9"
    longer = b"".join((*kept[:last_scan], _FILLING, *kept[last_scan:], end_mark))
    whole = b"".join((*kept, end_mark))
    return Checked(whole, frame.width, frame.height, orientation, longer=longer, scans=frame.scans)


def _next_mark(data: bytes, place: int) -> tuple[int, int]:
    """The next mark, and where it ends; zeros and filling before it are passed over."""
    found = _MARK.match(data, place)
    if not found:
        if data[place:].strip(b"\0\xff"):
            raise DefectError(f"unreadable: no mark at byte {place}")
        raise cut_off("no end mark (EOI)")
    return found.end(), data[found.end() - 1]


def _read_frame(body: bytes, *, progressive: bool) -> _Frame:
    if len(body) < 6 or len(body) < 6 + 3 * body[5]:
        raise cut_off("the frame header")
    height, width, count = struct.unpack_from(">HHB", body, 1)
    if not height or not width or not count:
        raise DefectError("unreadable: a frame without width, height or colours")
    factors = {body[6 + 3 * i]: (body[7 + 3 * i] >> 4, body[7 + 3 * i] & 15) for i in range(count)}
    if len(factors) < count or not all(1 <= factor <= 4 for pair in factors.values() for factor in pair):
        raise DefectError("unreadable: a frame whose colours contradict each other")
    return _Frame(width, height, progressive, factors, {name: [99] * 64 for name in factors})


def _count_scan(frame: _Frame, body: bytes, scan: bytes, interval: int) -> None:
    """Note what a scan brings, and check that it has the restart marks that its size needs."""
    frame.scans += 1
    if frame.scans > _MOST_SCANS or frame.scans * frame.width * frame.height > _MOST_PASSED:
        raise DefectError(f"oversized: more than {frame.scans - 1} scans of {frame.width}x{frame.height} pixels")
    count = body[0] if body else 0
    if not count or len(body) < 4 + 2 * count:
        raise cut_off("a scan's header")
    names = [body[1 + 2 * i] for i in range(count)]
    first, last, bits = body[1 + 2 * count : 4 + 2 * count]
    if not set(names) <= set(frame.factors):
        raise DefectError("unreadable: a scan of a colour that the frame does not have")
    if not frame.progressive:
        first, last, bits = 0, 63, 0
    for name in names:
        frame.precision[name][first : min(last, 63) + 1] = [bits & 15] * max(0, min(last, 63) + 1 - first)
    if not interval:
        return
    # A scan of one component counts its own blocks, one of several counts units with some blocks of each.
    across, down = (max(factor[i] for factor in frame.factors.values()) for i in (0, 1))
    if count == 1:
        h, v = frame.factors[names[0]]
        sides = ceil(frame.width * h / across), ceil(frame.height * v / down)
        units = ceil(sides[0] / 8) * ceil(sides[1] / 8)
    else:
        units = ceil(frame.width / (8 * across)) * ceil(frame.height / (8 * down))
    wanted = ceil(units / interval) - 1
    marks = [mark[0] - 0xD0 for mark in _RESTART.findall(scan)]
    if len(marks) < wanted:
        raise cut_off(f"{len(marks)} of {wanted} restart marks")
    if any(mark != number % 8 for number, mark in enumerate(marks)):
        raise DefectError("unreadable: restart marks in a wrong order")


def _check_complete(frame: _Frame) -> None:
    if any(any(bits) for bits in frame.precision.values()):
        raise cut_off(f"{frame.scans} scans do not bring the whole picture")
