"""Hostile pictures at the door of `prepare`: a folder of two classes, one of whose files is the hostile one."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hostile.harness import Accepted, Case, Refused, knock
from picture_bytes import (
    BIG,
    HARMLESS,
    JPEG,
    PIXELS,
    PNG,
    PPM,
    PROGRESSIVE,
    SIDE,
    SMOOTH,
    WEBP,
    bmp,
    chunk,
    cut_with_end,
    encoded,
    jpeg_with,
    png_of,
    png_rows,
    png_with,
    riff,
)
from unpoison.attacks.blended import make as make_blended
from unpoison.core.errors import ParameterError
from unpoison.crafting.context import Context
from unpoison.data.imageset import ImageSet
from unpoison.data.store import open_split
from unpoison.sources.build import BuildSettings, build_base
from unpoison.sources.decode import decode
from unpoison.sources.folder import open_folder
from unpoison.sources.splits import SplitSettings


def prepare(folder: Path) -> dict[str, str]:
    """Digest of each image's pixels, by name, of the set built from `set/`."""
    split = SplitSettings(reserve=0, public=0)
    build_base(open_folder(folder / "set"), folder / "base", split, BuildSettings(), defects=folder / "defects.txt")
    data = open_split(folder / "base", "train")
    names = (folder / "base/train/sources.txt").read_text().split()
    return {name: digest_of(image) for name, image in zip(names, data.gather(np.arange(len(data))), strict=True)}


def digest_of(image: np.ndarray) -> str:
    return sha256(image.tobytes()).hexdigest()[:16]


def put(make: Callable[[], bytes], like: bytes) -> Callable[[Path], None]:
    """Maker of a set whose file `train/a/x.png` is hostile; all others are `like`, of the size that it ought to have."""

    def made(folder: Path) -> None:
        for name, content in (("train/a/x", make()), ("train/b/1", like), ("test/a/1", like), ("test/b/1", like)):
            path = folder / "set" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    return made


def same(name: str, make: Callable[[], bytes], like: bytes, turned: bool) -> Case:
    """A file that must have the pixels of `like`, or those turned by 90 degrees clockwise."""
    pixels = decode(like, None, "crop")
    wanted = digest_of(np.rot90(pixels, -1).copy() if turned else pixels)
    other = encoded(np.rot90(pixels).copy(), "PNG") if turned else like
    return Case(name, put(make, other), Accepted(lambda value: value["train/a/x.png"] == wanted))


def refused(name: str, make: Callable[[], bytes], reason: str) -> Case:
    return Case(name, put(make, PNG), Refused(rf"^path: 1 of 4 files cannot be used: train/a/x\.png \({reason}"))


def large(jpeg: bytes, repeats: int) -> bytes:
    """A JPEG of 8,000 x 8,000 pixels whose last scan comes again and again."""
    frame, last = jpeg.index(b"\xff\xc2"), jpeg.rindex(b"\xff\xda")
    sized = jpeg[: frame + 5] + struct.pack(">HH", 8000, 8000) + jpeg[frame + 9 : last]
    return sized + jpeg[last:-2] * repeats + b"\xff\xd9"


AT_THE_DOOR = (
    "png-compressed-text-of-1.5-mb",
    "jpeg-index-of-pictures-that-are-not-there",
    "webp-junk-in-every-chunk",
    "exif-resolution-far-away",
)
ROWS = png_rows(PIXELS)
PALETTE = encoded((PIXELS[..., 0] % 4), "PNG")
CLEAR = png_with(chunk(b"tRNS", struct.pack(">H", 1)), source=PALETTE)
RESTARTS = encoded(SMOOTH, "JPEG", quality=90, restart_marker_blocks=2)

