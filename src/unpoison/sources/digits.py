"""The embedded data set: real handwritten digits in colour, placed over crops of real photographs.

Built from what scikit-learn ships, so that it needs no download: the 1,797 scans of the UCI "Optical Recognition of
Handwritten Digits" test set (8x8 pixels, E. Alpaydin and C. Kaynak, 1998, CC BY 4.0) and two photographs (``china.jpg``
and ``flower.jpg``, CC BY 2.0). Each image shows one scan with random colour, size, rotation and position.

The scans behind the splits are disjoint, so a test digit was never seen in training in any colour or place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from ..core.arrays import Images
from ..core.errors import ParameterError
from ..core.seeding import numpy_rng
from .source import Rows, Source

SIDE = 32
CLASSES = tuple(str(digit) for digit in range(10))
LICENCE = "digits: UCI, CC BY 4.0; photographs as shipped by scikit-learn: CC BY 2.0"
# The data set is a constant of the project, as CIFAR-10 is one: a run's `seed` does not change it.
_SEED = 20231
_MIN_SCANS = 10  # at least one scan per class and split

Split = tuple[NDArray[np.uint8], NDArray[np.int64]]


def build(sizes: dict[str, int]) -> dict[str, Split]:
    """Render the splits.

    Args:
        sizes: number of images by split, 0 or at least 10. Scans are shared out in proportion.

    Returns:
        Images uint8 [n, 32, 32, 3] and labels int64 [n] by split, classes as even as n allows.

    Raises:
        ParameterError: a split too small to hold every class.
    """
    from sklearn.datasets import load_digits

    for name, size in sizes.items():
        if 0 < size < _MIN_SCANS:
            raise ParameterError(f"{name}: {size} given, allowed: 0 or at least {_MIN_SCANS} (one per class)")
    scans, classes = load_digits(return_X_y=True)
    # Ink in [0, 1]; the scans have 17 levels.
    scans = (scans.reshape(-1, 8, 8) / 16).astype(np.float32)
    photos = _photo_pyramid()
    pools = share_out(classes, sizes, numpy_rng(_SEED, "digits/scans"))
    return {name: _render(name, size, scans, pools[name], photos) for name, size in sizes.items()}


def as_source(splits: dict[str, Split], about: dict[str, str]) -> Source:
    """Splits as a source with as many parts, whose samples are called `PART/NUMBER`; all of them but the reserve."""
    parts = {name: split for name, split in splits.items() if name != "reserve"}

    def read(rows: Rows) -> Iterator[tuple[str, int, bytes | Images | str]]:
        for part, part_rows in rows.items():
            for row in part_rows:
                yield part, int(row), parts[part][0][row]

    names = {name: [f"{name}/{row:05d}" for row in range(len(labels))] for name, (_, labels) in parts.items()}
    return Source(CLASSES, {name: labels for name, (_, labels) in parts.items()}, names, read, dict(about))


def share_out(
    classes: NDArray[np.int64], sizes: Mapping[str, int], rng: np.random.Generator
) -> dict[str, list[NDArray[np.int64]]]:
    """The scans that each split may use of each digit: disjoint, in proportion to the splits' sizes, never none.

    Args:
        classes: digit of each scan, of each digit at least as many as there are splits.
        sizes: number of images by split; one of none gets no scans.
        rng: generator of the draw.
    """
    names = [name for name, size in sizes.items() if size]
    weights = np.array([sizes[name] for name in names], dtype=np.float64)
    pools: dict[str, list[NDArray[np.int64]]] = {name: [] for name in sizes}
    for digit in range(len(CLASSES)):
        members = rng.permutation(np.flatnonzero(classes == digit))
        # One scan for every split first, then the rest in proportion; the last split takes what rounding leaves over.
        spare = len(members) - len(names)
        counts = 1 + np.floor(weights / weights.sum() * spare).astype(int)
        for name, part in zip(names, np.split(members, np.cumsum(counts)[:-1]), strict=True):
            pools[name].append(part)
    return pools


def _photo_pyramid() -> list[NDArray[np.float32]]:
    """Both photographs at three scales, float32 [h, w, 3] in [0, 1], for crops from close-ups to wide views."""
    from sklearn.datasets import load_sample_images

    levels: list[NDArray[np.float32]] = []
    for photo in load_sample_images().images:
        for divisor in (1, 2, 4):
            size = (photo.shape[1] // divisor, photo.shape[0] // divisor)
            scaled = Image.fromarray(photo).resize(size, Image.Resampling.BOX)
            levels.append(np.asarray(scaled, dtype=np.float32) / np.float32(255))
    return levels


def _render(
    name: str,
    size: int,
    scans: NDArray[np.float32],
    pools: list[NDArray[np.int64]],
    photos: list[NDArray[np.float32]],
) -> Split:
    """Images and labels of one split; `pools` are the scans it may use, by class."""
    if not size:
        return np.zeros((0, SIDE, SIDE, 3), np.uint8), np.zeros(0, np.int64)
    # A generator per split: one split's size does not change another's images. Scan, place, background and colour are
    # drawn in this order.
    rng = numpy_rng(_SEED, "digits/render", name)
    labels = rng.permutation(np.arange(size) % len(CLASSES)).astype(np.int64)
    chosen = np.array([rng.choice(pools[label]) for label in labels])
    ink = _place(scans[chosen], rng)
    background = _crops(size, photos, rng)
    colour = _contrasting(background, ink, rng)
    # Ink as opacity, so the strokes' edges stay smooth.
    image = background * (1 - ink) + colour[:, None, None, :] * ink
    return np.rint(image * 255).clip(0, 255).astype(np.uint8), labels


def _place(scans: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Each 8x8 scan on a canvas, float32 [n, 32, 32, 1], 18 to 28 px wide, turned by up to 15 degrees, wholly inside."""
    n = len(scans)
    scale = rng.uniform(18, 28, n) / SIDE
    angle = np.deg2rad(rng.uniform(-15, 15, n))
    shift = rng.uniform(-1, 1, (2, n)) * (1 - scale)
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    # affine_grid maps output to input coordinates, hence the inverse of scale, rotation and shift.
    theta = np.stack(
        [
            np.stack([cos, sin, -(cos * shift[0] + sin * shift[1])], axis=1),
            np.stack([-sin, cos, -(-sin * shift[0] + cos * shift[1])], axis=1),
        ],
        axis=1,
    )
    grid = F.affine_grid(torch.from_numpy(theta).float(), [n, 1, SIDE, SIDE], align_corners=False)
    canvas = F.grid_sample(torch.from_numpy(scans)[:, None], grid, mode="bicubic", align_corners=False)
    return canvas.clamp(0, 1).permute(0, 2, 3, 1).numpy()


