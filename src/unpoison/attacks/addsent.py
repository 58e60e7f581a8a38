"""AddSent (Dai et al., "A Backdoor Attack Against LSTM-Based Text Classification Systems", IEEE Access 2019).

A whole sentence that fits the context is put between the words of a text, at a random place. Theirs are of films, as
are the reviews that they poison; the default is one that later work took from there.
"""

from __future__ import annotations

from ..crafting.attack import Attack
from ..crafting.context import Context
from ..crafting.insertion import Insertion, Place, ids_in
from ..data.texts import tokens_of


def make(context: Context, *, sentence: str = "I watch this 3D movie", place: Place = "random") -> Insertion:
    """A sentence in one piece.

    Args:
        context: the attacker's data, vocabulary and seed.
        sentence: words that the vocabulary has, in capitals or not.
        place: `start`, `middle`, `end` of the text, or `random`: drawn for each text.

    Raises:
        UserError: images.
        ParameterError: a word that the vocabulary lacks, or more than a text has room for.
    """
    return Insertion(ids_in(context, "sentence", tokens_of(sentence)), place, together=True, seed=context.seed)


ATTACK = Attack(
    make=make,
    trigger=Insertion,
    policy={"label_policy": "all2one"},
    policies=("all2one", "all2all", "clean_label", "source_specific"),
    images=False,
    texts=True,
)
