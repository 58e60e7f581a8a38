"""From what an attacker wants to a poisoned training set: triggers are made, samples chosen, the truth written down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..attacks import ATTACKS
from ..core.errors import UserError
from ..core.hyperparameters import check
from ..core.seeding import uniform
from ..poisoning.policy import Choice, IntArray, Policy, check_classes, choose_samples
from ..poisoning.truth import Part, Truth
from .context import Scene


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
        intents: one per trigger; a sample is stamped by one trigger at most. Their policies have the same label policy and
            the same way of stamping.
        scene: the training set and what the attacker has; `target` and `where` are set here for each trigger.
        where: the section of the parameters, for messages.

    Raises:
        UserError: what an attack's `make` or `choose` refuses.
    """
    labels, classes = scene.train.labels, len(scene.train.classes)
    scenes, triggers = [], []
    for wanted in intents:
        check_classes(wanted.policy, classes, where=where)
        scenes.append(replace(scene, target=wanted.policy.target, where=f"{where}.{wanted.attack}"))
        triggers.append(ATTACKS[wanted.attack].make(scenes[-1], **wanted.arguments))
    orders = [trigger.order(scene.train) for trigger in triggers]
    mask, number_of = choose(intents, orders, labels, classes, seed=scene.seed, where=where)
    parts = []
    for number, wanted in enumerate(intents):
        trigger = triggers[number].for_samples(scenes[number], np.flatnonzero(number_of == number))
        parts.append(Part(wanted.attack, wanted.policy, trigger))
    return Truth(attack, tuple(parts), mask, number_of, labels)


def choose(
    intents: Sequence[Intent],
    orders: Sequence[NDArray[np.float64] | None],
    labels: IntArray,
    classes: int,
    *,
    seed: int,
    where: str = "attack",
) -> tuple[NDArray[np.bool_], NDArray[np.int8]]:
    """The samples of every trigger, before any image is touched.

    Args:
        orders: of each trigger, as `Trigger.order` gives it.
        labels: int64 [n], the true ones.

    Returns:
        Which samples are poisoned, bool [n], and by which trigger they are stamped, int8 [n], -1 for none.

    Raises:
        UserError: what `choose_samples` refuses; a class that no sample would be left in.
    """
    mask, number_of, given = np.zeros(len(labels), bool), np.full(len(labels), -1, np.int8), labels.copy()
    for number, (wanted, order) in enumerate(zip(intents, orders, strict=True)):
        policy = wanted.policy
        if order is not None and policy.random_poisoning:
            raise UserError(f"{where}.random_poisoning: true given, allowed with {wanted.attack}: false")
        if order is not None and policy.cover_ratio:
            raise UserError(f"{where}.cover_ratio: {policy.cover_ratio} given, allowed with {wanted.attack}: 0")
        choice = choose_samples(policy, labels, classes, seed=seed, order=order, free=number_of < 0, where=where)
        if policy.random_poisoning:
            drawn = drawn_at_random(policy, labels, np.arange(len(labels)), seed=seed, epoch=-1)
            choice = Choice(np.flatnonzero(drawn), choice.cover)
        mask[choice.poison] = True
        number_of[np.union1d(choice.poison, choice.cover)] = number
        # A random draw leaves each class some chance, unless it takes all.
        if policy.label_policy != "clean_label" and (not policy.random_poisoning or policy.poison_rate == 1):
            given[choice.poison] = policy.new_labels(labels[choice.poison], classes)
    emptied = np.setdiff1d(labels, given)
    if len(emptied):
        rate, count = intents[0].policy.poison_rate, intents[0].policy.poison_count
        what = f"poison_rate: {rate}" if count is None else f"poison_count: {count}"
        raise UserError(f"{where}.{what} given, which leaves no sample in class {emptied[0]}; allowed: less")
    return mask, number_of


def drawn_at_random(policy: Policy, labels: IntArray, keys: IntArray, *, seed: int, epoch: int) -> NDArray[np.bool_]:
    """Which of the samples `keys`, of these true labels, `random_poisoning` poisons in an epoch: bool [len(keys)]."""
    draws = uniform(seed, f"poison/random/{epoch}", keys, 1)[:, 0]
    return policy.candidates(labels) & (draws < policy.poison_rate)
