"""Single handwritten digits, of which pictures of several are made: MNIST's files, a table, or scikit-learn's scans."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..core.arrays import Images, IntArray
from ..core.errors import UserError
from .digits import LICENCE
from .formats import unpacked
from .published import PUBLISHED, open_published

SIDE = 28
DIGITS = 10
_ROW = re.compile(rb"[0-9]{1,3}(?:,[0-9]{1,3}){%d}" % SIDE**2)
_MOST_ROW = 4 * (SIDE**2 + 1) + 2  # bytes of a line: values of three figures with their commas, and the line's end
_MOST_ROWS = 100_000  # MNIST has 70,000
_INK = 20  # side of the box that MNIST's digits lie in


class Part(NamedTuple):
    """Digits of one origin.

    Attributes:
        images: uint8 [n, 28, 28], 0 where there is no ink.
        labels: 0 to 9, int64 [n].
    """

    images: Images
    labels: IntArray


class SingleDigits(NamedTuple):
    """Single digits by part, and what they are for the manifest of the data made of them.

    Attributes:
        parts: `train` alone, or `train` and `test` where the source keeps them apart.
        source: their origin, in words.
        licence: terms of use.
    """

    parts: dict[str, Part]
    source: str
    licence: str


def single_digits(path: Path, *, own: Path) -> SingleDigits:
    """The digits that a path stands for.

    Args:
        path: a file: a table of digits; a folder: that of MNIST's four files, which are downloaded to it where the network
            allows.
        own: the folder that stands for scikit-learn's scans as long as none of MNIST's files lies there.

    Raises:
        UserError: a file that is no such table, or none of MNIST's; files that are missing and cannot be downloaded.
    """
    if path.is_file():
        return SingleDigits({"train": _table(path)}, f"digits of {path.name}", "unknown")
    published = PUBLISHED["mnist"]
    if path == own and all(file.path(path) is None for file in published.files):
        return SingleDigits({"train": _scans()}, "digits of scikit-learn", LICENCE.partition(";")[0])
    return _mnist(path)


def _mnist(folder: Path) -> SingleDigits:
    source = open_published("mnist", folder)
    parts = {}
    for name, labels in source.labels.items():
        images = np.zeros((len(labels), SIDE, SIDE), np.uint8)
        for _, row, image in source.read({name: np.arange(len(labels))}):
            # MNIST's reader has pixels for every row.
            images[row] = np.asarray(image)[..., 0]
        parts[name] = Part(images, labels)
    return SingleDigits(parts, "digits of MNIST", source.about["licence"])


def _table(path: Path) -> Part:
    """The digits of a text file, plain or gzipped: in each line 784 grey values from 0 to 255, row by row, and the digit."""
    images: list[Images] = []
    labels: list[int] = []
    try:
        with unpacked(path) as stream:
            # A limit for each line: what is no table may have none, and expand to anything.
            while line := stream.readline(_MOST_ROW + 1):
                content = line.rstrip(b"\r\n")
                where = f"{path}: line {len(labels) + 1}"
                if len(labels) == _MOST_ROWS:
                    raise UserError(f"{where}: more than {_MOST_ROWS} lines found, allowed: a line for each digit")
                if len(line) > _MOST_ROW or not _ROW.fullmatch(content):
                    raise UserError(
                        f"{where}: {content[:40].decode(errors='replace')!r} found, allowed: {SIDE**2} whole numbers from 0 to "
                        "255 and a digit, with commas between them"
                    )
                *pixels, label = map(int, content.split(b","))
                if max(pixels) > 255 or label >= DIGITS:
                    raise UserError(
                        f"{where}: pixels up to {max(pixels)} and the label {label} found, allowed: up to 255, and 0 to 9"
                    )
                images.append(np.array(pixels, np.uint8))
                labels.append(label)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not readable ({error})") from None
    if not labels:
        raise UserError(f"{path}: empty, allowed: a line for each digit, {SIDE**2} grey values and the digit")
    return Part(np.stack(images).reshape(-1, SIDE, SIDE), np.array(labels, np.int64))


def _scans() -> Part:
    """scikit-learn's 1,797 scans of 8 x 8 pixels as MNIST has its digits: 20 pixels wide, in the middle of 28."""
    from sklearn.datasets import load_digits

    scans, labels = load_digits(return_X_y=True)
    # The scans have 17 levels of ink.
    grey = np.rint(scans.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    images = np.zeros((len(grey), SIDE, SIDE), np.uint8)
    inner = slice((SIDE - _INK) // 2, (SIDE + _INK) // 2)
    for image, scan in zip(images, grey, strict=True):
        image[inner, inner] = np.asarray(Image.fromarray(scan).resize((_INK, _INK), Image.Resampling.BICUBIC))
    return Part(images, labels.astype(np.int64))
