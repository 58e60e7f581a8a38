"""Picture files: what decides about pixels decides, what does not cannot, and every mark of wholeness counts."""

from __future__ import annotations

import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from picture_bytes import (
    HARMLESS,
    JPEG,
    PIXELS,
    PNG,
    PROGRESSIVE,
    SIDE,
    SMOOTH,
    cut_with_end,
    encoded,
    png_of,
    png_rows,
)
from unpoison.data import pictures
from unpoison.sources import decode as decode_module
from unpoison.sources.decode import DefectError, decode, decode_noting


def refusals(files: list[bytes], right: np.ndarray) -> int:
    """How many of the files are refused; the others must give the right pixels."""
    count = 0
    for number, data in enumerate(files):
        try:
            pixels = decode(data, None, "crop")
        except DefectError:
            count += 1
            continue
        assert pixels.shape == right.shape, number
        assert (pixels == right).all(), number
    return count


def test_what_nobody_reads_changes_nothing_and_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, (make, like, turned) in HARMLESS.items():
            right = decode(like, None, "crop")
            assert (decode(make(), None, "crop") == (np.rot90(right, -1) if turned else right)).all(), name


def test_every_orientation_is_that_of_pillow() -> None:
    from PIL import ImageOps

    image = Image.fromarray(PIXELS[:, :9])
    for orientation in range(10):
        block = Image.Exif()
        block[274] = orientation
        for kind in ("PNG", "WEBP"):
            data = encoded(PIXELS[:, :9], kind, exif=block, **({"lossless": True} if kind == "WEBP" else {}))
            marked = image.copy()
            marked.getexif()[274] = orientation
            assert (decode(data, None, "crop") == np.asarray(ImageOps.exif_transpose(marked))).all(), (
                kind,
                orientation,
            )


def test_a_changed_byte_of_a_png_is_noticed() -> None:
    palette = encoded(PIXELS[..., 0] % 4, "PNG", transparency=1)
    for data in (PNG, palette, encoded(np.uint16(PIXELS[..., 0]) * 257, "PNG")):
        files = [data[:i] + bytes([data[i] ^ 1 << i % 8]) + data[i + 1 :] for i in range(len(data))]
        assert refusals(files, decode(data, None, "crop")) == len(data)
        # A cut is, at any place, before the end mark is complete.
        assert refusals([data[:i] for i in range(len(data))], decode(data, None, "crop")) == len(data)


@pytest.mark.parametrize(
    "options", [{}, {"subsampling": 0}, {"restart_marker_blocks": 2}, {"progressive": True}], ids=str
)
def test_a_cut_jpeg_is_noticed_though_an_end_mark_follows(options: dict[str, object]) -> None:
    whole = encoded(SMOOTH, "JPEG", quality=90, **options)
    files = [cut_with_end(whole, share) for share in np.linspace(0.05, 0.99, 40)]
    assert refusals(files, decode(whole, None, "crop")) >= 38
    assert refusals([whole], decode(whole, None, "crop")) == 0


def test_a_large_jpeg_is_looked_at_again_where_its_last_pixel_is_of_middle_grey(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pictures, "_SMALL", 0)
    monkeypatch.setattr(pictures, "_HELD", 0)
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(DefectError, match="truncated: the picture data end before the last pixel"):
            decode(cut_with_end(JPEG, share), None, "crop")
    assert decode(encoded(np.full((48, 64, 3), 128, np.uint8), "JPEG"), None, "crop").shape == (48, 64, 3)
    with pytest.raises(DefectError, match=r"^truncated"):
        decode(cut_with_end(PROGRESSIVE, 0.5), None, "crop")


def test_values_of_12_bits_in_16_are_noted() -> None:
    dark, bright = np.uint16([[0, 4095]] * SIDE), np.uint16([[0, 4096]] * SIDE)
    assert decode_noting(encoded(dark, "PNG"), None, "crop")[1]
    assert not decode_noting(encoded(bright, "PNG"), None, "crop")[1]
    assert not decode_noting(encoded(np.uint8([[0, 15]] * SIDE), "PNG"), None, "crop")[1]
    colour = png_of(zlib.compress(png_rows(np.full((SIDE, SIDE, 3), 4095, ">u2").view(np.uint8))), depth=16)
    assert decode_noting(colour, None, "crop")[1]
    assert decode_noting(colour, None, "crop")[0].max() == 15
    with_alpha = np.full((SIDE, SIDE, 4), 4095, ">u2")
    with_alpha[..., 3] = 65535
    assert decode_noting(png_of(zlib.compress(png_rows(with_alpha.view(np.uint8))), depth=16, colour=6), None, "crop")[
        1
    ]


def test_pnm_of_every_kind() -> None:
    right = decode(encoded(PIXELS, "PPM"), None, "crop")
    text = b"P3 # a comment\n16\t16 # another\n255\n" + b"\n".join(b"%d" % value for value in PIXELS.ravel())
    assert (decode(text, None, "crop") == right).all()
    grey = PIXELS[..., 0]
    for header, values in ((b"P2 16 16 255 ", grey), (b"P1 16 16 ", grey // 128)):
        shown = decode(header + b" ".join(b"%d" % value for value in values.ravel()), None, "crop")[..., 0]
        assert (shown == (values if header[1:2] == b"2" else 255 * (1 - values))).all()
    bitmap = b"P4 16 16 " + np.packbits(grey // 128, axis=1).tobytes()
    assert (decode(bitmap, None, "crop")[..., 0] == 255 * (1 - grey // 128)).all()
    # 16 bits give the high byte of the scale of 65,535, fewer levels are scaled to 255.
    wide = (np.uint16(grey) * 16).astype(">u2")
    assert (decode(b"P5 16 16 4080 " + wide.tobytes(), None, "crop")[..., 0] == grey).all()
    assert (decode(b"P5 16 16 51 " + (grey // 5).tobytes(), None, "crop")[..., 0] == grey // 5 * 5).all()


def test_strips_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    alpha = np.concatenate([PIXELS, PIXELS[..., :1]], axis=2)
    files = [
        encoded(alpha, "PNG"),
        encoded(np.uint16(PIXELS[..., 0]) * 257, "PNG"),
        encoded(PIXELS[..., 0], "BMP"),
        JPEG,
    ]
    whole = [decode(data, None, "crop") for data in files]
    monkeypatch.setattr(pictures, "_STRIP", 40)
    assert all((decode(data, None, "crop") == right).all() for data, right in zip(files, whole, strict=True))


def test_large_pictures_are_decoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_module, "_ROOM", decode_module._Room(SIDE * SIDE * 3 // 2))
    inside, most, lock = [0], [0], threading.Lock()

    def counting(*arguments: object, **named: object) -> tuple[Image.Image, bool]:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        threading.Event().wait(0.01)
        with lock:
            inside[0] -= 1
        return Image.fromarray(PIXELS), False

    monkeypatch.setattr(decode_module, "load_picture", counting)
    threads = [threading.Thread(target=decode, args=(PNG, None, "crop")) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
