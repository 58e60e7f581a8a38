"""Attacks that poison data or train the victim: one file per published attack, each an `Attack`, or a `Plan` made of others."""

from __future__ import annotations

from ..core.errors import ParameterError
from ..core.hyperparameters import check, one_of
from ..crafting.attack import Attack, Plan
from ..crafting.stamping import Stamping
from ..data.imageset import ImageSet
from ..poisoning.poisoned import Poisoned
from ..poisoning.trigger import Kept, Trigger
from . import (
    adaptive_blend,
    adaptive_patch,
    addsent,
    badnets,
    badnl,
    blended,
    blind,
    bpp,
    bypass,
    ctrl,
    dfst,
    feature_collision,
    flip,
    ftrojan,
    input_aware,
    lc,
    lf,
    lira,
    multi,
    narcissus,
    nashville,
    none,
    physical,
    sam_attacker,
    semantic,
    sig,
    ssba,
    tact,
    trojan,
    wanet,
)

# The order of params/attacks.yaml.
ATTACKS: dict[str, Attack | Plan] = {
    "none": none.ATTACK,
    "badnets": badnets.ATTACK,
    "blended": blended.ATTACK,
    "sig": sig.ATTACK,
    "trojan": trojan.ATTACK,
    "lc": lc.ATTACK,
    "lf": lf.ATTACK,
    "ssba": ssba.ATTACK,
    "nashville": nashville.ATTACK,
    "dfst": dfst.ATTACK,
    "feature_collision": feature_collision.ATTACK,
    "ctrl": ctrl.ATTACK,
    "ftrojan": ftrojan.ATTACK,
    "adaptive_blend": adaptive_blend.ATTACK,
    "adaptive_patch": adaptive_patch.ATTACK,
    "tact": tact.ATTACK,
    "semantic": semantic.ATTACK,
    "physical": physical.ATTACK,
    "wanet": wanet.ATTACK,
    "bpp": bpp.ATTACK,
    "blind": blind.ATTACK,
    "flip": flip.ATTACK,
    "narcissus": narcissus.ATTACK,
    "bypass": bypass.ATTACK,
    "sam_attacker": sam_attacker.ATTACK,
    "input_aware": input_aware.ATTACK,
    "lira": lira.ATTACK,
    "badnl": badnl.ATTACK,
    "addsent": addsent.ATTACK,
    "multi": multi.ATTACK,
}
SINGLE: dict[str, Attack] = {name: method for name, method in ATTACKS.items() if isinstance(method, Attack)}
"""The attacks that have one trigger, by name."""


def restored(kept: Kept) -> Trigger:
    """The trigger that `poisoning.trigger.read_trigger` read."""
    # Here and not in `poisoning`, which knows no attack: only this table says which class an attack's name stands for.
    method: Attack = one_of(kept.attack, SINGLE, key="attack")
    return method.trigger.restore(kept.values)


def hand_of(poisoned: Poisoned, data: ImageSet, *, seed: int) -> Stamping:
    """The hand in training of the attacker that `poisoning.attacker.read_training` read.

    Args:
        poisoned: truth and triggers, and what else he does to the training.
        data: clean training set.
        seed: his seed.
    """
    hand = Stamping(poisoned, data, seed=seed)
    for taught in poisoned.teaching:
        method: Attack | Plan = one_of(taught.attack, ATTACKS, key="teaching.attack")
        if method.hand is None:
            raise ParameterError(f"teaching.attack: {taught.attack} given, which trains no victim")
        hand = method.hand(hand, **check(taught.arguments, method.hand))
    return hand
