"""Several triggers, each with a target of its own, in one data set (as attackers who do not know of each other)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..core.errors import UserError
from ..core.hyperparameters import choose
from ..crafting.craft import Intent, intent
from . import ATTACKS

DEFAULT = ({"attack": "badnets", "target": 0}, {"attack": "blended", "target": 1})


def options(*, triggers: list[dict[str, Any]] = list(DEFAULT)) -> list[dict[str, Any]]:  # noqa: B006 (never changed)
    """The parameters of `multi`.

    Args:
        triggers: at least two blocks: `attack` (a name), `target` (a class), and that attack's own parameters where they
            differ from its section.
    """
    return triggers


def intents(
    policy: Mapping[str, Any], sections: Mapping[str, Mapping[str, Any]], triggers: list[dict[str, Any]], *, where: str
) -> list[Intent]:
    """One intent per trigger. The attack's rate, or count, is shared out evenly among them.

    Args:
        policy: attributes of `Policy` for all of them; `target` is each trigger's own.
        sections: every attack's parameters, by its name.
        triggers: as in `options`.
        where: the section of the parameters, for messages ("attack").

    Raises:
        UserError: fewer than two triggers, an unknown attack, a wrong argument, a policy that cannot be shared out.
    """
    here = f"{where}.multi.triggers"
    if len(triggers) < 2:
        raise UserError(f"{here}: {len(triggers)} given, allowed: at least 2")
    if policy.get("random_poisoning"):
        raise UserError(f"{where}.random_poisoning: true given, allowed with multi: false")
    found = []
    for number, block in enumerate(triggers):
        own = dict(block)
        attack = own.pop("attack", None)
        choose(attack, ATTACKS, where=f"{here}[{number}].attack")
        if own.get("target") is None:
            raise UserError(f"{here}[{number}].target: nothing given, allowed: a class")
        shared = dict(policy) | {"target": own.pop("target")}
        if (count := shared.get("poison_count")) is not None:
            shared["poison_count"] = _share(count, number, len(triggers), f"{where}.poison_count")
        found.append(intent(attack, shared, {**sections.get(attack, {}), **own}, where=where))
    for key in ("label_policy", "poison_first"):
        values = {str(getattr(each.policy, key)) for each in found}
        if len(values) > 1:
            raise UserError(
                f"{where}.{key}: null given, and the triggers' own are {', '.join(sorted(values))}; allowed: one"
            )
    for number, each in enumerate(found):
        if any((each.attack, each.arguments) == (other.attack, other.arguments) for other in found[:number]):
            raise UserError(
                f"{here}[{number}]: the same trigger as an earlier one; allowed: another attack or other parameters"
            )
    rate = found[0].policy.poison_rate / len(found)
    return [replace(each, policy=replace(each.policy, poison_rate=rate)) for each in found]


def _share(count: Any, number: int, triggers: int, key: str) -> int:
    if not isinstance(count, int) or count < triggers:
        raise UserError(f"{key}: {count!r} given, allowed with {triggers} triggers: at least {triggers}")
    return count // triggers + (number < count % triggers)
