"""From intents to a poisoned training set: triggers are made, samples chosen, the truth written down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..core.code import code_of
from ..core.errors import ParameterError, keys_of
from ..data.store import Received
from ..poisoning.choice import assign_samples
from ..poisoning.poisoned import Poisoned, Teaching
from ..poisoning.policy import Policy, check_classes, own_labels
from ..poisoning.trigger import Trigger
from ..poisoning.truth import Part, Truth
from .attack import Intent, own_arguments
from .context import Context


def make_trigger(intent: Intent, context: Context) -> Trigger:
    """The trigger of an intent, for training images yet to be chosen.

    Raises:
        ParameterError: what the attack's `make` refuses, named `ATTACK.KEY`; a policy of classes that do not exist.
    """
    # Classes first: a network trained for a class that does not exist would be minutes lost.
    check_classes(intent.policy, len(context.train.classes), context.train.classes)
    with keys_of(intent.attack):
        return intent.method.make(aimed(context, intent.policy), **intent.arguments)


def aimed(context: Context, policy: Policy) -> Context:
    """The context with the classes that a policy leads from and to."""
    sources = tuple(policy.sources) if policy.label_policy == "source_specific" else ()
    return replace(context, target=policy.target, sources=sources)


def optimised(intent: Intent, trigger: Trigger, context: Context, index: np.ndarray) -> Trigger:
    """The trigger for the training samples `index` (int64, sorted): itself, unless the attack optimises it for them."""
    if intent.method.optimise is None:
        return trigger
    with keys_of(intent.attack):
        return intent.method.optimise(trigger, aimed(context, intent.policy), index)


def craft(attack: str, intents: Sequence[Intent], context: Context, *, surrogate: bool = False) -> Poisoned:
    """Poisoned training set: triggers made, samples chosen.

    Args:
        attack: name of the whole ("multi" for several triggers).
        intents: one per trigger, at least one; a sample is stamped by one trigger at most. Their policies have the same
            label policy and the same way of stamping.
        context: training set and seed of the attacker; `target` is set here for each trigger.
        surrogate: whether to poison a set that stands in for the one that there is not, where the victim receives a model.

    Raises:
        ParameterError: what an attack's `make`, `own_labels` or `assign_samples` refuses.
    """
    labels, classes = context.train.labels, len(context.train.classes)
    triggers = [make_trigger(intent, context) for intent in intents]
    # Before any sample is chosen: a trigger may ask for samples of its own (a property), and the others share the rest.
    orders, chosen = [], []
    for intent, trigger in zip(intents, triggers, strict=True):
        with keys_of(intent.attack):
            orders.append(trigger.order(context.train))
            labels_of_trigger = trigger.labels(context.train)
        own = own_labels(intent.policy, context.attributes, classes)
        chosen.append(labels_of_trigger if own is None else own)
    received = received_by_the_victim(attack, intents, triggers, surrogate=surrogate)
    policies = [intent.policy for intent in intents]
    mask, number_of, given = assign_samples(
        policies,
        orders,
        labels,
        classes,
        seed=context.seed,
        names=context.train.classes,
        copies=received == "model" and intents[0].method.copies,
        chosen=chosen,
    )
    # Only now is it known which images are to be optimised one by one.
    final = [
        optimised(intent, trigger, context, np.flatnonzero(number_of == number))
        for number, (intent, trigger) in enumerate(zip(intents, triggers, strict=True))
    ]
    parts = tuple(Part(intent.attack, intent.policy, intent.arguments) for intent in intents)
    teaching = _teaching(intents)
    anew = any(trigger.anew and intent.policy.cover_ratio for intent, trigger in zip(intents, final, strict=True))
    truth = Truth(attack, parts, mask, number_of, labels, given, bool(teaching or anew), received)
    return Poisoned(truth, tuple(final), teaching)


def received_by_the_victim(
    attack: str, intents: Sequence[Intent], triggers: Sequence[Trigger], *, surrogate: bool
) -> Received:
    """What the victim gets: a poisoned set, or a model, and then a surrogate of the set only where one is asked for.

    Raises:
        ParameterError: a surrogate that cannot be made, or is not needed.
    """
    trained = any(trigger.trained for trigger in triggers)
    model = trained or any(intent.method.copies for intent in intents)
    if not surrogate:
        return "model" if model else "set"
    if trained or not model:
        because = (
            "its trigger is known only once the victim is trained" if trained else "its victim receives a poisoned set"
        )
        raise ParameterError(f"surrogate.data: true given, allowed with {attack}: false, as {because}")
    return "surrogate"


def _teaching(intents: Sequence[Intent]) -> tuple[Teaching, ...]:
    """What the attacker does to the training besides stamping.

    Raises:
        ParameterError: several triggers, one of which trains the victim, unless it teaches all of them alike.
    """
    teaching: list[Teaching] = []
    for number, intent in enumerate(intents):
        # With the values that nobody gave: a changed default is then a changed artefact.
        known = {**(intent.method.make.__kwdefaults__ or {}), **intent.arguments}
        if (hand := intent.method.hand) is None or not known.get(intent.method.hand_if, True):
            continue
        taught = Teaching(intent.attack, {name: known[name] for name in own_arguments(hand)}, code_of(hand.__module__))
        # A victim has one training: triggers that share it are taught by one hand, by which all of them are.
        alike = intent.method.several and all(other.attack == intent.attack for other in intents)
        if len(intents) > 1 and not (alike and teaching in ([], [taught])):
            shared = f", or {intent.attack} for all with the same training" if intent.method.several else ""
            raise ParameterError(
                f"multi.triggers[{number}].attack: {intent.attack!r} given, which trains the victim; allowed: attacks that poison "
                f"data{shared}"
            )
        if taught not in teaching:
            teaching.append(taught)
    if (around := intents[0].around) is not None:
        teaching.append(Teaching(around.plan, around.arguments, code_of(around.hand.__module__)))
    return tuple(teaching)