CASES = [
    # What nobody reads cannot stop a picture; all of these, without a process each, are in test_pictures.py.
    *(same(name, *HARMLESS[name]) for name in AT_THE_DOOR),
    # What a format carries to prove itself whole.
    refused(
        "png-changed-byte", lambda: PNG[:80] + bytes([PNG[80] ^ 1]) + PNG[81:], "unreadable: wrong checksum of the IDAT"
    ),
    refused(
        "png-wrong-checksum-of-transparency",
        lambda: CLEAR[:-60].replace(b"tRNS\0\1", b"tRNS\0\2") + CLEAR[-60:],
        ".*tRNS",
    ),
    refused(
        "png-text-that-swallows-transparency",
        lambda: PALETTE[:33] + chunk(b"tEXt", b"k\0" + chunk(b"tRNS", b"\0\1"), damage=1) + PALETTE[33:],
        "unreadable: wrong checksum of the tEXt",
    ),
    refused(
        "png-wrong-checksum-of-the-rows",
        lambda: png_of(zlib.compress(ROWS)[:-1] + b"!"),
        ".*incorrect data check",
    ),
    refused(
        "png-half-of-the-rows",
        lambda: png_of(zlib.compress(ROWS[:300])),
        "truncated: .* bytes of picture data are missing",
    ),
    refused("png-without-an-end", lambda: PNG[:-12], r"truncated: no end mark \(IEND\)"),
    refused(
        "png-unknown-critical-chunk", lambda: png_with(chunk(b"IHDR", b"\0" * 13)), "unreadable: .*or there are two"
    ),
    refused("png-one-frame-of-many", lambda: png_with(chunk(b"acTL", struct.pack(">II", 5, 0))), "animated: 5 frames"),
    refused("jpeg-cut-in-half-with-an-end-mark", lambda: cut_with_end(JPEG, 0.5), "truncated: the picture data end"),
    refused("jpeg-cut-in-the-last-block", lambda: JPEG[:-4] + b"\xff\xd9", "truncated: the picture data end"),
    refused(
        "progressive-cut-in-its-last-scan", lambda: cut_with_end(PROGRESSIVE, 0.9), "truncated: the picture data end"
    ),
    refused(
        "progressive-without-its-last-scan",
        lambda: PROGRESSIVE[: PROGRESSIVE.rindex(b"\xff\xda")] + b"\xff\xd9",
        "truncated: 9 scans do not bring the whole picture",
    ),
    refused(
        "jpeg-lacks-a-restart",
        lambda: RESTARTS.replace(b"\xff\xd0", b"", 1),
        ".* restart marks",
    ),
    refused("jpeg-without-an-end", lambda: JPEG[:-2], r"truncated: no end mark \(EOI\)"),
    refused(
        "webp-shorter-than-it-says",
        lambda: WEBP[:4] + struct.pack("<I", 9999) + WEBP[8:],
        "truncated: .* bytes of 10007",
    ),
    refused("webp-alpha-announced-and-absent", lambda: webp_lossy_with_alpha_flag(), r"unreadable: the alpha channel"),
    refused("bmp-changed-width", lambda: bmp((18, "<i", 12)), "unreadable: its sizes contradict each other"),
    refused("bmp-shorter-than-it-says", lambda: bmp()[:-1], "truncated: 767 bytes of 768"),
    refused("bmp-picture-within-its-header", lambda: bmp((10, "<I", 50)), "unreadable: the picture begins within"),
    refused("ppm-short", lambda: PPM[:-1], "truncated: 767 of 768 values"),
    refused("ppm-long", lambda: PPM.replace(b"16 16", b"16 12"), "unreadable: more values than its size needs"),
    refused(
        "ppm-values-past-the-maximum",
        lambda: PPM.replace(b"255", b"155", 1),
        "unreadable: a value of .* past the maximum",
    ),
    # Time and memory.
    refused("png-bomb", lambda: png_of(b"", size=(30_000, 30_000)), "oversized: 30000x30000 pixels"),
    refused("png-one-row-of-64-million", lambda: png_of(b"", size=(64_000_000, 1)), "oversized: .* a side allowed"),
    refused("jpeg-thousands-of-scans", lambda: large(PROGRESSIVE, 5000), "oversized: more than 20 scans of 8000x8000"),
    refused(
        "jpeg-comments-without-end",
        lambda: jpeg_with(b"\xff\xfe\0\2" * 20_000),
        "unreadable: more than 10000 segments",
    ),
    refused("jpeg-filling-without-end", lambda: b"\xff\xd8" + b"\xff" * 5_000_000, "truncated: no end mark"),
    refused(
        "png-chunks-without-end",
        lambda: png_with(b"\0\0\0\0tEXt\0\0\0\0" * 100_001),
        "unreadable: more than 100000 chunks",
    ),
    refused("text-of-64-megapixels", lambda: b"P3 8000 8000 255\n" + b"0 " * 17_000_000, "oversized: 32 MiB of text"),
    refused(
        "text-comments-without-end",
        lambda: b"P3 16 16 255\n" + b"#\n" * 100_000,
        "oversized: more than 10000 comments",
    ),
    refused("bmp-runs-of-64-megapixels", lambda: bmp_of_runs(), "oversized: .* of runs for 8000x8000 pixels"),
    refused("webp-canvas-of-terapixels", lambda: webp_canvas(), "oversized: 16777216x16777216 pixels"),
    # Other formats under a picture's name start nothing.
    refused("postscript", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n", "not a readable"),
    refused("gif", lambda: encoded(PIXELS, "GIF"), "not a readable"),
    refused("tiff", lambda: encoded(PIXELS, "TIFF"), "not a readable"),
]


def webp_lossy_with_alpha_flag() -> bytes:
    plain, size = encoded(PIXELS, "WEBP"), (SIDE - 1).to_bytes(3, "little")
    body = b"WEBP" + riff(b"VP8X", b"\x10\0\0\0" + size + size) + plain[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_canvas() -> bytes:
    body = b"WEBP" + riff(b"VP8X", b"\0\0\0\0" + b"\xff" * 6)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def bmp_of_runs() -> bytes:
    """Of 8,000 x 8,000 pixels, each row's end written for one pixel."""
    header = bytearray(encoded(np.zeros((2, 2), np.uint8), "BMP")[:1078])
    struct.pack_into("<ii", header, 18, 8000, 8000)
    struct.pack_into("<II", header, 30, 1, 0)
    return bytes(header) + b"\1\0\0\0" * 8000


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case, tmp_path: Path) -> None:
    knock(prepare, case, tmp_path)


def blend(folder: Path) -> Any:
    """The pattern picture `p.png` as `blended` takes it."""
    images = ImageSet(np.zeros((2, SIDE, SIDE, 3), np.uint8), np.zeros(2, np.int64), ("a", "b"))
    context = Context(train=images, seed=0)
    make_blended(context, pattern=str(folder / "p.png"))
    return True


def pattern(content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "p.png").write_bytes(content)


PATTERNS = [
    Case(
        "pattern-postscript",
        pattern(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        Refused("pattern: .*not a readable"),
    ),
    Case("pattern-icns", pattern(b"icns" + b"\0\0\0\x10" + b"ic08\0\0\0\x08"), Refused("pattern: .*not a readable")),
    Case("pattern-cut", pattern(PNG[:-20]), Refused("pattern: .*truncated")),
    Case("pattern-fifo", lambda folder: os.mkfifo(folder / "p.png"), Refused("pattern: .*no such file")),
    Case("pattern-with-profile", pattern(png_with(chunk(b"iCCP", b"p\0\0" + BIG))), Accepted(True)),
]


@pytest.mark.parametrize("case", PATTERNS, ids=str)
def test_pattern(case: Case, tmp_path: Path) -> None:
    knock(blend, case, tmp_path)


def test_the_error_names_the_argument(tmp_path: Path) -> None:
    (tmp_path / "p.png").write_bytes(b"GIF89a")
    with pytest.raises(ParameterError, match=r"^pattern: '.*p\.png' given \(not a readable"):
        blend(tmp_path)
