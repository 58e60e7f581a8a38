"""Archives of images: the same bytes as their folder, and what hostile and damaged ones come to."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from image_files import archived, build, encoded, fill, layout, picture
from small_archives import COMPRESS, FILES, held, tar_bytes, tar_entry, zip_bytes
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


@pytest.mark.parametrize("kind", COMPRESS)
def test_members_cut_anywhere_are_one_archive(kind: str, tmp_path: Path) -> None:
    path, tar = tmp_path / "set", tar_bytes()
    path.write_bytes(tar)
    whole = held(path)
    assert len(whole.samples) == len(FILES)
    # Between files and within them, within headers, within the closing blocks.
    for cut in range(1, len(tar), len(tar) // 50):
        path.write_bytes(COMPRESS[kind](tar[:cut]) + COMPRESS[kind](tar[cut:]))
        assert held(path) == whole, cut
    # One member per block, with empty members and padding between them.
    empty = COMPRESS[kind](b"")
    pieces = [COMPRESS[kind](tar[start : start + 512]) + empty + bytes(4) for start in range(0, len(tar), 512)]
    path.write_bytes(b"".join(pieces))
    assert held(path) == whole


@pytest.mark.parametrize("form", ["tar", *COMPRESS, "stored", "deflated"])
def test_no_changed_byte_goes_unnoticed(form: str, tmp_path: Path) -> None:
    files = {"a/0.png": b"first", "b/1.png": b"second"}
    zips = {"stored": zipfile.ZIP_STORED, "deflated": zipfile.ZIP_DEFLATED}
    tar = tar_bytes(files)
    data = tar if form == "tar" else zip_bytes(files, zips[form]) if form in zips else COMPRESS[form](tar)
    path = tmp_path / "set"
    path.write_bytes(data)
    whole = held(path)
    # A tar has checksums of its headers alone, not of its files' content.
    places = range(len(data)) if form != "tar" else [i for i in range(0, len(data), 5) if i >= 2048 or i % 1024 < 512]
    refused = defects = 0
    for place in places:
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            found = held(path)
        except UserError:
            refused += 1
            continue
        wrong = {name for name in whole.samples if found.samples.get(name) != whole.samples[name]}
        assert set(found.samples) <= set(whole.samples), place
        # What is not as it was is a defect, by its own name or by the one that was damaged.
        assert all(isinstance(found.samples.get(name, ("", ""))[1], str) for name in wrong), place
        assert not wrong or found.problems or any(isinstance(text, str) for _, text in found.samples.values()), place
        defects += bool(wrong)
    assert refused + defects > len(places) // 2


def test_a_cut_tar_is_no_tar(tmp_path: Path) -> None:
    path, tar = tmp_path / "set.tar", tar_bytes()
    for end in (*range(0, len(tar), 512), len(tar) - 1, 700):
        path.write_bytes(tar[:end])
        with pytest.raises(UserError, match=r"cut off|empty"):
            open_folder(path)
    # A compressed one as well, though the compression is whole.
    path.write_bytes(COMPRESS["gzip"](tar[:-512]))
    with pytest.raises(UserError, match="one of the two blocks that close a tar"):
        open_folder(path)


def test_what_lies_behind_the_end_is_said(tmp_path: Path) -> None:
    path, tar = tmp_path / "set", tar_bytes()
    for whole in (tar, COMPRESS["gzip"](tar), COMPRESS["bzip2"](tar), COMPRESS["xz"](tar), zip_bytes()):
        path.write_bytes(whole + b"garbage")
        found = held(path)
        assert len(found.samples) == len(FILES)
        assert found.notes == ["7 bytes behind the end of the archive, ignored"]
    # Another archive is not ignored: half of the files would be gone.
    more = {f"emu/{name}": content for name, content in FILES.items()}
    for first, second, reason in (
        (tar, tar_bytes(more), "another tar follows"),
        (COMPRESS["xz"](tar), COMPRESS["xz"](tar_bytes(more)), "another tar follows"),
        (zip_bytes(), zip_bytes(more), "another zip lies in front"),
    ):
        path.write_bytes(first + second)
        with pytest.raises(UserError, match=reason):
            open_folder(path)


def test_the_format_is_known_by_what_is_in_the_file(tmp_path: Path) -> None:
    # A tar whose last file is a zip, and one whose first file is called like the mark of bzip2.
    tars = [
        tar_bytes(FILES | {"more.zip": zip_bytes({"x/1.png": b"x", "y/1.png": b"y"})}),
        tar_bytes({"BZh/1.png": b"z", **FILES}),
    ]
    for data in (
        *tars,
        zip_bytes(),
        b"#!/bin/sh\n" + zip_bytes(),
        *(compress(tar_bytes()) for compress in COMPRESS.values()),
    ):
        for name in ("set.zip", "set.tar.gz", "set"):
            (tmp_path / name).write_bytes(data)
            assert set(FILES) <= set(held(tmp_path / name).samples)


def test_a_hard_link_is_the_file_it_stands_for(tmp_path: Path) -> None:
    source = layout(tmp_path / "set", "cat/1", "dog/1", "dog/2")
    os.link(source / "dog" / "2.png", source / "cat" / "0.png")
    folder = held(source)
    assert len(folder.samples) == 4
    for kind in ("w", "w:gz"):
        with tarfile.open(tmp_path / "set.tar", kind) as tar:
            tar.add(source, "set")
        with tarfile.open(tmp_path / "set.tar") as tar:
            assert sum(entry.islnk() for entry in tar) == 1
        assert held(tmp_path / "set.tar").samples == {f"set/{name}": each for name, each in folder.samples.items()}
    # One to a file that is not there stays a defect.
    (tmp_path / "lost.tar").write_bytes(tar_bytes(FILES, tar_entry("cat/9.png", tarfile.LNKTYPE, "cat/8.png")))
    assert held(tmp_path / "lost.tar").problems == {
        "cat/9.png": "a link or device that stands for no file of the archive"
    }


def test_symbolic_links_are_followed_inside_an_archive(tmp_path: Path) -> None:
    links = {
        "cat/beside.png": "0.png",
        "cat/up.png": "../dog/./1.png",
        "dog/twice.png": "../cat/up.png",
        "cat/out.png": "../../dog/1.png",
        "cat/root.png": "/etc/passwd",
        "cat/gone.png": "gone",
        "cat/loop.png": "loop.png",
        "emu": "cat",
        "cat/around": "..",
    }
    (tmp_path / "set.tar").write_bytes(
        tar_bytes(FILES, *(tar_entry(name, tarfile.SYMTYPE, to) for name, to in links.items()))
    )
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
        for name, to in links.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(entry, to)
    source = tmp_path / "set"
    for name, content in FILES.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    for name, to in links.items():
        (source / name).symlink_to(to)
    for path in (tmp_path / "set.tar", tmp_path / "set.zip", source):
        found = held(path)
        assert found.samples["cat/beside.png"] == ("cat", FILES["cat/0.png"])
        assert found.samples["cat/up.png"] == ("cat", FILES["dog/1.png"])
        assert found.samples["dog/twice.png"] == ("dog", FILES["dog/1.png"])
        assert found.problems["emu"] == "a link to a folder that is read already, as cat"
        # Where there is no archive to leave, a link that leads out is followed if it leads to a file.
        out = {"cat/root.png"} if path == source else set()
        assert set(found.problems) == {"cat/out.png", "cat/root.png", "cat/gone.png", "cat/loop.png", "emu"} - out


def test_names_in_zips(tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    # UTF-8 without its flag, as many programs write it; and bytes that are none, as Linux has them.
    for raw, label in (("größe".encode(), "größe"), (b"gr\xf6\xdfe", r"gr\xf6\xdfe")):
        stand_in = "x" * len(raw)
        data = zip_bytes({"cat/0.png": b"cat", f"{stand_in}/0.png": b"1"})
        path.write_bytes(data.replace(stand_in.encode(), raw))
        assert held(path).samples[f"{label}/0.png"] == (label, b"1")
    # Flagged as UTF-8, and not.
    data = zip_bytes({"cat/0.png": b"cat", "größe/0.png": b"1"})
    path.write_bytes(data.replace("ö".encode(), b"\xe9x"))
    with pytest.raises(UserError, match=r"set\.zip: UnicodeDecodeError"):
        open_folder(path)


def test_reasons_are_told(tmp_path: Path) -> None:
    def reason(files: dict[str, bytes], change: tuple[bytes, bytes] = (b"", b"")) -> str:
        (tmp_path / "set.zip").write_bytes(zip_bytes(files).replace(*change))
        with pytest.raises(UserError, match="0 classes with images found") as caught:
            open_folder(tmp_path / "set.zip")
        return str(caught.value)

    assert "4 files ignored, such as cat/img0 (names of images end in .jpg" in reason(
        {f"{label}/img{i}": b"x" for label in ("cat", "dog") for i in range(2)}
    )
    assert "1 files ignored, such as images.zip" in reason({"images.zip": zip_bytes()})
    # The flags of the file's own header and of the directory, and the method in both.
    central = b"PK\x01\x02\x14\x03\x14\0"
    assert "4 files cannot be used, the first: cat/0.png (encrypted)" in reason(
        FILES, (central + b"\0", central + b"\1")
    )
    (tmp_path / "set.zip").write_bytes(b"PK\x07\x08" + zip_bytes())
    with pytest.raises(UserError, match="join them first: zip -s 0"):
        open_folder(tmp_path / "set.zip")


def test_a_method_that_is_not_read_is_named(tmp_path: Path) -> None:
    data = bytearray(zip_bytes())
    for mark, place in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        start = -1
        while (start := data.find(mark, start + 1)) >= 0:
            data[start + place] = 9
    (tmp_path / "set.zip").write_bytes(data)
    with pytest.raises(UserError, match=r"4 files cannot be used, the first: cat/0\.png \(compressed by Deflate64"):
        open_folder(tmp_path / "set.zip")


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"7z\xbc\xaf\x27\x1c", "7z"),
        (b"Rar!\x1a\x07", "RAR"),
        (b"\x28\xb5\x2f\xfd", "Zstandard"),
        (b"\x5d\0\0\x80", "lzma"),
    ],
)
def test_archives_that_are_not_read_are_named(head: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / "set").write_bytes(head + bytes(1000))
    with pytest.raises(UserError, match=f"{name}.*which is not read"):
        open_folder(tmp_path / "set")


def test_sparse_files_in_tars(tmp_path: Path) -> None:
    # PAX format 1.0: the list of pieces is in front of the content, here one piece behind a hole.
    content, listing = b"picture", b"1\n512\n7\n"
    stored = listing + bytes(512 - len(listing)) + content
    entry = tar_entry("GNUSparseFile.0/2.png", size=len(stored))
    entry.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "cat/2.png",
        "GNU.sparse.realsize": "519",
    }
    data = entry.tobuf(tarfile.PAX_FORMAT) + stored + bytes(-len(stored) % 512)
    (tmp_path / "set.tar").write_bytes(data + tar_bytes())
    assert held(tmp_path / "set.tar").samples["cat/2.png"] == ("cat", bytes(512) + content)
    (tmp_path / "set.tar").write_bytes(data.replace(b"1\n512", b"1\n513") + tar_bytes())
    assert "sparse" in held(tmp_path / "set.tar").problems["cat/2.png"]
    # GNU's own: pieces in the header, which has room for four.
    block = bytearray(tar_entry("cat/2.png", tarfile.GNUTYPE_SPARSE, size=7).tobuf(tarfile.GNU_FORMAT))
    block[386:495] = b"%011o\0%011o\0" % (512, 7) + bytes(73) + b"%011o\0" % 519
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    (tmp_path / "set.tar").write_bytes(bytes(block) + content + bytes(505) + tar_bytes())
    assert held(tmp_path / "set.tar").samples["cat/2.png"] == ("cat", bytes(512) + content)
