"""Picture files byte by byte: chunks, segments and headers put together by hand; what the tests of hostile pictures share."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

SIDE = 16
PIXELS = np.random.default_rng(5).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
SMOOTH = np.add.outer(np.arange(48), np.arange(64)).astype(np.uint8)[..., None] + np.uint8([0, 40, 90])
"""uint8 [48, 64, 3], which JPEG keeps small."""


def encoded(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


PNG = encoded(PIXELS, "PNG")
JPEG = encoded(SMOOTH, "JPEG", quality=90)
PROGRESSIVE = encoded(SMOOTH, "JPEG", quality=90, progressive=True)


def chunk(name: bytes, body: bytes, *, damage: int = 0) -> bytes:
    """A chunk of a PNG; `damage` is added to its checksum."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body) ^ damage)


def png_with(*chunks: bytes, before: bytes = b"IDAT", source: bytes = PNG) -> bytes:
    """A PNG with more chunks in front of the first one of a name."""
    place = source.index(before) - 4
    return source[:place] + b"".join(chunks) + source[place:]


def png_of(rows: bytes, *, size: tuple[int, int] = (SIDE, SIDE), depth: int = 8, colour: int = 2) -> bytes:
    """A PNG whose compressed data are `rows`, whatever its header says."""
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def png_rows(pixels: np.ndarray) -> bytes:
    """Rows [height, width, channels] before compression, each with the byte of its filter."""
    rows = pixels.reshape(len(pixels), -1)
    return np.concatenate([np.zeros((len(rows), 1), np.uint8), rows], axis=1).tobytes()


def segment(mark: int, body: bytes) -> bytes:
    return bytes([0xFF, mark]) + struct.pack(">H", len(body) + 2) + body


def jpeg_with(*segments: bytes, source: bytes = JPEG) -> bytes:
    """A JPEG with more segments behind its start."""
    return source[:2] + b"".join(segments) + source[2:]


def cut_with_end(jpeg: bytes, share: float) -> bytes:
    """A JPEG cut within its last scan, or at a share of all its scans, with an end mark put behind."""
    first = jpeg.index(b"\xff\xda")
    return jpeg[: first + int((len(jpeg) - first) * share)] + b"\xff\xd9"


def exif(*entries: tuple[int, int, int, bytes], count: int | None = None) -> bytes:
    """A block of EXIF with entries (tag, type, count, four bytes)."""
    body = b"".join(struct.pack("<HHI", tag, kind, number) + value for tag, kind, number, value in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries) if count is None else count) + body + b"\0\0\0\0"


UPRIGHT = (274, 3, 1, b"\x06\0\0\0")
"""The entry that says: turn by 90 degrees clockwise."""
ODD_EXIF = {
    "width-as-text": exif((256, 2, 4, b"abc\0"), UPRIGHT),
    "width-as-float": exif((256, 11, 1, struct.pack("<f", 1.5)), UPRIGHT),
    "negative": exif((256, 9, 1, b"\xff\xff\xff\xff"), UPRIGHT),
    "strip-offsets": exif((273, 2, 4, b"abc\0"), UPRIGHT),
    "resolution-far-away": exif((282, 5, 1, b"\xff\xff\xff\x7f"), UPRIGHT),
    "no-such-type": exif((256, 99, 1, b"\0\0\0\0"), UPRIGHT),
    "maker-note-of-gigabytes": exif((37500, 7, 0xFFFFFFFF, b"\x10\0\0\0"), UPRIGHT),
    "more-entries-announced": exif(UPRIGHT, count=60_000),
}


