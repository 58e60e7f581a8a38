"""The trusted reserve: its size as a share, and its three origins."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import prepare
from image_files import RNG, SIDE, encoded, layout, picture
from parameters import load_params
from report_runs import ABOUT, run_of
from tiny import ROOT
from unpoison.core.errors import UserError
from unpoison.data.imageset import ImageSet
from unpoison.data.store import open_split, read_about, read_sources
from unpoison.reporting.sections import data_of
from unpoison.sources import digits
from unpoison.sources.build import BuildSettings, build_base
from unpoison.sources.reserve import open_reserve
from unpoison.sources.source import Source
from unpoison.sources.splits import SplitSettings, arrange

DEFAULT = load_params(ROOT)
BASE = Path("data/base")


def prepared(folder: Path, monkeypatch: pytest.MonkeyPatch, **data: Any) -> dict[str, ImageSet]:
    """The splits that `prepare` writes, by default of a folder of 2 x 40 training and 2 x 5 test images."""
    params: Any = deepcopy(dict(DEFAULT))
    params["data"] |= {"name": "folder", "path": "set", "public": 6, **data}
    monkeypatch.chdir(folder)
    monkeypatch.setattr(prepare, "load_params", lambda: params)
    prepare.main()
    return {name: open_split(BASE, name) for name in ("train", "test", "reserve", "public")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    counts = {"train": 40, "test": 5}
    layout(tmp_path / "set", *[f"{part}/{label}/{i}" for part, n in counts.items() for label in "ab" for i in range(n)])
    return tmp_path


DIGITS: dict[str, Any] = {"name": "digits", "digits": {"train": 100, "test": 20}, "public": 20, "reserve": 0.2}


def pixels(data: ImageSet) -> list[bytes]:
    return [image.tobytes() for image in data.gather(np.arange(len(data)))]


def labelled(data: ImageSet) -> set[tuple[bytes, int]]:
    return set(zip(pixels(data), data.labels.tolist(), strict=True))


@pytest.mark.parametrize(("share", "count"), [(0.05, 4), (0.1, 8), (0.33, 26), (0.001, 1)])
@pytest.mark.parametrize("origin", ["held_out", "train"])
def test_a_share_is_of_the_sources_training_part(share: float, count: int, origin: Any) -> None:
    labels = {"train": np.arange(80) % 2, "test": np.arange(40) % 2}
    given = SplitSettings(reserve=share, reserve_from=origin, public=7)
    assert len(arrange(labels, given)["reserve"][1]) == count
    # Of the training part too where it is drawn from the test part.
    assert len(arrange(labels, replace(given, trusted="test"))["reserve"][1]) == count
    # Without a test part, of what the test split leaves.
    assert len(arrange({"train": np.arange(100) % 2}, given)["reserve"][1]) == count
    # A part of the source's own may hold fewer; of the training set itself it is no business.
    own = arrange({**labels, "reserve": np.arange(5) % 2}, given)["reserve"]
    assert len(own[1]) == (count if origin == "train" else min(count, 5))
    assert own[0] == ("train" if origin == "train" else "reserve")


def test_a_reserve_that_is_set_apart_is_in_no_other_split(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = prepared(folder, monkeypatch, reserve=0.1)
    assert {name: len(data) for name, data in splits.items()} == {"train": 66, "test": 10, "reserve": 8, "public": 6}
    for name in ("train", "test", "public"):
        assert not set(pixels(splits["reserve"])) & set(pixels(splits[name]))
    assert "reserve_from" not in read_about(BASE)


def test_a_reserve_of_the_training_set_leaves_it_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = prepared(folder, monkeypatch, reserve=0.1, reserve_from="train")
    assert {name: len(data) for name, data in splits.items()} == {"train": 74, "test": 10, "reserve": 8, "public": 6}
    assert labelled(splits["reserve"]) < labelled(splits["train"])
    assert len(labelled(splits["reserve"])) == 8
    assert np.bincount(splits["reserve"].labels).tolist() == [4, 4]
    train = dict(zip(read_sources(BASE, "train"), pixels(splits["train"]), strict=True))
    assert [train[name] for name in read_sources(BASE, "reserve")] == pixels(splits["reserve"])
    about = read_about(BASE)
    assert (about["reserve_from"], about["counts"]["reserve"], about["trusted"]) == ("train", 8, "train")
    # Another share is drawn from the same order, and a limit is kept.
    limited = prepared(folder, monkeypatch, reserve=0.25, reserve_from="train", train_limit=20)
    assert labelled(limited["reserve"]) == labelled(limited["train"])


def test_a_broken_training_image_is_missing_from_both(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(20):
        (folder / f"set/train/a/{i}.png").write_bytes(b"no picture")
    splits = prepared(folder, monkeypatch, reserve=40, public=0, reserve_from="train", on_error="skip")
    assert labelled(splits["reserve"]) < labelled(splits["train"])
    lines = (BASE / "defects.txt").read_text().splitlines()
    assert len(lines) == len(set(lines)) == read_about(BASE)["defects"] == 20


def test_digits_are_the_same_whatever_the_origin(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The same is asked for each time, which is why the splits are the same; rendering it takes a second.
    sizes = {"train": 100, "test": 20, "reserve": 20, "public": 20}
    rendered = {
        name: (RNG.integers(0, 256, (size, 32, 32, 3), np.uint8), RNG.permutation(size) % 10)
        for name, size in sizes.items()
    }
    asked: list[dict[str, int]] = []
    monkeypatch.setattr(digits, "build", lambda given: asked.append(given) or dict(rendered))
    apart = prepared(folder, monkeypatch, **DIGITS)
    assert (apart["reserve"].gather(np.arange(20)) == rendered["reserve"][0]).all()
    inside = prepared(folder, monkeypatch, **DIGITS, reserve_from="train")
    assert labelled(inside["reserve"]) < labelled(inside["train"])
    train = dict(zip(read_sources(BASE, "train"), pixels(inside["train"]), strict=True))
    assert [train[name] for name in read_sources(BASE, "reserve")] == pixels(inside["reserve"])
    layout(folder / "elsewhere", *[f"{digit}/{i}" for digit in range(10) for i in range(3)], "ten/0")
    outside = prepared(folder, monkeypatch, **DIGITS, reserve_from="other", reserve_path="elsewhere")
    assert (
        "prepare: elsewhere: the data have no classes ten: 1 images left out of the reserve" in capsys.readouterr().out
    )
    assert asked == [sizes] * 3
    for splits in (inside, outside):
        assert np.bincount(splits["reserve"].labels).tolist() == [2] * 10
        for name in ("train", "test", "public"):
            assert labelled(splits[name]) == labelled(apart[name])
    names = read_sources(BASE, "reserve")
    assert {name.rpartition("/")[0] for name in names} == {f"elsewhere/{digit}" for digit in range(10)}
    for name, image in zip(names, outside["reserve"].gather(np.arange(20)), strict=True):
        with Image.open(folder / name) as file:
            assert (np.asarray(file.resize((32, 32), Image.Resampling.BICUBIC)) == image).all()
    about = read_about(BASE)
    assert (about["reserve_from"], about["reserve_source"], about["counts"]["reserve"]) == ("other", "elsewhere", 20)


def test_another_source_has_its_labels_by_name_and_takes_the_shape_of_the_data(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Class 0 there is none here, `b` is 1 both times; a part that is called reserve goes before its training part.
    for name, level in {"train/_/x": 0, "train/a/x": 1, "train/b/x": 2, "reserve/a/y": 60, "reserve/b/y": 200}.items():
        path = folder / f"elsewhere/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(Image.new("RGB", (50, 40), (level, level, level)), "PNG"))
    splits = prepared(folder, monkeypatch, reserve_from="other", reserve_path="elsewhere")
    assert splits["reserve"].image_size == (SIDE, SIDE)
    assert read_sources(BASE, "reserve") == ["elsewhere/reserve/a/y.png", "elsewhere/reserve/b/y.png"]
    assert splits["reserve"].labels.tolist() == [0, 1]
    assert [set(image) for image in pixels(splits["reserve"])] == [{60}, {200}]
    assert len(splits["train"]) == 80 - 6


def test_a_grey_set_gets_a_grey_reserve(folder: Path) -> None:
    images = np.zeros((20, SIDE, SIDE, 1), np.uint8)
    labels = {"train": np.arange(16) % 2, "test": np.arange(4) % 2}
    source = Source(
        ("a", "b"),
        labels,
        {part: [f"{part}/{i}" for i in range(len(those))] for part, those in labels.items()},
        lambda rows: ((part, int(row), images[row]) for part, those in rows.items() for row in those),
        {},
    )
    split = SplitSettings(reserve=4, reserve_from="other", public=0)
    other = open_reserve(folder / "set", source.classes)
    build_base(source, folder / "base", split, BuildSettings(), defects=folder / "d.txt", other=other)
    reserve = open_split(folder / "base", "reserve")
    for name, image in zip(read_sources(folder / "base", "reserve"), reserve.gather(np.arange(4)), strict=True):
        with Image.open(folder / name) as file:
            assert (np.asarray(file.convert("L")) == image[..., 0]).all()


@pytest.mark.parametrize(
    ("files", "data", "message"),
    [
        (
            ["a/0", "c/0"],
            {},
            r"^params\.yaml: data\.reserve_path: elsewhere: no image of 1 of 2 classes \(b\); found: a, c; allowed",
        ),
        (["a/0"], {}, r"^params\.yaml: data\.reserve_path: elsewhere: 1 classes with images found"),
        (
            ["day/a/0", "day/b/0", "night/a/0", "night/b/0"],
            {},
            r"^params\.yaml: data\.reserve_path: elsewhere: layout: auto given, but .* cannot be told",
        ),
        (["a/0", "b/0"], {"reserve": 3}, r"data\.reserve: 3 given, allowed: at most 2, the images of these classes in"),
        (["a/0", "b/0"], {"reserve": 0.5}, r"data\.reserve: 0\.5 given, 40 images, allowed: at most 2, the images"),
        (["a/0", "b/0", "b/broken"], {}, r"data\.path: 1 of 93 files cannot be used: elsewhere/b/broken\.png \(not a"),
        (
            ["a/0", "b/broken"],
            {"on_error": "skip"},
            r"data\.reserve_path: class b is without a reserve image that can be used: all 1 are broken",
        ),
    ],
)
def test_another_source_that_cannot_be_used(
    files: list[str], data: dict[str, Any], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout(folder / "elsewhere", *files)
    for path in folder.rglob("broken.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(UserError, match=message):
        prepared(folder, monkeypatch, reserve_from="other", reserve_path="elsewhere", **data)
    assert not BASE.exists()


def test_sides_that_are_not_equal_need_a_number(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (folder / "set").rglob("*.png"):
        path.write_bytes(encoded(picture(size=(20, 16)), "PNG"))
    layout(folder / "elsewhere", "a/0", "b/0")
    with pytest.raises(
        UserError, match=r"data\.image_size: null given for images of 20x16 px, allowed with reserve_from"
    ):
        prepared(folder, monkeypatch, reserve_from="other", reserve_path="elsewhere")


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({}, None),
        ({"reserve_from": "train"}, "the 8 images of the reserve are in the training set as well"),
        (
            {"reserve_from": "other", "reserve_source": "elsewhere"},
            "the 8 images of the reserve are of another source, elsewhere",
        ),
        ({"reserve_from": {"a": []}}, None),
    ],
)
def test_the_report_says_where_the_reserve_is_from(about: dict[str, Any], said: str | None) -> None:
    text = data_of(run_of(about={**ABOUT, "counts": {"train": 80, "reserve": 8}, **about}))
    assert "images of the reserve" not in text if said is None else said in text
