"""Texts as samples: rows of token ids in the place of pixels, in the same stores and behind the same `ImageSet`.

A text is a row of `length` ids, padded at its end. It is kept as the two bytes of each id, low byte first: uint8
[n, 1, length, 2] is the memory of uint16 [n, 1, length]. Images have one channel or three, so the two say that it is a text.
Whatever only moves samples (stores, overlays, batches, features) knows nothing of all this.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..core.arrays import Images, IntArray
from ..core.errors import UserError, file_of
from ..core.manifest import typed
from .imageset import ImageSet
from .store import MANIFEST, read_about

CHANNELS = 2
"""Channels of a text: the bytes of an id."""
PAD, UNKNOWN = 0, 1
"""Ids of the padding and of every word that the vocabulary lacks."""
SPECIAL = ("", "[unknown]")
"""The first entries of every vocabulary, by id."""
MOST_IDS = 1 << 16
LONGEST_WORD = 40
"""Characters of a word from which on it is none: an address, a key, noise."""
# A word with the apostrophes in it, or a single mark.
_TOKEN = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")


def is_text(data: ImageSet) -> bool:
    """Whether the samples are texts."""
    return data.channels == CHANNELS


def tokens_of(text: str) -> list[str]:
    """A text in words and marks, in lower case."""
    return _TOKEN.findall(text.lower())


def as_images(ids: IntArray) -> Images:
    """Token ids int64 [n, length] as samples, uint8 [n, 1, length, 2].

    Raises:
        ValueError: an id that two bytes cannot hold.
    """
    if ids.size and (ids.min() < 0 or ids.max() >= MOST_IDS):
        raise ValueError(f"ids of {ids.min()} to {ids.max()} given, allowed: 0 to {MOST_IDS - 1}")
    return np.ascontiguousarray(ids, "<u2")[:, None, :, None].view(np.uint8)


def ids_of(images: Images) -> IntArray:
    """Token ids int64 [n, length] of samples uint8 [n, 1, length, 2]."""
    pairs = images[:, 0].astype(np.int64)
    ids: IntArray = pairs[..., 0] + 256 * pairs[..., 1]
    return ids


def lengths(ids: IntArray) -> IntArray:
    """Number of tokens of each row of ids [n, length], int64 [n]."""
    counts: IntArray = (ids != PAD).sum(1)
    return counts


def padded(ids: Sequence[int] | IntArray, length: int) -> IntArray:
    """One text of `length` ids: its first ones, or all and padding behind them."""
    row = np.full(length, PAD, np.int64)
    kept = np.asarray(ids, np.int64)[:length]
    row[: len(kept)] = kept
    return row


def written(image: Images, vocabulary: Sequence[str]) -> str:
    """The words of a sample uint8 [1, length, 2], with spaces between them; an id beyond the vocabulary is unknown."""
    ids = ids_of(image[None])[0]
    return " ".join(vocabulary[token] if token < len(vocabulary) else SPECIAL[UNKNOWN] for token in ids[ids != PAD])


def read_vocabulary(base: Path) -> tuple[str, ...]:
    """The words of a base data set by their ids, which its manifest holds; none of images.

    Raises:
        UserError: the manifest is missing, changed, or holds another kind of list.
    """
    with file_of(base / MANIFEST):
        found = typed("vocabulary", read_about(base).get("vocabulary", []), list[str])
    if found and (tuple(found[:2]) != SPECIAL or len(found) > MOST_IDS or len(set(found)) < len(found)):
        raise UserError(
            f"{base / MANIFEST}: vocabulary: {len(found)} words found, allowed: up to {MOST_IDS}, each once, the first two "
            f"{SPECIAL}"
        )
    return tuple(found)
