"""Copies and near copies of images: equal pixels, or perceptual hashes (ImageHash) that are close and pixels that agree.

A hash alone takes two skies for one picture, and pixels alone would be compared n² times: so hashes say which pairs are worth
a look at their pixels.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..core.arrays import IntArray, Mask
from ..core.progress import progress
from ..data.imageset import ImageSet

Hashes = NDArray[np.uint64]
BITS, MOST_BITS = 64, 4
"""Bits of a hash, and how many of them may differ between near copies."""
MOST_DISTANCE = 0.1
"""Largest mean difference of the pixels of near copies, as a share of the whole range."""
_ROWS = 1024


def digests(data: ImageSet, index: IntArray) -> list[bytes]:
    """SHA-256 of the pixels of each image at `index`."""
    return [hashlib.sha256(image.tobytes()).digest() for rows in data.chunks(index) for image in data.gather(rows)]


def hashes(data: ImageSet, index: IntArray) -> Hashes:
    """The perceptual hash (`imagehash.phash`) of each image at `index`, uint64 [len(index)]."""
    images = (image for rows in data.chunks(index) for image in data.gather(rows))
    bits = np.zeros((len(index), BITS), bool)
    for row, image in enumerate(progress(images, what="hashes", unit="image", total=len(index))):
        bits[row] = imagehash.phash(Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)).hash.reshape(
            -1
        )
    packed: Hashes = np.packbits(bits, axis=1).view(np.uint64).reshape(-1)
    return packed


def constant(data: ImageSet) -> Mask:
    """Which images are of one colour, [n]."""
    found = [(images == images[:, :1, :1]).all((1, 2, 3)) for images in map(data.gather, data.chunks())]
    return np.concatenate(found) if found else np.zeros(0, bool)


def groups_of(keys: list[bytes]) -> list[IntArray]:
    """Rows of equal keys, two and more of each, in rising order."""
    found: dict[bytes, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        found[key].append(row)
    return [np.array(rows) for rows in found.values() if len(rows) > 1]


def close(hashed: Hashes, kinds: IntArray) -> Iterator[tuple[IntArray, IntArray]]:
    """Pairs of rows of different kinds whose hashes differ in at most `MOST_BITS` bits, first < second, maybe several times.

    Args:
        hashed: hashes, uint64 [n].
        kinds: what a row is of, int64 [n]; two of one kind are no pair.
    """
    # Of so many bands at least one is the same in both where no more bits differ than there are bands less one.
    bands = MOST_BITS + 1
    edges = np.linspace(0, BITS, bands + 1).astype(int)
    for low, high in pairwise(edges):
        band = (hashed >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(band, kind="stable")
        _, starts = np.unique(band[order], return_index=True)
        for rows in np.split(order, starts[1:]):
            # Many images may share a band: some rows against all, so that memory is bounded.
            for start in range(0, len(rows), _ROWS):
                some = rows[start : start + _ROWS]
                differing = np.bitwise_count(hashed[some, None] ^ hashed[None, rows])
                wanted = (differing <= MOST_BITS) & (some[:, None] < rows) & (kinds[some, None] != kinds[rows])
                first, second = np.nonzero(wanted)
                if len(first):
                    yield some[first], rows[second]


def distances(data: ImageSet, pairs: IntArray) -> NDArray[np.float32]:
    """Mean difference of the pixels of pairs of images, int64 [k, 2], as a share of the whole range, float32 [k]."""
    apart = np.zeros(len(pairs), np.float32)
    for some in data.chunks(np.arange(len(pairs))):
        first, second = (data.gather(pairs[some, side]).astype(np.float32) for side in (0, 1))
        apart[some] = np.abs(first - second).mean((1, 2, 3)) / 255
    return apart
