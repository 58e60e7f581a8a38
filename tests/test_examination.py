"""Problems of the data that are no backdoor: planted ones are found, what is none is not, and the report says each."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from report_runs import run_of
from unpoison.core.arrays import Images
from unpoison.core.errors import UserError
from unpoison.core.files import new_folder
from unpoison.core.manifest import write_manifest
from unpoison.data.imageset import ImageSet
from unpoison.data.problems import FORMAT, Problems, load_problems, save_problems
from unpoison.examination.duplicates import MOST_BITS, close
from unpoison.examination.examine import examine
from unpoison.examination.labels import contradicted
from unpoison.reporting.escaping import from_spreadsheet
from unpoison.reporting.problems import COLUMNS, problems_csv, problems_table
from unpoison.reporting.run import Examined, Run
from unpoison.reporting.sections import report

CLASSES = ("cat", "dog")
TRAIN, TEST = 8, 4
SPLITS = {"train": TRAIN, "test": TEST}


def pictures(count: int, *, channels: int = 3, side: int = 32) -> Images:
    """Smooth random images, of which no two look alike."""
    rng = np.random.default_rng(1)
    small = rng.integers(0, 256, (count, 6, 6, channels), dtype=np.uint8)
    images = [
        np.asarray(Image.fromarray(one.squeeze()).resize((side, side), Image.Resampling.BICUBIC)).reshape(
            side, side, channels
        )
        for one in small
    ]
    return np.stack(images)


def jpeg(image: Images) -> Images:
    """An image after it was a JPEG of quality 85."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=85)
    return np.asarray(Image.open(file))


def sets(images: Images, labels: Sequence[int], test_labels: Sequence[int]) -> tuple[ImageSet, ImageSet]:
    train = len(labels)
    return (
        ImageSet(images[:train], np.array(labels), CLASSES),
        ImageSet(images[train:], np.array(test_labels), CLASSES),
    )


