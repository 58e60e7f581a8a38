"""ONION (Qi et al., "ONION: A Simple and Effective Defense Against Textual Backdoor Attacks", EMNLP 2021), for texts.

Section 3: a trigger word does not fit its sentence. With p0 the perplexity of a text by a language model and p_i that of the
text without its word i, the word's suspicion is f_i = p0 - p_i: the larger, the more surprising the word. The paper takes out
every word above a threshold before a model sees the text; here a text's score is its largest f_i, and what is said is which text
has a trigger.

The paper's language model is GPT-2, whose weights would be downloaded. Here it is a bigram model of the trusted texts with a
Dirichlet prior (MacKay and Peto, "A Hierarchical Dirichlet Language Model", 1995): p(w | v) = (c(v, w) + k p(w)) / (c(v) + k) and
p(w) = (c(w) + 1) / (N + V), with the start and the end of a text as one more word. It knows a few thousand words of context where
GPT-2 knows the language, so its figures are no measure of the paper's. The classifier is never asked.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from annotated_types import Gt, Lt
from numpy.typing import NDArray

from ..core.arrays import IntArray
from ..core.errors import ParameterError
from ..core.hyperparameters import Positive
from ..core.seeding import numpy_rng
from ..data.scores import Scores
from ..data.texts import MOST_IDS, PAD, ids_of, lengths
from .detector import Detector, Suspect

LEAST = 10
"""Fewest trusted texts: half of them make the model, the others the threshold."""
Rate = Annotated[float, Gt(0), Lt(1)]
Floats = NDArray[np.float64]
_ROWS = 1024


def score(suspect: Suspect, *, seed: int = 0, strength: Positive = 1.0, frr: Rate = 0.01) -> Scores:
    """The largest fall of a text's perplexity when one of its words is left out.

    Args:
        seed: seed for the trusted texts that set the threshold.
        strength: k, how many observations the words' own frequencies count for behind each word. 1: this project's own.
        frr: false rejection rate of the rule: the share of trusted texts that it may flag. 0.01: this project's own.

    The rule: the trusted texts are halved. The language model of one half scores the other, and what lies above all but that share
    of these scores is flagged. The scores themselves are by a model of both halves.
    """
    reserve = suspect.reserve
    if len(reserve) < LEAST:
        raise ParameterError(f"onion: {len(reserve)} texts given, allowed: at least {LEAST} in the trusted reserve")
    trusted = ids_of(reserve.gather(np.arange(len(reserve))))
    order = numpy_rng(seed, "onion/halves").permutation(len(trusted))
    half = Bigrams(trusted[order[: len(trusted) // 2]], strength)
    bound = np.quantile(_scores(half, trusted[order[len(trusted) // 2 :]]), 1 - frr)
    whole, values = Bigrams(trusted, strength), np.empty(len(suspect.data), np.float32)
    for index in suspect.data.chunks():
        values[index] = _scores(whole, ids_of(suspect.data.gather(index)))
    rule = f"above all but {frr:.0%} of {len(trusted) - len(trusted) // 2} trusted texts, by a model of the others"
    return Scores(values, forward_passes=1, flagged=values > bound, rule=rule)


class Bigrams:
    """A language model of texts.

    Args:
        texts: ids int64 [n, length], padded at their ends.
        strength: k of the Dirichlet prior.
    """

    def __init__(self, texts: IntArray, strength: float) -> None:
        self.strength = strength
        before, after = _pairs(texts)
        # The end of a text is the padding's id, of which every text has one.
        self.words = np.bincount(after, minlength=MOST_IDS).astype(np.float64)
        self.known = int((self.words > 0).sum()) + 1  # and one for all that was never seen
        self.followed = np.bincount(before, minlength=MOST_IDS).astype(np.float64)
        keys, counts = np.unique(before * MOST_IDS + after, return_counts=True)
        self._keys, self._counts = keys, counts.astype(np.float64)

    def log_p(self, before: IntArray, after: IntArray) -> Floats:
        """Natural logarithm of p(after | before), of arrays of one shape."""
        alone = (self.words[after] + 1) / (self.words.sum() + self.known)
        wanted = before * MOST_IDS + after
        place = np.searchsorted(self._keys, wanted).clip(max=len(self._keys) - 1)
        together = np.where(self._keys[place] == wanted, self._counts[place], 0)
        found: Floats = np.log((together + self.strength * alone) / (self.followed[before] + self.strength))
        return found

    def suspicion(self, texts: IntArray) -> Floats:
        """Fall of the perplexity without each word, float64 [n, length]; -inf behind the end, 0 of a text's only word.

        The perplexity of m words is exp(-(sum of log p) / (m + 1)), as the end is one of what is predicted.
        """
        count = lengths(texts)
        framed = np.pad(texts, ((0, 0), (1, 1)), constant_values=PAD)
        terms = self.log_p(framed[:, :-1], framed[:, 1:])
        # Terms up to the first padding: each word, and the end.
        counted = np.arange(terms.shape[1]) <= count[:, None]
        total = np.where(counted, terms, 0).sum(1, keepdims=True)
        # Without word i the terms of it and of the next one are one, from the word before it to the one behind.
        bridge = self.log_p(framed[:, :-2], framed[:, 2:])
        without = total - terms[:, :-1] - terms[:, 1:] + bridge
        m = count[:, None].clip(min=1)
        falls = np.exp(-total / (m + 1)) - np.exp(-without / m)
        falls[count == 1] = 0
        found: Floats = np.where(np.arange(texts.shape[1]) < count[:, None], falls, -np.inf)
        return found


def _pairs(texts: IntArray) -> tuple[IntArray, IntArray]:
    """Each word of the texts, and each end, with what stands before it."""
    framed = np.pad(texts, ((0, 0), (1, 1)), constant_values=PAD)
    counted = np.arange(framed.shape[1] - 1) <= lengths(texts)[:, None]
    return framed[:, :-1][counted], framed[:, 1:][counted]


def _scores(model: Bigrams, texts: IntArray) -> Floats:
    """The largest suspicion of a word in each text, 0 of a text without a word, float64 [n]."""
    found = [model.suspicion(texts[start : start + _ROWS]).max(1) for start in range(0, len(texts), _ROWS)]
    largest = np.concatenate(found)
    return np.where(np.isfinite(largest), largest, 0.0)


def _needs_trusted(*, strength: float = 1.0, frr: float = 0.01) -> int:
    return LEAST


DETECTOR = Detector(score=score, needs_trusted=_needs_trusted, single_inputs=True, images=False, texts=True)
