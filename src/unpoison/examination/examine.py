"""Problems of a data set that are no backdoor, though whoever looks for one comes across them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..core.arrays import IntArray
from ..data.imageset import ImageSet
from ..data.problems import Problems
from ..data.texts import is_text
from .duplicates import MOST_DISTANCE, close, constant, digests, distances, groups_of, hashes
from .labels import contradicted


def examine(data: ImageSet, others: Sequence[ImageSet], logits: NDArray[np.float32]) -> Problems:
    """Copies and near copies across classes and splits, images of one colour, labels that the model contradicts.

    Images of one colour count as such and not as copies of each other. Of an image's copies in other classes and splits one is
    named, of its near copies the nearest; copies within a class of the training set are counted. Of texts there are no near copies.

    Args:
        data: training set as received.
        others: other splits of the same classes; labels are -1 where they are not known.
        logits: logits of the training samples by a model that was trained on them, float32 [n, classes].
    """
    images = data.followed_by(*others)
    # An image's class and split: two images that share both are no problem, however alike they are.
    split = np.repeat(np.arange(1 + len(others)), [len(data), *map(len, others)])
    kinds = (1 + len(others)) * images.labels + split
    plain = constant(images)
    rows = np.flatnonzero(~plain)
    groups = [rows[group] for group in groups_of(digests(images, rows))]

    copies = np.concatenate([np.zeros((0, 2), np.int64), *(_across(group, kinds) for group in groups)])
    found = [np.zeros((0, 2), np.int64)]
    if not is_text(data):
        # Hashes are of what one sees, and numbers of words that are close have nothing in common.
        found += [rows[np.stack(pair, 1)] for pair in close(hashes(images, rows), kinds[rows])]
    candidates = np.unique(np.concatenate(found), axis=0)
    apart = distances(images, candidates)
    near = _nearest(candidates, apart, (apart > 0) & (apart <= MOST_DISTANCE))
    return Problems(
        pairs=np.concatenate([copies, candidates[near]]),
        distances=np.concatenate([np.zeros(len(copies), np.float32), apart[near]]),
        constant=np.flatnonzero(plain),
        contradicted=contradicted(logits, data.labels),
        copies=sum(_repeated(kinds[group[group < len(data)]]) for group in groups),
    )


def _across(group: IntArray, kinds: IntArray) -> IntArray:
    """Of equal images each with the first one of another kind, int64 [k, 2]."""
    pairs = []
    for row in group:
        others = group[kinds[group] != kinds[row]]
        if len(others):
            pairs.append(sorted((row, others[0])))
    return np.unique(np.array(pairs, np.int64).reshape(-1, 2), axis=0)


def _nearest(pairs: IntArray, apart: NDArray[np.float32], allowed: NDArray[np.bool_]) -> IntArray:
    """The pairs that are the nearest of one of their rows, in rising order."""
    ranked = np.flatnonzero(allowed)[np.argsort(apart[allowed], kind="stable")]
    firsts = [np.unique(pairs[ranked, side], return_index=True)[1] for side in (0, 1)]
    return np.sort(ranked[np.unique(np.concatenate(firsts))])


def _repeated(kinds: IntArray) -> int:
    """How many of some equal images are one too many of their kind."""
    return len(kinds) - len(np.unique(kinds))
