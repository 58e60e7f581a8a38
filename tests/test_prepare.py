"""The stage `prepare`: what it says of a source, and what is known before a source is read."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import check_params
import prepare
from image_files import encoded, layout, picture
from parameters import load_params
from picture_bytes import encoded as encoded_pixels
from sizes import training_size
from tiny import ROOT
from unpoison.core.errors import UserError
from unpoison.data.store import open_split, read_about

DEFAULT = load_params(ROOT)


def with_data(**data: Any) -> dict[str, Any]:
    params: Any = deepcopy(dict(DEFAULT))
    params["data"] |= data
    return dict(params)


def prepared(folder: Path, monkeypatch: pytest.MonkeyPatch, **data: Any) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(prepare, "load_params", lambda: with_data(**{"name": "folder", "path": "set", **data}))
    prepare.main()


def test_numbers_of_the_trusted_splits_that_are_null() -> None:
    for name in ("digits", "cifar10", "imagenet"):
        given = prepare.settings(with_data(name=name, reserve=None, public=None))
        assert (given.reserve, given.public) == (600, 1200)
    for name, count in (("digits", 240), ("cifar10", 2500), ("gtsrb", 1332)):
        given = prepare.settings(with_data(name=name, reserve=0.05))
        assert given.reserve_size == given.most("reserve") == count
    # Only a reserve that is set apart is missing from what is trained on.
    sizes = [
        training_size(prepare.settings(with_data(name="cifar10", reserve=0.05, reserve_from=origin)))[0]
        for origin in ("held_out", "train", "other")
    ]
    assert sizes == [50_000 - 2500 - 1200, 50_000 - 1200, 50_000 - 1200]
    other = prepare.settings(with_data(name="cifar10", reserve=None, reserve_from="other"))
    assert (other.reserve, other.most("reserve")) == (None, 600)
    own = prepare.settings(with_data(name="folder", reserve=None, public=None))
    assert (own.reserve, own.public) == (None, None)
    assert prepare.settings(with_data(name="folder", reserve=7, public=0)).most("reserve") == 7


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"digits": {"train": 10**12}}, r"data\.digits\.train: 1000000000000 given"),
        (
            {"public": 10**12},
            r"data\.public: 1000000000000 given, allowed: 0 or at least 10, one per class, and up to 100000",
        ),
        ({"train_limit": 9}, r"data\.train_limit: 9 given, allowed: at least 10, one training sample for each class"),
        ({"name": "cifar100", "train_limit": 99}, r"data\.train_limit: 99 given, allowed: at least 100"),
        ({"name": "gtsrb", "train_limit": 42}, r"data\.train_limit: 42 given, allowed: at least 43"),
        (
            {"name": "cifar10", "reserve": 50_000},
            r"data\.reserve: 50000 given, allowed: at most 49990 of .* train part of cifar10",
        ),
        (
            {"name": "cifar10", "reserve": 0.9999},
            r"data\.reserve: 0\.9999 given, 49995 images, allowed: at most 49990 of .* train part of cifar10",
        ),
        (
            {"name": "cifar10", "reserve": 0.5, "reserve_from": "train", "train_limit": 5000},
            r"data\.reserve: 0\.5 given, 25000 images, allowed: at most 5000, the training images that it is drawn from",
        ),
        (
            {"reserve": 4801, "reserve_from": "train"},
            r"data\.reserve: 4801 given, allowed: at most 4800, the training images",
        ),
        (
            {"reserve_from": "other", "reserve_path": "no/such/folder"},
            r"data\.reserve_path: 'no/such/folder' given, where there is nothing; allowed with data\.reserve_from: other",
        ),
        (
            {"name": "mnist", "reserve": 9000, "public": 9000, "trusted": "test"},
            r"data\.public: 9000 given, allowed: at most 990",
        ),
    ],
)
def test_what_is_known_of_a_source_is_checked_before_it_is_read(data: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_params.check_all(with_data(**data))


def test_parameters_of_a_folder_are_checked_without_its_numbers(tmp_path: Path) -> None:
    layout(tmp_path, "a/1", "b/1")
    check_params.check_all(with_data(name="folder", path=str(tmp_path), image_size=32, reserve=None, public=None))


def test_a_small_folder_is_split_by_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout(tmp_path / "set", *[f"{label}/{i}" for label in "abc" for i in range(10)])
    prepared(tmp_path, monkeypatch)
    found = {
        name: np.bincount(open_split(Path("data/base"), name).labels).tolist() for name in ("train", "reserve", "test")
    }
    assert found == {"train": [4, 4, 4], "reserve": [2, 2, 2], "test": [2, 2, 2]}
    assert len(open_split(Path("data/base"), "public")) == 6


def test_12_bits_in_16_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    layout(tmp_path / "set", *[f"{label}/{i}" for label in "ab" for i in range(4)])
    dark = np.arange(256, dtype=np.uint16).reshape(16, 16) * 16
    for name in ("a/x.png", "b/y.png"):
        (tmp_path / "set" / name).write_bytes(encoded_pixels(dark, "PNG"))
    (tmp_path / "set/a/z.png").write_bytes(encoded_pixels(dark * 16, "PNG"))
    prepared(tmp_path, monkeypatch, reserve=0, public=0)
    assert (
        "prepare: 2 files of 16 bits have no value past 4095 of 65535 (the first: a/x.png)" in capsys.readouterr().out
    )
    assert read_about(Path("data/base"))["dim"] == {"count": 2, "first": "a/x.png"}


@pytest.mark.parametrize("limit", [None, 4])
def test_a_class_whose_files_are_all_broken_is_named(
    limit: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout(tmp_path / "set", *[f"{part}/{label}/{i}" for part in ("train", "test") for label in "ac" for i in range(4)])
    for i in range(3):
        path = tmp_path / "set/train/bird" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(picture(), "PNG")[:-20])
    with pytest.raises(
        UserError,
        match=r"data\.path: class bird is without a train image that can be used: all \d are broken \(train/bird/\d\.png: "
        r"truncated.*listed in .*defects\.txt; allowed: at least one whole image in every class",
    ):
        prepared(tmp_path, monkeypatch, on_error="skip", reserve=0, public=0, train_limit=limit)
    assert not Path("data/base").exists()
    assert "train/bird/0.png: truncated" in next(tmp_path.rglob("defects.txt")).read_text() or limit


def test_a_test_split_without_a_whole_image_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout(tmp_path / "set", *[f"train/{label}/{i}" for label in "ab" for i in range(4)], "test/a/1", "test/b/1")
    for name in ("a", "b"):
        (tmp_path / "set/test" / name / "1.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"class a \(and 1 more classes\) is without a test image that can be used"):
        prepared(tmp_path, monkeypatch, on_error="skip", reserve=0, public=0)
