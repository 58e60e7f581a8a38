"""From what an attacker wants to a poisoned training set: triggers are made, samples chosen, the truth written down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..core.errors import keys_of
from ..poisoning.choice import assign_samples
from ..poisoning.poisoned import Poisoned
from ..poisoning.policy import check_classes
from ..poisoning.trigger import Trigger
from ..poisoning.truth import Part, Truth
from .attack import Intent
from .context import Context


def make_trigger(wanted: Intent, context: Context) -> Trigger:
    """The trigger of an intent, for training images yet to be chosen.

    Raises:
        ParameterError: what the attack's `make` refuses, named `ATTACK.KEY`; a policy of classes that do not exist.
    """
    check_classes(wanted.policy, len(context.train.classes))
    with keys_of(wanted.attack):
        return wanted.method.make(replace(context, target=wanted.policy.target), **wanted.arguments)


def optimised(wanted: Intent, trigger: Trigger, context: Context, index: np.ndarray) -> Trigger:
    """The trigger once the training samples to stamp (int64, sorted) are known: itself, unless each is optimised."""
    if wanted.method.optimise is None:
        return trigger
    with keys_of(wanted.attack):
        return wanted.method.optimise(trigger, replace(context, target=wanted.policy.target), index)


def craft(attack: str, intents: Sequence[Intent], context: Context) -> Poisoned:
    """Make the triggers and choose the samples.

    Args:
        attack: the name of the whole ("multi" for several triggers).
        intents: one per trigger, at least one; a sample is stamped by one trigger at most. Their policies have the same
            label policy and the same way of stamping.
        context: the training set and what the attacker has; `target` is set here for each trigger.

    Raises:
        ParameterError: what an attack's `make` or `assign_samples` refuses.
    """
    labels, classes = context.train.labels, len(context.train.classes)
    triggers = [make_trigger(wanted, context) for wanted in intents]
    orders = []
    for wanted, trigger in zip(intents, triggers, strict=True):
        with keys_of(wanted.attack):
            orders.append(trigger.order(context.train))
    policies = [wanted.policy for wanted in intents]
    mask, number_of = assign_samples(policies, orders, labels, classes, seed=context.seed)
    final = [
        optimised(wanted, trigger, context, np.flatnonzero(number_of == number))
        for number, (wanted, trigger) in enumerate(zip(intents, triggers, strict=True))
    ]
    parts = tuple(Part(wanted.attack, wanted.policy, wanted.arguments) for wanted in intents)
    return Poisoned(Truth(attack, parts, mask, number_of, labels), tuple(final))
