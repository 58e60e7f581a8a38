"""An attacker who trains the victim of another attack by Sharpness-Aware Minimisation, so that the backdoor lies in a flat place.

The premise is that of FT-SAM and its kind, turned round: those purifiers look for weights near by where the backdoor is gone.
SAM: Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization", ICLR 2021. A backdoor trained by it is
a part of Pham et al., "Flatness-aware Sequential Learning Generates Resilient Backdoors", ECCV 2024, whose other part, continual
learning on clean images, is not here: https://github.com/mail-research/SBL-resilient-backdoors/blob/8c216de/models/joint.py
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..core.errors import keys_of
from ..core.hyperparameters import Positive, one_of
from ..crafting.attack import Attack, Block, Intent, Plan, intent
from ..crafting.stamping import Stamping


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """The parameters of `sam_attacker`.

    Attributes:
        attack: name of an attack of one trigger, with its own block's parameters and published policy.
        radius: radius of SAM, in the place of `train.sam` (Foret et al. on CIFAR-10: 0.05).
    """

    attack: str = "badnets"
    radius: Positive = 0.05


def intents(
    attacks: Mapping[str, Attack | Plan], policy: Block, own: Block, sections: Mapping[str, Block]
) -> list[Intent]:
    """The intent of the attack whose victim is trained so.

    Args:
        attacks: every attack by name; those of one trigger may take part.
        policy: attributes of `Policy`.
        own: attributes of `Parameters`.
        sections: parameters of every attack, by its name.

    Raises:
        ParameterError: no attack of one trigger, or what `intent` refuses.
    """
    name = Parameters(**own).attack
    single = {each: method for each, method in attacks.items() if isinstance(method, Attack)}
    with keys_of("sam_attacker"):
        method: Attack = one_of(name, single, key="attack")
    return [intent(name, method, policy, sections.get(name, {}))]


def hand(stamping: Stamping, *, radius: Positive) -> Stamping:
    """The hand in training of the attack itself, which trains at this radius; see `Parameters`."""
    stamping.sam = radius
    return stamping


ATTACK = Plan(parameters=Parameters, intents=intents, hand=hand)
