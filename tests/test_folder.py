"""Folders of images: every format, mode and defect, through to a base data set."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from image_files import BROKEN, GOOD, IGNORED, SIDE, SMALL, build, encoded, fill, image_of, layout, picture
from unpoison.core.errors import UserError
from unpoison.data import shards
from unpoison.data.store import open_split, read_about, read_sources
from unpoison.sources import build as build_module
from unpoison.sources import decode
from unpoison.sources.folder import open_folder
from unpoison.sources.splits import SplitSettings


def test_fail_names_every_broken_file_and_leaves_nothing(tmp_path: Path) -> None:
    source = fill(tmp_path / "set", broken=True)
    with pytest.raises(UserError, match=r"^path: 11 of 41 files cannot be used: .* and 3 more; all of them") as caught:
        build(source, tmp_path / "base")
    assert "\n" not in str(caught.value)
    assert "or on_error: skip" in str(caught.value)
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
    full = decode.to_square(image, 32, "crop").astype(int)
    assert np.abs(decode.decode(encoded(image, "JPEG", quality=95), 32, "crop").astype(int) - full).max() <= 3


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


@pytest.mark.parametrize(
    ("names", "split", "message"),
    [
        (["a/1", "a/2"], SMALL, r"1 classes with images found \(a\), allowed: at least two"),
        (["train/a/1", "train/b/1", "test/c/1"], SMALL, "test has classes that train has not: c; allowed: a, b"),
        (
            ["a/1", "a/2", "b/1", "b/2"],
            SplitSettings(reserve=3, public=0),
            r"^reserve: 3 given, allowed: at most 0 of the 2 .* train part, as one stays in every class \(the smallest, a, has 1",
        ),
        (
            ["a/1", "a/2", "b/1", "b/2"],
            SplitSettings(reserve=0, public=2),
            r"^public: 2 given, allowed: at most 0 of the 2 samples",
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
        UserError, match=r"^image_size: null given, but images differ in size \(16x16, and b/3\.png is 20x30"
    ):
        build(source, tmp_path / "base", image_size=None)


def test_chunks_of_large_files_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "CHUNK_BYTES", 100)
    items = [("train", row, bytes(size)) for row, size in enumerate([60, 60, 10, 200, 5])]
    assert [[row for _, row, _ in chunk] for chunk in build_module._chunks(iter(items))] == [[0, 1], [2, 3], [4]]


def test_links_in_a_folder_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    source = layout(tmp_path / "set", "a/1", "b/1", "b/2")
    (source / "a" / "again").symlink_to(source / "a")
    (source / "a" / "2.png").symlink_to(source / "b" / "2.png")
    (source / "a" / "3.png").symlink_to(source / "nowhere.png")
    opened = open_folder(source)
    assert opened.names["train"] == ["a/1.png", "a/2.png", "b/1.png", "b/2.png"]
    assert opened.problems == [("a/3.png", "neither a file nor a link to one")]


def test_a_path_that_is_longer_than_the_system_takes_is_a_defect(tmp_path: Path) -> None:
    source = layout(tmp_path / "set", "a/1", "b/1")
    place = os.open(source, os.O_RDONLY)
    for _ in range(25):
        os.mkdir("d" * 200, dir_fd=place)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = below
    os.close(place)
    opened = open_folder(source)
    assert opened.names["train"] == ["a/1.png", "b/1.png"]
    assert [reason for _, reason in opened.problems] == ["a folder that cannot be read: File name too long"]


@pytest.mark.parametrize("name", ["a\0b", "absent", "link"])
def test_a_path_that_is_none_is_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"no such file or folder|embedded null byte"):
        open_folder(tmp_path / name)


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
