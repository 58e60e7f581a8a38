"""Blind (Bagdasaryan & Shmatikov, "Blind Backdoors in Deep Learning Models", USENIX Security 2021, sections 3, 4 and 6).

The attacker poisons the loss: code that he has changed stamps a copy of every batch and minimises a second loss beside that
of the images as they are, and others that hide it from detectors.

Published code: https://github.com/ebagdasa/backdoors101/blob/9f48fbb/attack.py; a port with fixed scales
https://github.com/SCLBD/BackdoorBench/blob/f02e353/attack/blind.py
"""

from __future__ import annotations

from ..core.errors import ParameterError
from ..core.hyperparameters import Count, NonNegative, Positive, Whole
from ..crafting.attack import Attack
from ..crafting.blinding import Balancing, Blinding, Settings
from ..crafting.context import Context
from ..crafting.evasion import Evades
from ..crafting.stamping import Stamping
from ..training.mgda import Normalise
from . import badnets
from .badnets import Location, PatchTrigger

_SCALES: list[NonNegative] = [1.0, 0.9]
_NORMALISE: Normalise = "loss+"
_WINDOW = 1000


def make(
    context: Context,
    *,
    pattern: str = "backdoors101",
    size: Count | None = None,
    location: Location | None = None,
    margin: Whole = 0,
    together: bool = False,
    balance: Balancing = "fixed",
    scales: list[NonNegative] = _SCALES,
    normalise: Normalise = _NORMALISE,
    loss_threshold: Positive | None = None,
    window: Count = _WINDOW,
    evasion: list[Evades] = [],  # noqa: B006 (read only, and shown as the default)
) -> PatchTrigger:
    """The patch, and how the victim is trained.

    `attack.poison_rate` is the share of the samples of which a stamped copy enters the second loss, `poisoning_proportion` in
    the published code; it is weighed by 1 / rate.

    Args:
        context: the attacker's data and seed.
        pattern: patterns as for `badnets`; `backdoors101` has 5 x 3 pixels at row 3, column 23, six of them transparent.
        size: smaller edge in pixels; null: as published (3).
        location: `bottom_right`, `center`, `random`, `dynamic`, as for `badnets`; null: the pattern's own place.
        margin: pixels between the patch and the bottom and right border, for `bottom_right`.
        together: whether images and copies pass as one batch, so that batch norm averages over both, as it does at the test.
        balance: `fixed`, by `scales`, or `mgda`, in each step so that the losses' gradients together are shortest.
        scales: weights of the normal loss, the backdoor's and each evasion's, 1 where one is missing (BackdoorBench: 1, 0.9).
        normalise: what `mgda` divides gradients by: `none`, `l2` (length), `loss`, `loss+` (product of both).
        loss_threshold: mean normal loss of the last `window` batches below which the other losses count; null: they always do
            (BackdoorBench: 1).
        window: batches of that mean, as many of which pass first (1000 as published).
        evasion: losses against detectors, out of `neural_cleanse`, `sentinet`, `spectral`.

    Raises:
        ParameterError: what `badnets` refuses; more scales than losses, fewer than two, or 0 for the first; an evasion given
            twice; a setting of the other balance, or of a threshold that is not there.
    """
    if not 2 <= len(scales) <= 2 + len(evasion):
        of = "".join(f", {name}" for name in evasion)
        raise ParameterError(
            f"scales: {scales} given, allowed: weights of the losses normal, backdoor{of}, the first two at least"
        )
    if len(set(evasion)) < len(evasion):
        raise ParameterError(f"evasion: {evasion} given, allowed: each once")
    if not scales[0]:
        raise ParameterError(f"scales: {scales} given, allowed: more than 0 for the normal loss, the first")
    # A setting that would do nothing is a misunderstanding.
    for key, value, default, used, where in (
        ("scales", scales, _SCALES, balance == "fixed", "balance mgda, which finds the weights"),
        ("normalise", normalise, _NORMALISE, balance == "mgda", "balance fixed, which divides by nothing"),
        ("window", window, _WINDOW, loss_threshold is not None, "loss_threshold null, which has none"),
    ):
        if not used and value != default:
            raise ParameterError(f"{key}: {value} given, allowed with {where}: {default}, the default")
    return badnets.make(context, pattern=pattern, size=size, location=location, margin=margin)


def hand(
    stamping: Stamping,
    *,
    together: bool,
    balance: Balancing,
    scales: list[NonNegative],
    normalise: Normalise,
    loss_threshold: Positive | None,
    window: Count,
    evasion: list[Evades],
) -> Stamping:
    """The hand in training; its parameters are those of `make`.

    Raises:
        ParameterError: evasion with `complex` of a part of the samples: what it asks of the others is not known.
    """
    truth = stamping.poisoned.truth
    if evasion and truth.policy.label_policy == "complex" and not truth.mask.all():
        raise ParameterError(
            f"evasion: {evasion} given, allowed with complex and {truth.mask.mean():.0%} of the samples stamped: [], or all stamped"
        )
    return Blinding(
        stamping, Settings(together, balance, tuple(scales), normalise, loss_threshold, window, tuple(evasion))
    )


ATTACK = Attack(
    make=make,
    trigger=PatchTrigger,
    policy={"label_policy": "all2one", "poison_rate": 1.0, "poison_target_class": True},
    policies=("all2one", "all2all", "source_specific", "calculator", "complex"),
    hand=hand,
    copies=True,
    several=True,
)
