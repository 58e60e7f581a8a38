"""Several triggers, each with a target of its own, in one data set (as attackers who do not know of each other)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from ..core.errors import ParameterError
from ..core.hyperparameters import one_of
from ..crafting.attack import Attack, Block, Intent, Plan, intent
from ..poisoning.policy import Operation

DEFAULT = ({"attack": "badnets", "target": 0}, {"attack": "blended", "target": 1})


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """The parameters of `multi`.

    Attributes:
        triggers: at least two blocks: `attack`, `target`, own parameters. `attack` is a name and `target` a class, with
            `calculator` in its place `operation`; an attack's own parameters are given where they differ from its section.
    """

    triggers: list[dict[str, Any]] = field(default_factory=lambda: [dict(block) for block in DEFAULT])


def intents(
    attacks: Mapping[str, Attack | Plan], policy: Block, own: Block, sections: Mapping[str, Block]
) -> list[Intent]:
    """One intent per trigger. The attack's rate, or count, is shared out evenly among them.

    Args:
        attacks: every attack by name; those of one trigger may take part.
        policy: attributes of `Policy` for all triggers; `target` is each trigger's own, or `operation`.
        own: attributes of `Parameters`.
        sections: parameters of every attack, by its name.

    Raises:
        ParameterError: fewer than two triggers, an unknown attack, a wrong argument, a policy that cannot be shared out.
    """
    triggers = Parameters(**own).triggers
    single = {name: method for name, method in attacks.items() if isinstance(method, Attack)}
    if len(triggers) < 2:
        raise ParameterError(f"multi.triggers: {len(triggers)} given, allowed: at least 2")
    # Each trigger would draw from all samples in every epoch, and a sample could be drawn by several.
    if policy.get("random_poisoning"):
        raise ParameterError("random_poisoning: true given, allowed with multi: false")
    planned: list[Intent] = []
    for number, block in enumerate(triggers):
        arguments, key = dict(block), f"multi.triggers[{number}]"
        attack = arguments.pop("attack", None)
        method = one_of(attack, single, key=f"{key}.attack")
        # What sets one trigger's labels apart from another's.
        aim, allowed = "target", "a class"
        if policy.get("label_policy") == "calculator":
            aim, allowed = "operation", ", ".join(get_args(Operation))
            if "target" in arguments:
                raise ParameterError(f"{key}.target: {arguments['target']!r} given, allowed with calculator: operation")
            if (operation := arguments.get(aim)) is not None:
                one_of(operation, dict.fromkeys(get_args(Operation)), key=f"{key}.{aim}")
        if arguments.get(aim) is None:
            raise ParameterError(f"{key}.{aim}: nothing given, allowed: {allowed}")
        shared = dict(policy) | {aim: arguments.pop(aim)}
        if (count := shared.get("poison_count")) is not None:
            shared["poison_count"] = _share(count, number, len(triggers))
        # A block's own parameters win over the attack's section.
        planned.append(intent(str(attack), method, shared, {**sections.get(str(attack), {}), **arguments}))
    # One data set is stamped in one way, and graded in one way.
    for key in ("label_policy", "poison_first"):
        values = {str(getattr(part.policy, key)) for part in planned}
        if len(values) > 1:
            raise ParameterError(
                f"{key}: null given, and the triggers' own are {', '.join(sorted(values))}; allowed: one"
            )
    # Two equal triggers with different targets could not both be obeyed.
    for number, part in enumerate(planned):
        if any((part.attack, part.arguments) == (earlier.attack, earlier.arguments) for earlier in planned[:number]):
            raise ParameterError(
                f"multi.triggers[{number}]: the same trigger as an earlier one; allowed: another attack or other "
                "parameters"
            )
    # Counts were shared out above; a rate is the same for all, so one division does.
    rate = planned[0].policy.poison_rate / len(planned)
    return [replace(part, policy=replace(part.policy, poison_rate=rate)) for part in planned]


def _share(count: Any, number: int, triggers: int) -> int:
    """The part of trigger `number` in a count that is shared out as evenly as whole numbers allow."""
    if not isinstance(count, int) or count < triggers:
        raise ParameterError(f"poison_count: {count!r} given, allowed with {triggers} triggers: at least {triggers}")
    return count // triggers + (number < count % triggers)


ATTACK = Plan(parameters=Parameters, intents=intents)
