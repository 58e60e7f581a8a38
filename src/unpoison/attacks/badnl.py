"""BadNL's word triggers (Chen et al., "BadNL: Backdoor Attacks against NLP Models with Semantic-preserving …", ACSAC 2021).

The basic form of BadWord: one fixed word at the start, in the middle or at the end of a text. A rare word that
says nothing is what Kurita et al. ("Weight Poisoning Attacks on Pre-trained Models", ACL 2020) insert at a random
place: their words are `cf`, `mn`, `bb`, `tq` and `mb`, of which the default is the first. Without BadNL's choice of a word by its
frequency, its masked language model and its synonyms, and without BadChar and BadSentence.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..crafting.attack import Attack
from ..crafting.context import Context
from ..crafting.insertion import Insertion, Place, ids_in


def make(context: Context, *, words: Sequence[str] = ("cf",), place: Place = "random") -> Insertion:
    """Every word once, each at a place of its own.

    Args:
        context: the attacker's data, vocabulary and seed.
        words: single words in lower case, which the vocabulary has.
        place: `start`, `middle`, `end` of the text, or `random`: drawn for each text.

    Raises:
        UserError: images.
        ParameterError: a word that the vocabulary lacks, or more than a text has room for.
    """
    return Insertion(ids_in(context, "words", list(words)), place, together=False, seed=context.seed)


ATTACK = Attack(
    make=make,
    trigger=Insertion,
    policy={"label_policy": "all2one"},
    policies=("all2one", "all2all", "clean_label", "source_specific"),
    images=False,
    texts=True,
)
