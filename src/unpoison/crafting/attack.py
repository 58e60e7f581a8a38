"""An attack as the rest of the project sees it: one typed value, as a detector or a purifier is.

`Attack` has one trigger. `Plan` is made of attacks: of several, or of none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from inspect import Parameter, signature
from typing import Any

from ..core.arrays import IntArray
from ..core.errors import ParameterError, keys_of
from ..core.hyperparameters import check
from ..poisoning.policy import Policy, in_numbers
from ..poisoning.trigger import Trigger
from .context import Context
from .stamping import Stamping

Block = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Attack:
    """A published attack.

    Attributes:
        make: `make(context, *, …) -> Trigger`; its keyword-only arguments are the attack's own parameters.
        trigger: class of the trigger, which restores it from disk.
        policy: attributes of `Policy` that the attack is published with, the label policy among them.
        policies: label policies that make sense with the trigger.
        assets: names of what takes time to make, for the table in docs/attacks.md.
        optimise: `optimise(trigger, context, index) -> Trigger`, called once the training samples to stamp are known
            (sorted); None where that changes nothing.
        hand: `hand(stamping, *, …) -> Stamping`, for attacks that train the victim: the hand in training, from one that stamps.
            Its keyword-only arguments are named like those of `make`, and what `make` alone has trains no victim again.
        hand_if: name of the argument of `make`, true or false, that says whether there is a hand; "": there always is.
        copies: whether that hand trains on stamped copies beside the images as they are, which no data set could be.
        several: whether that hand teaches several triggers at once, each on copies of its own.
        images: whether it stamps images.
        texts: whether it stamps texts (`data.texts`).
    """

    make: Callable[..., Trigger]
    trigger: type[Trigger]
    policy: dict[str, Any]
    policies: tuple[str, ...]
    assets: tuple[str, ...] = ()
    optimise: Callable[[Any, Context, IntArray], Trigger] | None = None
    hand: Callable[..., Stamping] | None = None
    hand_if: str = ""
    copies: bool = False
    several: bool = False
    images: bool = True
    texts: bool = False

    @property
    def parameters(self) -> Callable[..., Any]:
        """The callable whose keyword-only arguments are the attack's own parameters."""
        return self.make


@dataclass(frozen=True)
class Around:
    """What a plan does to the training, around the hand of the attack that it is made of.

    Attributes:
        plan: name of the plan.
        hand: `Plan.hand`.
        arguments: its keyword-only arguments.
    """

    plan: str
    hand: Callable[..., Stamping]
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Intent:
    """One trigger that an attacker asks for.

    Attributes:
        attack: name of the attack.
        method: the attack itself.
        policy: which samples are stamped, and with what label.
        arguments: keyword-only arguments of `method.make`.
        around: what a plan that the attack is part of does to the training; None: nothing.
    """

    attack: str
    method: Attack
    policy: Policy
    arguments: dict[str, Any]
    around: Around | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """An attack that is made of others.

    Attributes:
        parameters: dataclass of its own parameters.
        intents: function of the attacks by name, the policy, its own parameters and all attacks' parameters by name that
            gives an intent per trigger.
        hand: `hand(stamping, *, …) -> Stamping`, for plans that change the training: from the hand of the attack to the plan's.
            Its keyword-only arguments are attributes of `parameters`.
    """

    parameters: type[Any]
    intents: Callable[[Mapping[str, Attack | Plan], Block, Block, Mapping[str, Block]], list[Intent]]
    hand: Callable[..., Stamping] | None = None
    # A plan makes nothing of its own; the field is here so that the table of assets reads both kinds alike.
    assets: tuple[str, ...] = field(default=(), init=False)


def intent(attack: str, method: Attack, policy: Block, arguments: Block) -> Intent:
    """The intent of one attack, with its published policy where `policy` gives nothing else.

    Args:
        attack: name of the attack.
        method: the attack itself.
        policy: attributes of `Policy`; None counts as absent.
        arguments: keyword-only arguments of `method.make`.

    Raises:
        ParameterError: an unknown key, a value of another type or out of range, a label policy that makes no sense with
            the trigger. The attack's own arguments are named `ATTACK.KEY`, those of the policy `KEY`.
    """
    # A null in params.yaml stands for the published value; only values that are set replace it.
    given = {key: value for key, value in policy.items() if value is not None}
    chosen = Policy(**{**method.policy, **check(given, Policy)})
    if chosen.label_policy not in method.policies:
        allowed = ", ".join(method.policies)
        raise ParameterError(f"label_policy: {chosen.label_policy} given, allowed with {attack}: {allowed}")
    # Whatever is stamped while the victim trains may be any candidate, in any view; only chosen samples are optimised.
    if chosen.in_training and method.trigger.per_sample:
        key, allowed = ("random_poisoning", "false") if chosen.random_poisoning else ("poison_first", "true")
        raise ParameterError(
            f"{key}: {str(getattr(chosen, key)).lower()} given, allowed with {attack}: {allowed}, as each "
            "training image is optimised once"
        )
    if chosen.in_training and method.trigger.labels_only:
        key, allowed = ("random_poisoning", "false") if chosen.random_poisoning else ("poison_first", "true")
        raise ParameterError(
            f"{key}: {str(getattr(chosen, key)).lower()} given, allowed with {attack}: {allowed}, as no training image is stamped"
        )
    if chosen.cover_ratio and method.trigger.labels_only:
        raise ParameterError(
            f"cover_ratio: {chosen.cover_ratio} given, allowed with {attack}: 0, as no training image is stamped"
        )
    with keys_of(attack):
        return Intent(attack, method, chosen, check(arguments, method.make))


def intents_of(
    attack: str,
    attacks: Mapping[str, Attack | Plan],
    policy: Block,
    sections: Mapping[str, Block],
    classes: Sequence[str] | None = None,
) -> list[Intent]:
    """One intent per trigger of an attack, whether it is an `Attack` or a `Plan`.

    Args:
        attack: a name out of `attacks`.
        attacks: every attack by name.
        policy: attributes of `Policy`; classes by number or by name.
        sections: parameters of every attack, by its name; absent ones have their defaults.
        classes: class names; None where they are not known yet, and names of classes are not looked up.

    Raises:
        ParameterError: as `intent`, and as `in_numbers`.
    """
    policy = in_numbers(policy, classes)
    method, own = attacks[attack], sections.get(attack, {})
    if isinstance(method, Attack):
        return [intent(attack, method, policy, own)]
    # A plan's own parameters are checked here, those of its attacks by `intent`, each under its own name.
    with keys_of(attack):
        checked = check(own, method.parameters)
        # The blocks of a plan have targets of their own.
        for key, blocks in checked.items():
            if isinstance(blocks, list):
                for number, block in enumerate(blocks):
                    with keys_of(f"{key}[{number}]"):
                        blocks[number] = in_numbers(block, classes) if isinstance(block, dict) else block
    intents = method.intents(attacks, policy, checked, sections)
    if method.hand is None:
        return intents
    values = asdict(method.parameters(**checked))
    around = Around(attack, method.hand, {name: values[name] for name in own_arguments(method.hand)})
    return [replace(intent, around=around) for intent in intents]


def own_arguments(hand: Callable[..., Any]) -> list[str]:
    """Names of the keyword-only arguments of a hand."""
    return [name for name, kind in signature(hand).parameters.items() if kind.kind is Parameter.KEYWORD_ONLY]