def webp_with(*chunks: tuple[bytes, bytes], flags: int) -> bytes:
    """A WebP file with an extended header and more chunks behind the picture."""
    plain = encoded(PIXELS, "WEBP", lossless=True)
    size = (SIDE - 1).to_bytes(3, "little")
    body = b"WEBP" + riff(b"VP8X", bytes([flags, 0, 0, 0]) + size + size) + plain[12:]
    body += b"".join(riff(*each) for each in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def riff(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def bmp(*changes: tuple[int, str, int]) -> bytes:
    """A BMP with numbers of its header replaced: place, format, value."""
    data = bytearray(encoded(PIXELS, "BMP"))
    for place, kind, value in changes:
        struct.pack_into(kind, data, place, value)
    return bytes(data)


BIG = zlib.compress(b"x" * 1_500_000)
WEBP = encoded(PIXELS, "WEBP", lossless=True)
PPM = encoded(PIXELS, "PPM")
GREY = np.full((48, 64, 3), 128, np.uint8)

Make = Callable[[], bytes]
HARMLESS: dict[str, tuple[Make, bytes, bool]] = {
    "png-profile-of-1.5-mb": (lambda: png_with(chunk(b"iCCP", b"p\0\0" + BIG)), PNG, False),
    "png-compressed-text-of-1.5-mb": (lambda: png_with(chunk(b"zTXt", b"k\0\0" + BIG)), PNG, False),
    "png-international-text-of-1.5-mb": (lambda: png_with(chunk(b"iTXt", b"k\0\1\0\0\0" + BIG)), PNG, False),
    "png-text-that-is-no-zlib": (lambda: png_with(chunk(b"zTXt", b"k\0\0no"), chunk(b"iCCP", b"no")), PNG, False),
    "png-thousands-of-texts": (lambda: png_with(*[chunk(b"tEXt", b"key\0" + b"x" * 1000)] * 2000), PNG, False),
    "png-wrong-checksum-of-a-text": (lambda: png_with(chunk(b"tEXt", b"k\0v", damage=1)), PNG, False),
    "png-nonsense-gamma": (lambda: png_with(chunk(b"gAMA", b""), chunk(b"cHRM", b"\xff" * 9)), PNG, False),
    "png-nonsense-density": (lambda: png_with(chunk(b"pHYs", b"\xff" * 3), chunk(b"sRGB", b"\x63")), PNG, False),
    "png-nonsense-background": (
        lambda: png_with(chunk(b"bKGD", b"1"), chunk(b"sBIT", b""), chunk(b"tIME", b"")),
        PNG,
        False,
    ),
    "png-bytes-behind-the-end": (lambda: PNG + b"\0junk" * 100, PNG, False),
    "png-exif-that-ends-early": (lambda: png_with(chunk(b"eXIf", b"II*\0\x08\0\0\0\xff\xff")), PNG, False),
    "png-animation-of-one-frame": (lambda: png_with(chunk(b"acTL", struct.pack(">II", 1, 0))), PNG, False),
    "png-turned": (lambda: png_with(chunk(b"eXIf", exif(UPRIGHT)[6:])), PNG, True),
    "jpeg-profile-in-tatters": (
        lambda: jpeg_with(segment(0xE2, b"ICC_PROFILE\0\x09\x02" + b"x" * 60_000)),
        JPEG,
        False,
    ),
    "jpeg-broken-xmp": (lambda: jpeg_with(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:tiff:O")), JPEG, False),
    "jpeg-photoshop-block": (lambda: jpeg_with(segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\xff\xff")), JPEG, False),
    "jpeg-index-of-pictures-that-are-not-there": (lambda: jpeg_with(segment(0xE2, b"MPF\0II*\0\xff\xff")), JPEG, False),
    "jpeg-density-of-nonsense": (lambda: JPEG.replace(b"JFIF\0\1\1\0\0\1", b"JFIF\0\x09\x09\x09\0\0"), JPEG, False),
    "jpeg-without-jfif": (lambda: JPEG[:2] + JPEG[20:], JPEG, False),
    "jpeg-short-adobe-mark": (lambda: jpeg_with(segment(0xEE, b"Adobe")), JPEG, False),
    "jpeg-corrupt-exif": (lambda: jpeg_with(segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01")), JPEG, False),
    "jpeg-comments": (lambda: jpeg_with(*[segment(0xFE, b"\xff\xd9" * 9000)] * 50), JPEG, False),
    "jpeg-bytes-behind-the-end": (lambda: JPEG + JPEG[:200], JPEG, False),
    "jpeg-truly-grey": (lambda: encoded(GREY, "JPEG"), encoded(GREY, "PNG"), False),
    "webp-junk-in-every-chunk": (
        lambda: webp_with((b"EXIF", b"x"), (b"ICCP", b"y"), (b"XMP ", b"<"), flags=0x2C),
        WEBP,
        False,
    ),
    "webp-flags-without-chunks": (lambda: webp_with(flags=0x2C), WEBP, False),
    "webp-turned": (lambda: webp_with((b"EXIF", exif(UPRIGHT)), flags=8), WEBP, True),
    "bmp-sizes-of-nonsense": (lambda: bmp((38, "<i", -1), (34, "<I", 7), (2, "<I", 1)), PNG, False),
    "bmp-planes-and-colours-of-nonsense": (lambda: bmp((26, "<H", 9), (50, "<I", 77), (6, "<I", 5)), PNG, False),
    "ppm-comment-of-a-million": (lambda: PPM.replace(b"P6\n", b"P6\n#" + b"#" * 1_000_000 + b"\n"), PNG, False),
    **{
        f"exif-{name}": (lambda block=block: jpeg_with(segment(0xE1, block)), JPEG, True)  # type: ignore[misc]
        for name, block in ODD_EXIF.items()
    },
}
"""Maker of a picture with something that nobody reads, the picture without it, and whether it is turned clockwise."""
