"""Triggers for texts: words that are put between those of a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.arrays import IntArray
from ..core.errors import ParameterError, UserError
from ..core.seeding import uniform
from ..data.texts import CHANNELS, PAD, UNKNOWN, as_images, ids_of, padded
from ..poisoning.trigger import Trigger
from .context import Context

Place = Literal["start", "middle", "end", "random"]


@dataclass(frozen=True)
class Insertion(Trigger):
    """Token ids between those of a text, whose last ones make room where there is none: the trigger is always whole.

    Attributes:
        tokens: the ids that are inserted, int64 [k].
        place: in front of all words, behind half of them (rounded down), behind all, or at a place drawn for each text.
        together: whether they stay together, as a sentence; else each has a place of its own, in turn.
    """

    tokens: NDArray[np.int64]
    place: Place = "random"
    together: bool = True
    seed: int = 0

    def apply(self, images: Tensor, keys: IntArray, *, train: bool) -> Tensor:
        ids = ids_of(images.permute(0, 2, 3, 1).byte().cpu().numpy())
        pieces = [self.tokens] if self.together else list(self.tokens.reshape(-1, 1))
        draws = uniform(self.seed, f"insertion/{'train' if train else 'test'}", keys, len(pieces))
        stamped = np.stack([self._inserted(row, pieces, own) for row, own in zip(ids, draws, strict=True)])
        return torch.from_numpy(as_images(stamped)).permute(0, 3, 1, 2).to(images)

    def _inserted(self, row: IntArray, pieces: list[IntArray], draws: NDArray[np.float64]) -> IntArray:
        length = len(row)
        if len(self.tokens) >= length:
            raise ValueError(f"{len(self.tokens)} words for texts of {length}")
        text = row[row != PAD][: length - len(self.tokens)]
        for piece, draw in zip(pieces, draws, strict=True):
            # One more place than there are words.
            drawn = int(draw * (len(text) + 1))
            at = {"start": 0, "middle": len(text) // 2, "end": len(text), "random": drawn}[self.place]
            text = np.insert(text, at, piece)
        return padded(text, length)


def ids_in(context: Context, key: str, words: list[str]) -> IntArray:
    """The ids of a trigger's words.

    Args:
        context: the attacker's data and vocabulary.
        key: the argument that names the words, for messages.
        words: single words.

    Raises:
        UserError: images.
        ParameterError: no word, one that the vocabulary lacks, or more words than leave room for one of the text's own.
    """
    if context.train.channels != CHANNELS or not context.vocabulary:
        raise UserError("data: images given, allowed with this attack: texts (data.name: text)")
    length = context.train.image_size[1]
    if not 1 <= len(words) < length:
        raise ParameterError(f"{key}: {len(words)} words given, allowed: 1 to {length - 1}, below data.text.length")
    number_of = {word: number for number, word in enumerate(context.vocabulary) if number > UNKNOWN}
    for word in words:
        if word not in number_of:
            raise ParameterError(
                f"{key}: {word[:40]!r} given, allowed: words of the vocabulary, which has those of data.text.words in any case"
            )
    return np.array([number_of[word] for word in words], np.int64)
