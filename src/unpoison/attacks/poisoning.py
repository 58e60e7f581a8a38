"""From what an attacker wants to a poisoned training set: triggers are made, samples chosen, the truth written down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import UserError
from ..hyperparameters import check
from ..seeding import uniform
from . import ATTACKS
from .policy import Choice, IntArray, Policy, check_classes, choose_samples
from .scene import Scene
from .truth import Part, Truth


@dataclass(frozen=True)
class Intent:
    """What an attacker wants of one trigger: the attack's name, its policy, its own arguments."""

    attack: str
    policy: Policy
    arguments: dict[str, Any]


def intent(attack: str, policy: dict[str, Any], arguments: dict[str, Any], *, where: str = "attack") -> Intent:
    """An attack with its published policy where `policy` gives nothing else.

    Args:
        attack: a name out of `ATTACKS`.
        policy: attributes of `Policy`; None is as good as absent.
        arguments: keyword-only arguments of the attack's `make`.
        where: the section of the parameters, for messages.

    Raises:
        UserError: an unknown key, a value of another type or out of range, a label policy the trigger makes no sense under.
    """
    module = ATTACKS[attack]
    given = {key: value for key, value in policy.items() if value is not None}
    chosen = Policy(**{**module.POLICY, **check(given, Policy, where=where)})
    if chosen.label_policy not in module.POLICIES:
        allowed = ", ".join(module.POLICIES)
        raise UserError(f"{where}.label_policy: {chosen.label_policy} given, allowed with {attack}: {allowed}")
    if chosen.in_training and module.TRIGGER.per_sample:
        key, allowed = ("random_poisoning", "false") if chosen.random_poisoning else ("poison_first", "true")
        raise UserError(
            f"{where}.{key}: {str(getattr(chosen, key)).lower()} given, allowed with {attack}: {allowed}, as each "
            "training image is optimised once"
        )
    return Intent(attack, chosen, check(arguments, module.make, where=f"{where}.{attack}"))


def poison(attack: str, intents: Sequence[Intent], scene: Scene, *, where: str = "attack") -> Truth:
    """Make the triggers and choose the samples.

    Args:
        attack: the name of the whole ("multi" for several triggers).
        intents: one per trigger; a sample is stamped by one trigger at most. Their policies differ in the target only.
        scene: the training set and what the attacker has; `target` and `where` are set here for each trigger.
        where: the section of the parameters, for messages.

    Raises:
        UserError: what an attack's `make` or `choose_samples` refuses.
    """
    labels, classes = scene.train.labels, len(scene.train.classes)
    mask, number_of = np.zeros(len(labels), bool), np.full(len(labels), -1, np.int8)
    parts = []
    for number, wanted in enumerate(intents):
        check_classes(wanted.policy, classes, where=where)
        own = replace(scene, target=wanted.policy.target, where=f"{where}.{wanted.attack}")
        trigger = ATTACKS[wanted.attack].make(own, **wanted.arguments)
        order = trigger.order(scene.train)
        if order is not None and wanted.policy.random_poisoning:
            raise UserError(f"{where}.random_poisoning: true given, allowed with {wanted.attack}: false")
        if order is not None and wanted.policy.cover_ratio:
            raise UserError(f"{where}.cover_ratio: {wanted.policy.cover_ratio} given, allowed with {wanted.attack}: 0")
        if wanted.policy.random_poisoning:
            drawn = drawn_at_random(wanted.policy, labels, np.arange(len(labels)), seed=scene.seed, epoch=-1)
            choice = Choice(np.flatnonzero(drawn), np.zeros(0, np.int64))
        else:
            choice = choose_samples(
                wanted.policy, labels, classes, seed=scene.seed, order=order, free=number_of < 0, where=where
            )
        stamped = np.union1d(choice.poison, choice.cover)
        mask[choice.poison] = True
        number_of[stamped] = number
        parts.append(Part(wanted.attack, wanted.policy, trigger.for_samples(own, stamped)))
    return Truth(attack, tuple(parts), mask, number_of, labels)


def drawn_at_random(
    policy: Policy, labels: IntArray, keys: IntArray, *, seed: int, epoch: int
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which of the samples `keys`, of these true labels, `random_poisoning` poisons in an epoch: bool [len(keys)]."""
    draws = uniform(seed, f"poison/random/{epoch}", keys, 1)[:, 0]
    return policy.candidates(labels) & (draws < policy.poison_rate)
