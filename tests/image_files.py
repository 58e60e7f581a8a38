"""Image files of every format, mode and defect, in the layouts that `prepare` reads; what the tests of sources share."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from unpoison.data.store import open_split, read_sources
from unpoison.sources.build import BuildSettings, build_base
from unpoison.sources.folder import open_folder
from unpoison.sources.splits import SplitSettings

SIDE = 16
SMALL = SplitSettings(reserve=0, public=0)
RNG = np.random.default_rng(0)


def picture(mode: str = "RGB", size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG whose header announces 30,000 x 30,000 pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + header + b"\0\0\0\0IEND\xaeB`\x82"


def sixteen() -> Image.Image:
    return Image.fromarray((np.arange(SIDE * SIDE, dtype=np.uint16) * 256 + 77).reshape(SIDE, SIDE))


def animated(kind: str) -> bytes:
    return encoded(picture(), kind, save_all=True, append_images=[picture(), picture()])


def exif_rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    image = Image.new("RGB", (SIDE, SIDE), "black")
    image.paste((255, 255, 255), (0, 0, SIDE, SIDE // 2))  # the upper half is white, and must end on the right
    return encoded(image, "PNG", exif=exif)


# Files that must come through, and files that must be named with a reason.
GOOD: dict[str, Callable[[], bytes]] = {
    "a.jpg": lambda: encoded(picture(), "JPEG"),
    "b.PNG": lambda: encoded(picture(), "PNG"),
    "c.webp": lambda: encoded(picture(), "WEBP", lossless=True),
    "d.bmp": lambda: encoded(picture(), "BMP"),
    "grey.png": lambda: encoded(picture("L"), "PNG"),
    "one_bit.png": lambda: encoded(picture("1"), "PNG"),
    "palette.png": lambda: encoded(picture("P"), "PNG"),
    "alpha.png": lambda: encoded(picture("RGBA"), "PNG"),
    "grey_alpha.png": lambda: encoded(picture("LA"), "PNG"),
    "cmyk.jpeg": lambda: encoded(picture("CMYK"), "JPEG"),
    "sixteen.png": lambda: encoded(sixteen(), "PNG"),
    "rotated.png": exif_rotated,
    "really_a_png.jpg": lambda: encoded(picture(), "PNG"),
    "tiny.png": lambda: encoded(picture(size=(1, 1)), "PNG"),
    "wide.png": lambda: encoded(picture(size=(50, 20)), "PNG"),
}
BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "truncated.jpg": (lambda: encoded(picture(size=(64, 64)), "JPEG")[:-300], "truncated"),
    "truncated.png": (lambda: encoded(picture(size=(64, 64)), "PNG")[:2000], "truncated|unreadable"),
    "truncated.webp": (lambda: encoded(picture(size=(64, 64)), "WEBP")[:200], "not a readable|unreadable|truncated"),
    "truncated.bmp": (lambda: encoded(picture(), "BMP")[:200], "truncated|unreadable"),
    "empty.png": (lambda: b"", "not a readable"),
    "text.jpg": (lambda: b"no picture at all", "not a readable"),
    "bomb.png": (bomb, "oversized"),
    "moving.png": (lambda: animated("PNG"), "animated: 3 frames"),
    "moving.webp": (lambda: animated("WEBP"), "animated: 3 frames"),
    "moving.gif": (lambda: animated("GIF"), "a format that is not read"),
}
IGNORED = ("train/notes.txt", "train/cat/.hidden.png", "train/.DS_Store", "__MACOSX/train/cat/x.png", "labels.csv")


def fill(folder: Path, *, broken: bool) -> Path:
    """`train` and `test` with classes `cat`, `größe 猫`; the first holds one file of each kind."""
    files = {f"train/cat/{name}": make() for name, make in GOOD.items()}
    if broken:
        files |= {f"train/cat/{name}": make() for name, (make, _) in BROKEN.items()}
        files["train/loose.png"] = encoded(picture(), "PNG")
    files |= {f"train/größe 猫/deep/{i}.png": encoded(picture(), "PNG") for i in range(9)}
    files |= {f"test/{label}/{i}.png": encoded(picture(), "PNG") for label in ("cat", "größe 猫") for i in range(3)}
    files |= dict.fromkeys(IGNORED, b"x")
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def archived(folder: Path, kind: str) -> Path:
    path = folder.parent / f"{folder.name}.{kind}"
    files = sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.name)  # an order of its own
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in files:
                archive.write(file, f"set/{file.relative_to(folder).as_posix()}")
        return path
    with tarfile.open(path, {"tar": "w", "tar.gz": "w:gz", "tar.xz": "w:xz"}[kind]) as tar:
        for file in files:
            tar.add(file, f"./set/{file.relative_to(folder).as_posix()}")
    return path


def build(path: Path, out: Path, split: SplitSettings = SMALL, **settings: object) -> dict[str, int]:
    return build_base(
        open_folder(path), out, split, BuildSettings(**{"image_size": SIDE, **settings}), defects=out.parent / "d.txt"
    )


def image_of(base: Path, name: str) -> np.ndarray:
    return open_split(base, "train").gather(np.array([read_sources(base, "train").index(name)]))[0]


def layout(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture().save(path)
    return folder