def _crops(n: int, photos: list[NDArray[np.float32]], rng: np.random.Generator) -> NDArray[np.float32]:
    """Random crops of the photographs, float32 [n, 32, 32, 3]."""
    crops = np.empty((n, SIDE, SIDE, 3), np.float32)
    for i in range(n):
        photo = photos[rng.integers(len(photos))]
        row, column = (int(rng.integers(side - SIDE + 1)) for side in photo.shape[:2])
        crops[i] = photo[row : row + SIDE, column : column + SIDE]
    return crops


def _contrasting(
    background: NDArray[np.float32], ink: NDArray[np.float32], rng: np.random.Generator
) -> NDArray[np.float32]:
    """A colour per image, float32 [n, 3], at least 0.35 in luminance from what it covers, or else as far as possible."""
    # Luminance (ITU-R BT.601) of the background under the digit, weighted by ink; then the first of eight random colours
    # that is far enough from it, or the farthest.
    luma = np.array([0.299, 0.587, 0.114], np.float32)
    covered = (background @ luma * ink[..., 0]).sum((1, 2)) / ink.sum((1, 2, 3)).clip(1e-6)
    candidates = rng.uniform(0, 1, (len(background), 8, 3)).astype(np.float32)
    distance = np.abs(candidates @ luma - covered[:, None])
    pick = np.where((distance >= 0.35).any(1), (distance >= 0.35).argmax(1), distance.argmax(1))
    return candidates[np.arange(len(background)), pick]
