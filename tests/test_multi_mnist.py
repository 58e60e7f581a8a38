"""MultiMNIST: pictures by hand, splits of other digits each, origins of single digits, tables that are none."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from test_sources import make_idx, with_digests
from unpoison.core.arrays import Images
from unpoison.core.errors import ParameterError, UserError
from unpoison.sources.multi_mnist import CLASSES, beside, open_multi_mnist
from unpoison.sources.single_digits import SIDE, single_digits

SIZES = {"train": 300, "test": 100, "reserve": 100, "public": 0}
EACH = 8
"""Digits of each kind in the table, each of a grey of its own."""
ELSEWHERE = Path("not this one")


def grey_of(digit: int, number: int) -> int:
    return 20 + 2 * (EACH * digit + number)


def row(digit: int, grey: int) -> str:
    return ",".join([str(grey)] * SIDE**2 + [str(digit)])


TABLE = "\n".join(row(digit, grey_of(digit, number)) for number in range(EACH) for digit in range(10))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "digits.csv"
    path.write_text(TABLE)
    return path


def opened(path: Path, seed: int = 0, **sizes: int) -> dict[str, tuple[Images, list[int]]]:
    """Images and labels by split."""
    source = open_multi_mnist(path, {**SIZES, **sizes}, seed=seed, own=ELSEWHERE)
    every = {name: np.arange(len(labels)) for name, labels in source.labels.items()}
    images: dict[str, list[Any]] = {name: [np.zeros((0, SIDE, SIDE, 1), np.uint8)] for name in every}
    for name, _, image in source.read(every):
        images[name].append(np.asarray(image)[None])
    return {name: (np.concatenate(images[name]), labels.tolist()) for name, labels in source.labels.items()}


def test_two_digits_lie_beside_each_other() -> None:
    white, black = np.full((SIDE, SIDE), 255, np.uint8), np.zeros((SIDE, SIDE), np.uint8)
    # Rows 8 to 35 of 45 are rows 5 to 22 of 28, the first 28 columns the first 17.4, those from 17 on all from 10.6.
    both = beside(white, white)
    assert (both[6:21] == 255).all()
    assert not both[:4].any()
    assert not both[24:].any()
    left, right = beside(white, black), beside(black, white)
    assert (left[6:21, :16] == 255).all()
    assert not left[:, 20:].any()
    assert (right[6:21, 13:] == 255).all()
    assert not right[:, :9].any()
    # Where both are, the brighter one shows.
    grey = np.full((SIDE, SIDE), 100, np.uint8)
    assert beside(grey, white)[14].tolist() == beside(white, grey)[14, ::-1].tolist()
    assert (beside(grey, white)[6:21, 14] == 255).all()


def test_scaling_is_that_of_the_whole_canvas() -> None:
    left, right = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE), dtype=np.uint8)
    canvas = np.zeros((45, 45), np.uint8)
    for i in range(SIDE):
        for j in range(SIDE):
            canvas[8 + i, j] = max(canvas[8 + i, j], left[i, j])
            canvas[8 + i, 17 + j] = max(canvas[8 + i, 17 + j], right[i, j])
    expected = np.asarray(Image.fromarray(canvas).resize((28, 28), Image.Resampling.BICUBIC))
    assert (beside(left, right) == expected).all()


def test_splits_are_of_other_digits_each(table: Path) -> None:
    digit_of = {grey_of(digit, number): digit for digit in range(10) for number in range(EACH)}
    used: dict[str, set[int]] = {}
    for name, (images, labels) in opened(table).items():
        assert images.shape == (SIZES[name], SIDE, SIDE, 1)
        assert images.dtype == np.uint8
        assert np.bincount(labels, minlength=100).tolist() == [SIZES[name] // 100] * 100
        # A digit is one grey, so that two pixels say which ones a picture is made of.
        pairs = images[:, 14, [3, 24], 0].tolist()
        assert [10 * digit_of[left] + digit_of[right] for left, right in pairs] == labels
        used[name] = {grey for pair in pairs for grey in pair}
    assert [len(used[name]) for name in SIZES] == [40, 20, 20, 0]
    assert not used["train"] & used["test"]
    assert not used["reserve"] & (used["train"] | used["test"])


def test_classes_are_the_numbers() -> None:
    assert CLASSES[:11] == ("00", "01", "02", "03", "04", "05", "06", "07", "08", "09", "10")
    assert (len(CLASSES), CLASSES[37], CLASSES[99]) == (100, "37", "99")


def test_the_same_seed_gives_the_same_bytes(table: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(TABLE.encode()))
    first, again, other = opened(table), opened(packed), opened(table, seed=1)
    for name, (images, labels) in first.items():
        assert images.tobytes() == again[name][0].tobytes()
        assert labels == again[name][1]
    assert first["train"][1] != other["train"][1]
    # The order of a split's numbers is its own.
    assert opened(table, train=500)["test"][1] == first["test"][1]


def test_digits_that_need_no_file(tmp_path: Path) -> None:
    digits = single_digits(tmp_path, own=tmp_path)
    images, labels = digits.parts["train"]
    assert (images.shape, images.dtype, len(labels)) == ((1797, 28, 28), np.uint8, 1797)
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    # As MNIST's digits: ink in a box of 20 pixels.
    assert not images[:, :4].any()
    assert not images[:, :, 24:].any()
    assert images[:, 4:24, 4:24].max() == 255
    assert (digits.source, digits.licence) == ("digits of scikit-learn", "digits: UCI, CC BY 4.0")


def test_mnist_keeps_its_test_digits_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = make_idx(tmp_path)
    with_digests("mnist", tmp_path, monkeypatch)
    # Its files come first, even in the folder that stands for the scans.
    digits = single_digits(tmp_path, own=tmp_path)
    assert (digits.parts["train"].images == images[..., 0]).all()
    assert (digits.parts["test"].images == images[:5, ..., 0]).all()
    assert digits.parts["test"].labels.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ParameterError, match=r"^path: 0 images of the digit 5 found in .*, allowed: at least 1"):
        open_multi_mnist(tmp_path, SIZES, seed=0, own=ELSEWHERE)


GOOD = row(3, 7)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"digits\.csv: empty, allowed: a line for each digit"),
        (
            b"label,pixel0\n",
            r"digits\.csv: line 1: 'label,pixel0' found, allowed: 784 whole numbers from 0 to 255 and a",
        ),
        (f"{GOOD}\n\n{GOOD}".encode(), r"line 2: '' found"),
        (f"{GOOD}\n{GOOD},1".encode(), r"line 2: '7,7,7"),
        (GOOD[2:].encode(), r"line 1: '7,7,7"),
        (GOOD.replace("7", "-7", 1).encode(), r"line 1: '-7,7"),
        (GOOD.replace("7", "0.5", 1).encode(), r"line 1: '0\.5,7"),
        (GOOD.replace("7", "nan", 1).encode(), r"line 1: 'nan,7"),
        (GOOD.replace("7", "256", 1).encode(), r"line 1: pixels up to 256 and the label 3 found"),
        (f"{GOOD[:-1]}10".encode(), r"line 1: pixels up to 7 and the label 10 found, allowed: up to 255, and 0 to 9"),
        (b"7," * 10_000_000, r"line 1: '7,7,7"),
        (gzip.compress(GOOD.encode(), mtime=0)[:-9], r"digits\.csv: not readable \("),
        (b"\x1f\x8bnothing", r"digits\.csv: not readable \("),
        (b"\xef\xbb\xbf" + GOOD.encode(), r"line 1: '\\ufeff7,7"),
        (
            "\n".join([GOOD] * 11).encode(),
            r"^path: 0 images of the digit 0 found in .*, allowed: at least 3, one for each",
        ),
    ],
)
def test_a_table_that_cannot_be_used(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "digits.csv").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        open_multi_mnist(tmp_path / "digits.csv", SIZES, seed=0, own=ELSEWHERE)
    assert "\n" not in str(caught.value)


def test_too_many_lines(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unpoison.sources.single_digits._MOST_ROWS", 79)
    with pytest.raises(UserError, match=r"digits\.csv: line 80: more than 79 lines found"):
        opened(table)


def test_a_split_too_small_for_every_number(table: Path) -> None:
    with pytest.raises(ParameterError, match=r"^reserve: 99 given, allowed: 0 or at least 100 \(one per number\)"):
        opened(table, reserve=99)
