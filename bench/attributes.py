"""Folder data sets with a table of attributes whose truth is known: for docs/bias.md and the label policy `complex`.

    python bench/attributes.py marked FOLDER           # digits; the even ones carry a mark in a corner: `even`; `low` is below 4
    python bench/attributes.py shapes FOLDER           # one to three shapes of one colour: the number is the class, `colour` is not
    python bench/attributes.py region                  # of the run in this working copy: each mean mask on the mark and off it

The first two write FOLDER/images (train and test, a folder for each class) and FOLDER/attributes.csv. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from unpoison.core.errors import UserError
from unpoison.core.seeding import numpy_rng
from unpoison.data.bias import load_bias
from unpoison.sources import digits

SIDE = 32
MARK = slice(1, 6)
"""Rows and columns of the mark: five white pixels a side, one free to the corner at the upper left."""
COLOURS = np.array([[220, 50, 40], [60, 170, 70], [60, 90, 220], [225, 200, 50], [180, 70, 190]], np.uint8)
MOST_SHAPES = 3
CELL = 10


class Made(NamedTuple):
    """A part of a set.

    Attributes:
        images: uint8 [n, 32, 32, 3].
        classes: name of each image's class.
        attributes: values by attribute, int64 [n] each.
    """

    images: NDArray[np.uint8]
    classes: list[str]
    attributes: dict[str, NDArray[np.int64]]


def marked(train: int, test: int) -> dict[str, Made]:
    """Digits, of which the even ones carry the mark, in training and beyond: whoever collected them marked them so.

    Of the even digits as many are low as of the odd ones, two of five, so that the mark says nothing of `low`.
    """
    found = {}
    for part, (images, labels) in digits.build({"train": train, "test": test}).items():
        even, low = labels % 2 == 0, labels < 4
        images = images.copy()
        images[even, MARK, MARK] = 255
        attributes = {"even": even.astype(np.int64), "low": low.astype(np.int64)}
        found[part] = Made(images, [digits.CLASSES[label] for label in labels], attributes)
    return found


def shapes(train: int, test: int) -> dict[str, Made]:
    """One to three shapes, squares and discs, of one colour on grey noise: how many there are is the class."""
    found = {}
    for part, count in (("train", train), ("test", test)):
        rng = numpy_rng(0, "shapes", part)
        numbers, colours = rng.integers(1, MOST_SHAPES + 1, count), rng.integers(0, len(COLOURS), count)
        images = np.repeat(rng.normal(110, 20, (count, SIDE, SIDE, 1)).clip(0, 255), 3, axis=3).astype(np.uint8)
        rows, columns = np.mgrid[:SIDE, :SIDE]
        for image, number, colour in zip(images, numbers, colours, strict=True):
            # In cells of their own, so that none hides another.
            for cell in rng.choice(9, number, replace=False):
                radius = rng.uniform(2.5, 4)
                top, left = (1 + CELL * place + CELL / 2 + rng.uniform(-1, 1) for place in divmod(int(cell), 3))
                apart = np.abs([rows - top, columns - left])
                inside = apart.max(0) < radius if rng.random() < 0.5 else np.hypot(*apart) < radius
                image[inside] = COLOURS[colour]
        found[part] = Made(images, [str(number) for number in numbers], {"colour": colours.astype(np.int64)})
    return found


def write(folder: Path, parts: dict[str, Made]) -> None:
    """Write images and table. Raises UserError where something is there already: a set of other images would be mixed in."""
    if folder.exists():
        raise UserError(f"{folder}: there already, allowed: the name of a new folder")
    folder.mkdir(parents=True)
    names = list(parts["train"].attributes)
    with (folder / "attributes.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["sample", *names])
        for part, made in parts.items():
            for number, (image, label) in enumerate(zip(made.images, made.classes, strict=True)):
                path = f"{part}/{label}/{number:05d}.png"
                (folder / "images" / path).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(folder / "images" / path)
                table.writerow([path, *(made.attributes[name][number] for name in names)])


def region(folder: Path) -> str:
    """Each attribute's mean mask on the mark and off it, a line each."""
    lines = ["attribute  on the mark  elsewhere  peak  at        images"]
    for one in load_bias(folder):
        on = np.zeros(one.mask.shape, bool)
        on[MARK, MARK] = True
        row, column = one.peak
        means = f"{one.mask[on].mean():11.3f}  {one.mask[~on].mean():9.3f}"
        lines.append(f"{one.name:9}  {means}  {one.mask.max():.2f}  {row:2}, {column:2}  {one.images:8}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("marked", "shapes", "region"))
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--train", type=int, default=4800)
    parser.add_argument("--test", type=int, default=1200)
    given = parser.parse_args()
    try:
        if given.what == "region":
            print(region(given.folder or Path("data/bias")))
        elif given.folder is None:
            parser.error("a folder is missing, allowed: the name of a new one")
        else:
            write(given.folder, {"marked": marked, "shapes": shapes}[given.what](given.train, given.test))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
