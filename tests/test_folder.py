"""Folders and archives of images: every format, mode and defect, through to a base data set."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unpoison.core.errors import UserError
from unpoison.data import shards
from unpoison.data.store import open_split, read_about, read_sources
from unpoison.sources import build as build_module
from unpoison.sources import containers, decode
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


def test_fail_names_every_broken_file_and_leaves_nothing(tmp_path: Path) -> None:
    source = fill(tmp_path / "set", broken=True)
    with pytest.raises(
        UserError, match=r"data\.path: 11 of 41 files cannot be used: .* and 3 more; all of them"
    ) as caught:
        build(source, tmp_path / "base")
    assert "\n" not in str(caught.value)
    assert "data.on_error: skip" in str(caught.value)
    assert not (tmp_path / "base").exists()
    listed = dict(line.split(": ", 1) for line in (tmp_path / "d.txt").read_text().splitlines())
    assert set(listed) == {*(f"train/cat/{name}" for name in BROKEN), "train/loose.png"}
    for name, (_, reason) in BROKEN.items():
        assert any(word in listed[f"train/cat/{name}"] for word in reason.split("|")), (
            name,
            listed[f"train/cat/{name}"],
        )
    assert listed["train/loose.png"] == "lies in no class folder"


def test_skip_leaves_them_out_and_counts_them(tmp_path: Path) -> None:
    counts = build(fill(tmp_path / "set", broken=True), tmp_path / "base", on_error="skip")
    assert counts == {"reserve": 0, "public": 0, "train": len(GOOD) + 9, "test": 6, "defects": 11}
    about = read_about(tmp_path / "base")
    assert about["defects"] == 11
    assert about["ignored"] == len(IGNORED)
    assert about["classes"] == ["cat", "größe 猫"]
    assert len((tmp_path / "base/defects.txt").read_text().splitlines()) == 11
    assert sorted((tmp_path / "base/ignored.txt").read_text().splitlines()) == sorted(IGNORED)
    data = open_split(tmp_path / "base", "train")
    assert data.gather(np.arange(len(data))).shape == (len(GOOD) + 9, SIDE, SIDE, 3)
    names = read_sources(tmp_path / "base", "train")
    assert names == sorted(names)
    assert [name.split("/")[1] for name in names] == [data.classes[label] for label in data.labels]


def test_pixels_are_those_documented(tmp_path: Path) -> None:
    source = fill(tmp_path / "set", broken=False)
    build(source, tmp_path / "base")
    cat = source / "train" / "cat"

    def opened(name: str) -> Image.Image:
        return Image.open(cat / name)

    for name in ("b.PNG", "c.webp", "d.bmp", "really_a_png.jpg", "a.jpg"):
        assert (image_of(tmp_path / "base", f"train/cat/{name}") == np.asarray(opened(name).convert("RGB"))).all(), name
    grey = image_of(tmp_path / "base", "train/cat/grey.png")
    assert (grey == np.asarray(opened("grey.png"))[..., None]).all()
    high = image_of(tmp_path / "base", "train/cat/sixteen.png")
    assert (high == np.arange(256, dtype=np.uint8).reshape(SIDE, SIDE, 1)).all()
    rotated = image_of(tmp_path / "base", "train/cat/rotated.png")
    assert rotated[:, SIDE // 2 :].min() == 255
    assert rotated[:, : SIDE // 2].max() == 0


def test_transparent_is_white() -> None:
    clear = encoded(Image.new("RGBA", (SIDE, SIDE), (200, 10, 10, 0)), "PNG")
    assert (decode.decode(clear, None, "crop") == 255).all()
    palette = Image.new("P", (SIDE, SIDE), 3)
    palette.putpalette([0, 0, 0] * 256)
    assert (decode.decode(encoded(palette, "PNG", transparency=3), None, "crop") == 255).all()


def test_oversized_is_refused_from_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_PIXELS", SIDE * SIDE - 1)
    with pytest.raises(decode.DefectError, match="oversized: 16x16 pixels, at most 255 allowed"):
        decode.decode(encoded(picture(), "PNG"), None, "crop")


def test_resize_policies() -> None:
    image = Image.new("RGB", (40, 20), "black")
    image.paste((255, 255, 255), (10, 0, 30, 20))  # the middle square
    data = encoded(image, "PNG")
    assert (decode.decode(data, 20, "crop") == 255).all()
    padded = decode.decode(data, 20, "pad")
    assert padded[:4].max() == 0
    assert padded[-4:].max() == 0
    assert padded[10, 10].tolist() == [255] * 3
    stretched = decode.decode(data, 20, "stretch")
    assert stretched[10, 10].tolist() == [255] * 3
    assert stretched[10, 2].tolist() == [0] * 3


def test_a_large_photograph_is_decoded_at_a_fraction() -> None:
    image = Image.linear_gradient("L").resize((1600, 1200)).convert("RGB")
    full = decode.fit(image, 32, "crop").astype(int)
    assert np.abs(decode.decode(encoded(image, "JPEG", quality=95), 32, "crop").astype(int) - full).max() <= 3


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz", "zip"])
def test_an_archive_gives_the_same_bytes_as_its_folder(kind: str, tmp_path: Path) -> None:
    source = fill(tmp_path / "set", broken=True)
    settings = SplitSettings(reserve=4, public=4, train_limit=12)
    build(source, tmp_path / "a", settings, on_error="skip")
    build(archived(source, kind), tmp_path / "b", settings, on_error="skip")
    for split in ("train", "test", "reserve", "public"):
        for name in ("images.npy", "labels.npy", "sources.txt"):
            left, right = ((tmp_path / base / split / name).read_bytes() for base in "ab")
            assert (
                (left.replace(b"set/", b"") == right.replace(b"set/", b"")) if name == "sources.txt" else left == right
            )


def test_without_a_test_part_each_class_gives_its_share(tmp_path: Path) -> None:
    for label in "ab":
        for i in range(10):
            path = tmp_path / "set" / label / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture().save(path)
    counts = build(tmp_path / "set", tmp_path / "base", SplitSettings(reserve=0, public=0, test_share=0.3))
    assert (counts["train"], counts["test"]) == (14, 6)
    assert np.bincount(open_split(tmp_path / "base", "test").labels).tolist() == [3, 3]
    seen = read_sources(tmp_path / "base", "train") + read_sources(tmp_path / "base", "test")
    assert len(set(seen)) == 20
    build(tmp_path / "set", tmp_path / "other", SplitSettings(reserve=0, public=0, test_share=0.3, split_seed=1))
    assert read_sources(tmp_path / "other", "test") != read_sources(tmp_path / "base", "test")


def test_parts_of_its_own(tmp_path: Path) -> None:
    files = ["training/a/1", "training/b/1", "val/a/1", "val/b/1", "test/a/2", "test/b/2", "reserve/a/3", "public/4"]
    for name in files:
        path = tmp_path / "set" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture().save(path)
    build(tmp_path / "set", tmp_path / "base", SplitSettings())
    assert read_sources(tmp_path / "base", "test") == ["test/a/2.png", "test/b/2.png"]
    assert read_sources(tmp_path / "base", "reserve") == ["reserve/a/3.png"]
    assert read_sources(tmp_path / "base", "public") == ["public/4.png"]
    assert open_split(tmp_path / "base", "public").labels.tolist() == [-1]
    assert (tmp_path / "base/ignored.txt").read_text().splitlines() == ["val/a/1.png", "val/b/1.png"]


def layout(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture().save(path)
    return folder


@pytest.mark.parametrize(
    ("names", "split", "message"),
    [
        (["a/1", "a/2"], SMALL, r"1 classes with images found \(a\), allowed: at least two"),
        (["train/a/1", "train/b/1", "test/c/1"], SMALL, "test has classes that train has not: c; allowed: a, b"),
        (
            ["a/1", "a/2", "b/1", "b/2"],
            SplitSettings(reserve=3, public=0),
            r"data\.reserve: 3 given, allowed: fewer than 2",
        ),
        (
            ["a/1", "a/2", "b/1", "b/2"],
            SplitSettings(reserve=0, public=2),
            r"data\.public: 2 given, allowed: fewer than 2",
        ),
    ],
)
def test_layouts_that_do_not_work(names: list[str], split: SplitSettings, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        build(layout(tmp_path / "set", *names), tmp_path / "base", split)


def test_sizes_that_differ_need_a_size(tmp_path: Path) -> None:
    source = layout(tmp_path / "set", "a/1", "a/2", "b/1", "b/2")
    picture(size=(20, 30)).save(source / "b/3.png")
    with pytest.raises(
        UserError, match=r"data\.image_size: null given, but images differ in size \(16x16, and b/3\.png is 20x30"
    ):
        build(source, tmp_path / "base", image_size=None)


def test_hostile_archives(tmp_path: Path) -> None:
    good = {f"{label}/{i}.png": encoded(picture(), "PNG") for label in "ab" for i in range(2)}
    path = tmp_path / "hostile.tar"
    with tarfile.open(path, "w") as tar:
        for name, content in {**good, "../a/out.png": good["a/0.png"], "/a/root.png": good["a/0.png"]}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("a/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        twice = tarfile.TarInfo("b/1.png")
        twice.size = len(good["b/1.png"])
        tar.addfile(twice, io.BytesIO(good["b/1.png"]))
    reasons = dict(open_folder(path).problems)
    assert "link or device" in reasons["a/link.png"]
    assert "leads out" in reasons["../a/out.png"]
    assert "leads out" in reasons["a/root.png"]
    assert "twice" in reasons["b/1.png"]
    assert [p.name for p in tmp_path.iterdir()] == ["hostile.tar"]


def test_hostile_and_odd_zips(tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("a/0.png", "a/1.png", "b\\0.png", "b\\sub\\1.png", "../a/out.png", "/a/root.png", "b/locked.png"):
            archive.writestr(name, encoded(picture(), "PNG"))
        archive.getinfo("b/locked.png").flag_bits |= 1  # encrypted, by the central directory
    opened = open_folder(path)
    assert opened.names["train"] == ["a/0.png", "a/1.png", "b/0.png", "b/sub/1.png"]
    reasons = dict(opened.problems)
    assert reasons["b/locked.png"] == "encrypted"
    assert "leads out" in reasons["../a/out.png"]
    assert "leads out" in reasons["a/root.png"]
    counts = build(path, tmp_path / "base", SplitSettings(reserve=0, public=0, test_share=0.5), on_error="skip")
    assert (counts["train"], counts["test"], counts["defects"]) == (2, 2, 3)


def test_chunks_of_large_files_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "CHUNK_BYTES", 100)
    items = [("train", row, bytes(size)) for row, size in enumerate([60, 60, 10, 200, 5])]
    assert [[row for _, row, _ in chunk] for chunk in build_module._chunks(iter(items))] == [[0, 1], [2, 3], [4]]


def test_damaged_archives(tmp_path: Path) -> None:
    whole = archived(fill(tmp_path / "set", broken=False), "tar.xz")
    for cut in (-200, 50):
        (tmp_path / "cut.tar.xz").write_bytes(whole.read_bytes()[:cut])
        with pytest.raises(UserError, match=r"cut\.tar\.xz: .* after \d+ files"):
            open_folder(tmp_path / "cut.tar.xz")
    (tmp_path / "no.zip").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"no\.zip: ReadError after 0 files"):
        open_folder(tmp_path / "no.zip")
    with pytest.raises(UserError, match="no such file or folder"):
        open_folder(tmp_path / "absent.tar")


def test_a_file_with_a_bad_checksum_in_a_zip_is_one_defect(tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("a/0", "a/1", "b/0", "b/1"):
            archive.writestr(f"{name}.png", encoded(picture(), "PNG"))
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 20] ^= 255
    path.write_bytes(content)
    counts = build(path, tmp_path / "base", SplitSettings(reserve=0, public=0, test_share=0.5), on_error="skip")
    assert counts["defects"] == 1
    assert "a/0.png: unreadable: Bad CRC-32" in (tmp_path / "base/defects.txt").read_text()


def test_an_archive_that_expands_without_end_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "_FREE_EXPANSION", 1 << 20)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/0.png", bytes(20 << 20))
    with pytest.raises(UserError, match="expands to more than 1000 times its size"):
        open_folder(tmp_path / "bomb.zip")


def test_links_in_a_folder_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    source = layout(tmp_path / "set", "a/1", "b/1", "b/2")
    (source / "a" / "again").symlink_to(source / "a")
    (source / "a" / "2.png").symlink_to(source / "b" / "2.png")
    (source / "a" / "3.png").symlink_to(source / "nowhere.png")
    opened = open_folder(source)
    assert opened.names["train"] == ["a/1.png", "a/2.png", "b/1.png", "b/2.png"]
    assert opened.problems == [("a/3.png", "neither a file nor a link to one")]


def test_names_that_are_no_text(tmp_path: Path) -> None:
    source = layout(tmp_path / "set", "a/1", "b/1", "b/2")
    (tmp_path / "set" / "a" / b"\xff\n.png".decode("utf-8", "surrogateescape")).write_bytes(encoded(picture(), "PNG"))
    build(source, tmp_path / "base", SplitSettings(reserve=0, public=0, test_share=0.5))
    names = read_sources(tmp_path / "base", "train") + read_sources(tmp_path / "base", "test")
    assert r"a/\xff\n.png" in names


def test_many_shards_and_gaps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 5 * SIDE * SIDE * 3)
    source = fill(tmp_path / "set", broken=True)
    build(source, tmp_path / "cut", on_error="skip")
    monkeypatch.undo()
    build(source, tmp_path / "whole", on_error="skip")
    assert [p.name for p in sorted((tmp_path / "cut/train").glob("images*"))] == [
        f"images-0000{i}.npy" for i in range(5)
    ]
    cut, whole = open_split(tmp_path / "cut", "train"), open_split(tmp_path / "whole", "train")
    order = np.random.default_rng(1).permutation(len(whole))
    assert (cut.gather(order) == whole.gather(order)).all()
    assert (cut.base[3:17] == whole.base[3:17]).all()
