"""MultiMNIST: numbers of two handwritten digits, 00 to 99.

As Bagdasaryan & Shmatikov use it ("Blind Backdoors in Deep Learning Models", USENIX Security 2021, section 4), after Sabour et
al. ("Dynamic Routing Between Capsules", 2017) and Sener & Koltun ("Multi-Task Learning as Multi-Objective Optimization", 2018).

Two digits of 28 x 28 pixels lie beside each other on a canvas of 45 x 45, whose columns 17 to 27 both have, and the brighter of two
pixels shows; the canvas is then scaled to 28 x 28. The frames overlap by 11 columns, and as MNIST's digits have four empty columns
on either side the ink of few pairs does: the picture can be read as a number, the left digit first.

Published code: https://github.com/ebagdasa/backdoors101/blob/9f48fbb/dataset/multi_mnist_loader.py. Here the canvas is scaled
with antialiasing (there by the nearest pixel, which drops strokes), the digits are in its middle (there 5 rows from the top), every
number is as frequent as the next (there pairs are drawn at random), and the splits are made of other digits each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..core.arrays import Images, IntArray
from ..core.errors import ParameterError
from ..core.seeding import numpy_rng
from .digits import share_out
from .single_digits import DIGITS, SIDE, Part, single_digits
from .source import Rows, Source

CLASSES = tuple(f"{number:02d}" for number in range(DIGITS**2))
CANVAS = 45
"""Side of the canvas that both digits lie on."""
_TOP, _RIGHT = (CANVAS - SIDE) // 2, CANVAS - SIDE  # first row of both digits, first column of the right one


def open_multi_mnist(path: Path, sizes: Mapping[str, int], *, seed: int, own: Path) -> Source:
    """The source of as many images as are asked for.

    Args:
        path: where the single digits are, as in `single_digits`.
        sizes: number of images by split, 0 or at least 100. `train` and those beside it but `test` share out the digits of
            MNIST's training part, `test` has those of its test part; digits that are not apart are shared out among all.
        seed: seed of the draws.
        own: the folder that stands for the digits that need no file.

    Returns:
        A source whose parts are the splits, `public` with its labels; images uint8 [28, 28, 1]. The number of class `c` is c.

    Raises:
        ParameterError: a split too small to hold every number; fewer digits of a kind than there are splits.
        UserError: as `single_digits`.
    """
    for name, size in sizes.items():
        if 0 < size < len(CLASSES):
            raise ParameterError(f"{name}: {size} given, allowed: 0 or at least {len(CLASSES)} (one per number)")
    digits = single_digits(path, own=own)
    made: dict[str, tuple[Images, IntArray]] = {}
    for part, those in digits.parts.items():
        of_part = {name: size for name, size in sizes.items() if part == ("test" if name == "test" else "train")}
        own_sizes = of_part if len(digits.parts) > 1 else dict(sizes)
        _check_enough(path, those, own_sizes)
        pools = share_out(those.labels, own_sizes, numpy_rng(seed, "multi_mnist/digits", part))
        made |= {name: _numbers(name, size, those, pools[name], seed) for name, size in own_sizes.items()}

    def read(rows: Rows) -> Iterator[tuple[str, int, bytes | Images | str]]:
        for name, wanted in rows.items():
            for row in wanted:
                yield name, int(row), made[name][0][row]

    names = {name: [f"{name}/{row:05d}" for row in range(len(labels))] for name, (_, labels) in made.items()}
    about = {"name": "multi_mnist", "source": digits.source, "licence": digits.licence}
    return Source(CLASSES, {name: labels for name, (_, labels) in made.items()}, names, read, about)


def _check_enough(path: Path, digits: Part, sizes: Mapping[str, int]) -> None:
    """Raises ParameterError where not every split would have each digit."""
    needed, counts = sum(size > 0 for size in sizes.values()), np.bincount(digits.labels, minlength=DIGITS)
    if counts.min() < needed:
        raise ParameterError(
            f"path: {counts.min()} images of the digit {counts.argmin()} found in {path}, allowed: at least {needed}, one for "
            "each split"
        )


def _numbers(name: str, size: int, digits: Part, pools: list[NDArray[np.int64]], seed: int) -> tuple[Images, IntArray]:
    """Images uint8 [n, 28, 28, 1] and labels of one split; `pools` are the digits it may use, by their value."""
    # A generator per split: one split's size does not change the order of another's numbers.
    rng = numpy_rng(seed, "multi_mnist/numbers", name)
    labels = rng.permutation(np.arange(size) % len(CLASSES)).astype(np.int64)
    images = np.zeros((size, SIDE, SIDE, 1), np.uint8)
    for image, number in zip(images, labels.tolist(), strict=True):
        pair = (pools[digit] for digit in divmod(number, DIGITS))
        left, right = (digits.images[pool[rng.integers(len(pool))]] for pool in pair)
        image[..., 0] = beside(left, right)
    return images, labels


def beside(left: Images, right: Images) -> Images:
    """Two digits uint8 [28, 28] as one image of that size."""
    canvas = np.zeros((CANVAS, CANVAS), np.uint8)
    rows = slice(_TOP, _TOP + SIDE)
    canvas[rows, :SIDE] = left
    canvas[rows, _RIGHT:] = np.maximum(canvas[rows, _RIGHT:], right)
    return np.asarray(Image.fromarray(canvas).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
