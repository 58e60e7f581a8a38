"""Attributes of samples: the table beside a folder, the artefact in the base, the errors, each in one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

from common import CHECKED

import numpy as np
import pytest

import check_params
import prepare
from image_files import layout
from parameters import load_params
from tiny import ROOT
from unpoison.core.errors import ParameterError, UserError
from unpoison.core.files import read_json, write_json
from unpoison.core.manifest import write_manifest
from unpoison.data.store import open_split, read_about, read_attributes, read_sources
from unpoison.sources.attributes import Table, classes_with, read_table, values_of

DEFAULT = load_params(ROOT)
BASE = Path("data/base")
CSV = "image,smiling,who\ntrain/a/1.png,1,7\ntrain/b/2.png,0,0\n"


def table_of(folder: Path, text: str | bytes, name: str = "t.csv") -> Table:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_table(path)


def test_a_table_is_names_and_whole_numbers(tmp_path: Path) -> None:
    table = table_of(tmp_path, CSV)
    assert table.names == ("smiling", "who")
    assert table.rows == {"train/a/1.png": 0, "train/b/2.png": 1}
    assert table.values.dtype == np.int64
    assert table.values.tolist() == [[1, 7], [0, 0]]
    assert (table.largest("smiling"), table.largest("who")) == (1, 7)


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffimage, smiling\r\n./a//1.png, 1\r\na/2.png,-1\r\n\r\n",
        '"image","smiling"\n"a/1.png","1"\n"a/2.png","-1"\n',
        "2\nsmiling\na/1.png  1\na/2.png -1\n",
        "  2 \r\nsmiling \r\na/1.png\t1\r\na/2.png  -1\r\n",
    ],
    ids=["spaces", "quotes", "celeba", "celeba-tabs"],
)
def test_minus_one_and_one_are_no_and_yes_in_every_layout(text: str, tmp_path: Path) -> None:
    table = table_of(tmp_path, text)
    assert (table.names, dict(table.rows)) == (("smiling",), {"a/1.png": 0, "a/2.png": 1})
    assert table.values.tolist() == [[1], [0]]


def test_a_column_of_one_value_is_as_it_is_written(tmp_path: Path) -> None:
    assert table_of(tmp_path, "i,yes,no,three\na,1,-1,3\nb,1,-1,3\n").values.tolist() == [[1, 0, 3], [1, 0, 3]]


BAD: dict[str, tuple[str | bytes, str]] = {
    "nothing": ("", r"line 1: 0 attributes named, allowed: 1 to 1000"),
    "one column": ("image\na.png\n", r"line 1: 0 attributes named, allowed"),
    "no rows": ("image,smiling\n", r"no sample found, allowed: a line for each"),
    "too few cells": ("i,a,b\nx,1\n", r"line 2: 2 cells found, allowed: 3, a sample and 2 values"),
    "too many cells": ("i,a\nx,1\ny,1,0\n", r"line 3: 3 cells found, allowed: 2"),
    "a word": ("i,a\nx,1\ny,yes\n", r"line 3: a: 'yes' given, allowed: 0 or 1, or -1 or 1, or whole numbers from 0"),
    "a fraction": ("i,a\nx,0.5\n", r"line 2: a: '0\.5' given, allowed"),
    "not finite": ("i,a\nx,nan\n", r"line 2: a: 'nan' given, allowed"),
    "an underscore": ("i,a\nx,1_0\n", r"line 2: a: '1_0' given, allowed"),
    "empty": ("i,a\nx,\n", r"line 2: a: '' given, allowed"),
    "too large": ("i,a\nx,1000000001\n", r"line 2: a: '1000000001' given, allowed"),
    "below zero": ("i,a\nx,3\ny,-1\n", r"line 3: a: -1 given, allowed: 0 or 1, or -1 or 1"),
    "-1, 0, 1": ("i,a\nx,0\ny,-1\nz,1\n", r"line 3: a: -1 given, allowed"),
    "a sample twice": (
        "i,a\nx/1.png,0\ny,1\n./x//1.png,1\n",
        r"line 4: x/1\.png is there a second time, after line 2; allowed",
    ),
    "no sample's name": ("i,a\n,0\n", r"line 2: no sample named"),
    "a name twice": ("i,a, a\nx,0,1\n", r"line 1: 'a' names two attributes, allowed: each name once"),
    "no name": ("i,a,\nx,0,1\n", r"line 1: attribute 2 is called '', allowed: a name"),
    "an unprintable name": ("i,a\x07\nx,0\n", r"line 1: attribute 1 is called 'a\\x07', allowed: a name"),
    "an open quote": ('i,a\n"x,0\n', r"line 3: no line of a table|line 2: no line of a table"),
    "no text": (b"i,a\nx\xff,0\n", r"byte 5 is no UTF-8, allowed: a table as text"),
    "too few announced": ("1\na\nx 1\ny 1\n", r"line 1: 1 samples announced, 2 lines found; allowed: as many"),
    "too many announced": ("99999999999\na\nx 1\n", r"line 1: 99999999999 samples announced, 1 lines found"),
    "announced alone": ("0\n", r"line 2: 0 attributes named"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_table_is_one_line(name: str, tmp_path: Path) -> None:
    text, message = BAD[name]
    with pytest.raises(ParameterError, match=rf"^attributes: .*t\.csv: ({message})") as caught:
        table_of(tmp_path, text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_what_is_no_file_is_one_line(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "t")
    with pytest.raises(UserError, match=r"/t: a (folder|pipe or device) found, allowed: a regular file$"):
        read_table(tmp_path / "t")


def test_a_row_is_found_by_path_or_by_a_name_that_is_the_only_one(tmp_path: Path) -> None:
    table = table_of(tmp_path, "i,v\ntrain/a/1.png,4\n2.png,5\ntest/a/1.png,6\n9.png,7\n")
    found, unused = values_of(table, {"train": ["train/a/1.png", "train/b/2.png"], "test": ["test/a/1.png"]})
    assert {part: values.tolist() for part, values in found.items()} == {"train": [[4], [5]], "test": [[6]]}
    assert unused == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("train/a/1.png,0", r"no row for 2 of 3 samples, such as train/b/1\.png; allowed: one for each"),
        (
            "train/a/1.png,0\n1.png,1\ntest/a/2.png,0",
            r"1\.png stands for 2 samples, such as train/b/1\.png; allowed: the paths",
        ),
        (
            "train/a/1.png,0\ntrain/b/1.png,0\ntest/a/2.png,0\n2.png,1",
            r"test/a/2\.png has two rows, one by its path and one by",
        ),
    ],
)
def test_samples_without_a_row_of_their_own(rows: str, message: str, tmp_path: Path) -> None:
    table = table_of(tmp_path, f"i,v\n{rows}\n")
    with pytest.raises(ParameterError, match=rf"^attributes: .*t\.csv: {message}"):
        values_of(table, {"train": ["train/a/1.png", "train/b/1.png"], "test": ["test/a/2.png"]})


def test_a_head_has_a_place_for_every_value(tmp_path: Path) -> None:
    table = table_of(tmp_path, "i,who,yes,far\nx,3,1,20000\ny,0,0,0\n")
    assert classes_with(table, "who", ("one", "two")) == ("one", "two", "who 2", "who 3")
    assert classes_with(table, "yes", ("one", "two")) == ("one", "two")
    for name, classes, message in (
        ("who", ("one", "who 3"), r"'who' given, but a class is called 'who 3' already"),
        ("far", ("one",), r"'far' given, whose values go up to 20000, allowed: below 20000"),
        ("age", ("one",), r".*'age' given, allowed: attributes of .*t\.csv, who, yes, far$"),
    ):
        with pytest.raises(ParameterError, match=rf"^classes_of.*{message}"):
            classes_with(table, name, classes)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder set of 2 x 20 training and 2 x 4 test images, and a table of their numbers, and whether each is odd."""
    names = [
        f"{part}/{label}/{part}{n}"
        for part, count in (("train", 20), ("test", 4))
        for label in "ab"
        for n in range(count)
    ]
    layout(tmp_path / "set", *names)
    rows = [f"{name}.png,{number % 2},{number}" for number, name in enumerate(names)]
    (tmp_path / "t.csv").write_text("i,even,number\n" + "\n".join(rows) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prepared(monkeypatch: pytest.MonkeyPatch, **data: Any) -> dict[str, Any]:
    params: Any = deepcopy(dict(DEFAULT))
    params["data"] |= {"name": "folder", "path": "set", "public": 6, "reserve": 4, "attributes": "t.csv", **data}
    monkeypatch.setattr(prepare, "load_params", lambda: params)
    prepare.main()
    return read_about(BASE)


def numbers(split: str) -> list[int]:
    return read_attributes(BASE, split).of("number").tolist()


def expected(split: str) -> list[int]:
    """The numbers of the samples of a split, by the table."""
    rows = dict(line.split(",")[::2] for line in Path("t.csv").read_text().splitlines())
    return [int(rows[name]) for name in read_sources(BASE, split)]


@pytest.mark.parametrize("origin", ["held_out", "train"])
def test_every_split_that_has_labels_has_attributes(
    origin: str, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Path("t.csv").open("a") as table:
        table.write("elsewhere.png,1,99\n")
    about = prepared(monkeypatch, reserve_from=origin, train_limit=24)
    assert about["attributes"] == ["even", "number"]
    assert "prepare: 1 rows of t.csv stand for no sample" in capsys.readouterr().out
    for split in ("train", "test", "reserve"):
        assert len(expected(split)) == len(open_split(BASE, split)) == {"train": 24, "test": 8, "reserve": 4}[split]
        assert numbers(split) == expected(split)
        assert read_attributes(BASE, split).of("even").tolist() == [number % 2 for number in expected(split)]
    assert not (BASE / "public/attributes.npy").exists()
    with pytest.raises(ParameterError, match=r"^attribute: 'number' given, allowed: none"):
        numbers("public")


def test_a_broken_image_takes_its_attributes_along(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        (project / f"set/train/a/train{number}.png").write_bytes(b"no picture")
    prepared(monkeypatch, on_error="skip", public=0, reserve=0)
    assert numbers("train") == expected("train")
    assert len(numbers("train")) == 35


def test_without_a_table_the_base_is_what_it_was(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "attributes" in prepared(monkeypatch)
    about = prepared(monkeypatch, attributes=None)
    assert "attributes" not in about
    assert not [name for name in about["files"] if "attributes" in name]
    assert list(BASE.rglob("*attributes*")) == []


def test_a_reserve_of_another_source_has_none(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout(project / "other", *[f"{label}/{n}" for label in "ab" for n in range(4)])
    prepared(monkeypatch, reserve_from="other", reserve_path="other", classes_of="number")
    assert numbers("train") == expected("train")
    assert read_attributes(BASE, "reserve").names == ()
    # The reserve is asked for images of the classes that have some.
    assert len(open_split(BASE, "train").classes) == 48
    assert open_split(BASE, "reserve").classes[:3] == ("a", "b", "number 2")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "digits"}, r"data\.attributes: 't\.csv' given, allowed with name: folder; otherwise null$"),
        ({"name": "multi_mnist"}, r"data\.attributes: 't\.csv' given, allowed with name: folder; otherwise null$"),
        (
            {"attributes": None, "classes_of": "even"},
            r"data\.classes_of: 'even' given, allowed with attributes: a file",
        ),
        ({"attributes": 3}, r"data\.attributes: 3 given; input should be a valid string$"),
        (
            {"attributes": "u.csv"},
            r"data\.attributes: 'u\.csv' given, which does not exist; allowed: a table of attributes$",
        ),
        ({"attributes": "set"}, r"set: a folder found, allowed: a regular file$"),
        (
            {"classes_of": "age"},
            r"data\.classes_of\.attribute: 'age' given, allowed: attributes of t\.csv, even, number$",
        ),
    ],
)
def test_parameters_that_do_not_fit_stop_before_any_stage(data: dict[str, Any], message: str, project: Path) -> None:
    params: Any = deepcopy(dict(DEFAULT))
    params["data"] |= {"name": "folder", "path": "set", "attributes": "t.csv", **data}
    with pytest.raises(UserError, match=message) as caught:
        check_params.check_all(params)
    assert "\n" not in str(caught.value)


def test_bias_and_complex_ask_for_attributes_that_are_there(project: Path) -> None:
    def check(bias: list[str] | None = None, data: dict[str, Any] | None = None, **attack: Any) -> None:
        params: Any = deepcopy(dict(DEFAULT))
        params["data"] |= {"name": "folder", "path": "set", "attributes": "t.csv", **(data or {})}
        params["bias"] = {"attributes": bias or []}
        params["attack"] |= attack
        check_params.check_all(params)

    check(["even"])
    check(label_policy="complex", attribute="number")
    cases: list[tuple[Any, Any, dict[str, Any], str]] = [
        (["age"], {}, {}, r"bias\.attributes: \['age'\] given, allowed: attributes out of t\.csv, even, number$"),
        (
            ["number"],
            {},
            {},
            r"bias\.attributes: .* given, number with values up to 47; allowed: attributes of 0 and 1$",
        ),
        (["even", "even"], {}, {}, r"bias\.attributes: .* given, allowed: each once$"),
        (["even"], {"attributes": None}, {}, r"bias\.attributes: .* given, allowed with data\.attributes null: \[\]$"),
        (
            ["even"],
            {"reserve": 0},
            {},
            r"bias\.attributes: .* given, allowed with data\.reserve: 0: \[\], as no held-out",
        ),
        (
            [],
            {},
            {"label_policy": "complex"},
            r"attack\.attribute: None given, allowed: attributes out of t\.csv, even, number$",
        ),
        (
            [],
            {},
            {"label_policy": "complex", "attribute": "age"},
            r"attack\.attribute: 'age' given, allowed: attributes out of t",
        ),
        (
            [],
            {"attributes": None},
            {"label_policy": "complex", "attribute": "age"},
            r"attack\.label_policy: complex given, allowed with data\.attributes null: the others$",
        ),
    ]
    for bias, data, attack, message in cases:
        with pytest.raises(UserError, match=rf"^params\.yaml: ({message})"):
            check(bias, data, **attack)


def test_complex_poisons_the_files_so_that_training_may_be_shared_or_private(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_params, "check_installed", lambda: None)
    wanted: tuple[dict[str, Any], ...] = ({"federation": {"attackers": 1}}, {"privacy": {"noise": 1.0}})
    for train in wanted:
        params: Any = deepcopy(dict(DEFAULT))
        params["data"] |= {"name": "folder", "path": "set", "attributes": "t.csv"}
        params["attack"] |= {"label_policy": "complex", "attribute": "number"}
        params["model"]["norm"] = "group"
        params["train"] |= {"whiten": False, **train}
        check_params.check_all(params)
        # But for one that has a hand in it.
        params["attack"]["name"] = "blind"
        with pytest.raises(UserError, match=r"train\.(federation|privacy): given.* blind"):
            check_params.check_all(params)


def test_a_table_that_changed_since_it_was_checked(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CHECKED.mkdir(parents=True)
    write_json(CHECKED / "attributes.json", {"attributes": "0" * 64})
    prepared(monkeypatch)  # by hand
    monkeypatch.setenv("DVC_STAGE", "prepare")
    with pytest.raises(
        UserError, match=r"^params\.yaml: data\.attributes: 't\.csv' given, changed since `check_params` ran"
    ):
        prepared(monkeypatch)


@pytest.mark.parametrize(
    ("values", "names", "message"),
    [
        (
            np.zeros((36, 3), np.int64),
            None,
            r"attributes\.npy: int64 of shape \(36, 3\) found, allowed: int64 \[\d+, 2\]",
        ),
        (np.zeros((30, 2), np.float32), None, r"attributes\.npy: float32 of shape"),
        (None, ["even", "even"], r"manifest\.json: attributes: a name is there twice, allowed: each once$"),
        (-1, None, r"attributes\.npy: -1 found, allowed: values from 0$"),
    ],
)
def test_a_damaged_artefact_is_one_line(
    values: Any, names: list[str] | None, message: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(monkeypatch)
    content = read_json(BASE / "manifest.json")
    if values is not None:
        path = BASE / "train/attributes.npy"
        np.save(path, np.full_like(np.load(path), values) if isinstance(values, int) else values)
    write_manifest(BASE, "manifest.json", {**content, "attributes": names or content["attributes"]})
    with pytest.raises(UserError, match=message):
        read_attributes(BASE, "train")
