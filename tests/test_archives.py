"""Archives of images: the same bytes as their folder, and what hostile and damaged ones come to."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from image_files import archived, build, encoded, fill, layout, picture
from unpoison.core.errors import UserError
from unpoison.data.store import open_split, read_sources
from unpoison.sources import containers
from unpoison.sources.folder import open_folder
from unpoison.sources.splits import SplitSettings

# Part of the source and its images per class.
TWO_PARTS = (("train", 10), ("test", 4))


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


def test_an_archive_is_limited_and_split_evenly_over_its_classes(tmp_path: Path) -> None:
    labels = ("cat", "dog", "größe 猫")
    train, test = ([f"{part}/{label}/{i:02d}" for label in labels for i in range(n)] for part, n in TWO_PARTS)
    source = archived(layout(tmp_path / "set", *train, *test), "tar.xz")
    counts = build(source, tmp_path / "base", SplitSettings(train_limit=15, reserve=6, public=9))
    assert counts == {"reserve": 6, "public": 9, "train": 15, "test": 12, "defects": 0}
    assert np.bincount(open_split(tmp_path / "base", "train").labels).tolist() == [5] * 3
    assert np.bincount(open_split(tmp_path / "base", "reserve").labels).tolist() == [2] * 3
    # In the order of the names, although the archive has its own, and without the folder around everything.
    assert read_sources(tmp_path / "base", "test") == [f"set/{name}.png" for name in test]


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