def agreeing(labels: Sequence[int]) -> np.ndarray:
    """Logits of a model that says what the labels say."""
    return np.eye(len(CLASSES), dtype=np.float32)[np.array(labels)] * 10


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_which_none_is_a_problem(channels: int) -> None:
    labels, tested = [0, 1] * (TRAIN // 2), [0, 1] * (TEST // 2)
    data, test = sets(pictures(TRAIN + TEST, channels=channels), labels, tested)
    found = examine(data, [test], agreeing(labels))
    assert (len(found.pairs), len(found.constant), found.copies, (found.contradicted >= 0).sum()) == (0, 0, 0, 0)
    # As do sets of no test image.
    assert not len(examine(data, [test.subset(np.arange(0))], agreeing(labels)).pairs)


def test_planted_problems_are_found() -> None:
    images = pictures(TRAIN + TEST)
    labels, tested = [0, 1, 0, 1, 0, 1, 0, 1], [0, 1, 0, 1]
    images[3] = images[0]  # a copy under another label
    images[2] = images[0]  # and one in its class
    images[5] = jpeg(images[4])  # a near copy under another label
    images[9] = images[1]  # a test image that was trained on
    images[10] = jpeg(images[6])  # and one nearly so
    images[7], images[11] = 0, 255  # images of one colour, whose hashes are the same
    data, test = sets(images, labels, tested)
    found = examine(data, [test], agreeing(labels))
    by_pair = {tuple(pair): distance for pair, distance in zip(found.pairs.tolist(), found.distances, strict=True)}
    assert sorted(by_pair) == [(0, 3), (1, 9), (2, 3), (4, 5), (6, 10)]
    assert [pair for pair, distance in by_pair.items() if not distance] == [(0, 3), (2, 3), (1, 9)]
    assert 0 < by_pair[4, 5] < 0.05
    assert found.constant.tolist() == [7, 11]
    assert found.copies == 1


def test_splits_without_labels_are_looked_at_too() -> None:
    images, labels = pictures(TRAIN + TEST), [0, 1] * (TRAIN // 2)
    data, test = sets(images, labels, [0, 1, 0, 1])
    public = ImageSet(images[[1, 8]], np.array([-1, -1]), CLASSES)
    found = examine(data, [test, public], agreeing(labels))
    assert found.pairs.tolist() == [[1, 12], [8, 13]]
    everything, splits = data.followed_by(test, public), {**SPLITS, "public": 2}
    run = run_of(
        data=data,
        sources=[*map(str, range(TRAIN))],
        examined=Examined(found, everything, [*map(str, range(14))], splits),
    )
    table = problems_table(run)
    assert table["problem"].tolist() == ["copy in the public split"] * 2
    assert table[["split", "sample", "other_split", "other_sample", "other_label"]].to_numpy().tolist() == [
        ["train", "1", "public", "12", ""],
        ["test", "8", "public", "13", ""],
    ]


def test_hashes_are_close_as_by_comparing_all() -> None:
    rng = np.random.default_rng(2)
    hashed = rng.integers(0, 2**64, 300, dtype=np.uint64)
    # Of others one to eight bits are turned, wherever they are.
    for row in range(150):
        turned = np.bitwise_or.reduce(np.uint64(1) << rng.choice(64, 1 + row % 8, replace=False).astype(np.uint64))
        hashed[row] = hashed[row + 150] ^ turned
    kinds = rng.integers(0, 3, 300)
    found = {(int(a), int(b)) for first, second in close(hashed, kinds) for a, b in zip(first, second, strict=True)}
    apart = np.bitwise_count(hashed[:, None] ^ hashed[None])
    wanted = (apart <= MOST_BITS) & (kinds[:, None] != kinds) & np.triu(np.ones((300, 300), bool), 1)
    assert found == set(zip(*map(np.ndarray.tolist, np.nonzero(wanted)), strict=True))
    assert len(found) > 30


def test_labels_that_a_model_contradicts() -> None:
    logits = np.array([[5, 0, 0], [5, 0, 0], [0, 5, 0], [1, 1, 0.9]], np.float32)
    # The last one's answer has less than half.
    assert contradicted(logits, np.array([0, 2, 1, 2])).tolist() == [-1, 0, -1, -1]


def examined(problems: Problems, names: Sequence[str] = ()) -> Run:
    images = pictures(TRAIN + TEST)
    data, test = sets(images, [0] * 7 + [1], [0, 1, 0, 1])
    sources = [*names, *(f"{row}.png" for row in range(len(names), TRAIN + TEST))]
    about = {"name": "pets", "source": "here", "counts": {"train": TRAIN, "test": TEST}, "defects": 2}
    return run_of(
        data=data,
        about=about,
        sources=sources[:TRAIN],
        examined=Examined(problems, data.followed_by(test), sources, SPLITS),
    )


FOUND = Problems(
    pairs=np.array([[0, 7], [1, 8]]),
    distances=np.array([0.02, 0], np.float32),
    constant=np.array([2, 9]),
    contradicted=np.array([-1, -1, -1, 1, -1, -1, -1, -1]),
    copies=3,
)
NONE = Problems(np.zeros((0, 2), np.int64), np.zeros(0, np.float32), np.zeros(0, np.int64), np.full(TRAIN, -1), 0)


def test_the_report_says_each() -> None:
    run = examined(FOUND)
    table = problems_table(run)
    assert table["problem"].tolist() == [
        "copy in the test split",
        "near copy in another class",
        "image of one colour",
        "image of one colour",
        "label that the model contradicts",
    ]
    assert table.loc[1, ["sample", "label", "other_sample", "other_label"]].tolist() == ["0.png", "cat", "7.png", "dog"]
    said = report(run).markdown()
    for row in (
        "| copy in the test split | 1 | 1.png (label cat) and 8.png (label cat) |",
        "| image of one colour | 2 | 2.png (label cat) |",
        "| label that the model contradicts | 1 | 3.png (label cat): the model says 1 (dog) |",
        "| small class | 2 | 1 (dog): 1 training samples, half of the classes have 4 or more |",
        "| copy within a class | 3 |",
        "| file that cannot be used | 2 |",
    ):
        assert row in said, said
    assert "None was found" not in said
    clean = examined(NONE)
    clean = replace(
        clean,
        about={**clean.about, "defects": 0},
        data=ImageSet(np.repeat(clean.data.gather(np.arange(TRAIN)), 40, 0), np.arange(320) % 2, CLASSES),
        sources=[f"{row}.png" for row in range(320)],
    )
    assert "None was found" in report(clean).markdown()
    assert "no backdoor" not in report(run_of()).markdown()
    assert list(problems_table(run_of())) == COLUMNS


def test_names_in_the_list_do_nothing() -> None:
    name = '=cmd|"x\n,y'
    cells = list(csv.reader(io.StringIO(problems_csv(examined(FOUND, [name])))))
    assert from_spreadsheet(cells[2][2]) == pd.Series([name])[0].replace("\n", "\\n")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"pairs": np.array([[0, 12], [1, 8]])}, r"pairs\.npy: 1 values found that are not from 0 to 11"),
        ({"pairs": np.array([[-1, 7], [1, 8]])}, r"pairs\.npy: 1 values found"),
        ({"pairs": np.array([[7, 0], [1, 8]])}, "rows out of order"),
        ({"pairs": np.array([[0, 7]])}, r"distances\.npy: float32 of shape \(2,\) found, allowed: float32 \[1\]"),
        ({"distances": np.array([np.nan, 0])}, r"distances\.npy: 1 values found that are not from 0 to 1"),
        ({"distances": np.array([2, 0])}, r"distances\.npy: 1 values found"),
        ({"constant": np.array([9, 2])}, "rows out of order"),
        ({"contradicted": np.full(TRAIN, 2)}, r"contradicted\.npy: 8 values found that are not from -1 to 1"),
        (
            {"contradicted": np.full(TRAIN + 1, -1)},
            r"contradicted\.npy: int64 of shape \(9,\) found, allowed: int64 \[8\]",
        ),
    ],
)
def test_what_cannot_be_problems_is_refused(change: dict[str, np.ndarray], line: str, tmp_path: Path) -> None:
    save_problems(replace(FOUND, **change), tmp_path / "found", splits=SPLITS, classes=2, made_from={})
    with pytest.raises(UserError, match=line):
        load_problems(tmp_path / "found", splits=SPLITS, classes=2)


def test_problems_come_back_as_they_were(tmp_path: Path) -> None:
    folder = tmp_path / "found"
    save_problems(FOUND, folder, splits=SPLITS, classes=2, made_from={})
    again = load_problems(folder, splits=SPLITS, classes=2)
    for name, value in vars(FOUND).items():
        np.testing.assert_array_equal(getattr(again, name), value)
    (folder / "pairs.npy").write_bytes((folder / "pairs.npy").read_bytes()[:-1])
    with pytest.raises(UserError, match="digest mismatch"):
        load_problems(folder, splits=SPLITS, classes=2)
    with new_folder(folder) as staging:
        write_manifest(staging, "problems.json", {"format": FORMAT, "splits": SPLITS, "classes": 2, "copies": -1})
    with pytest.raises(UserError, match="copies: -1 found"):
        load_problems(folder, splits=SPLITS, classes=2)
