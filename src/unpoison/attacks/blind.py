"""Blind (Bagdasaryan & Shmatikov, "Blind Backdoors in Deep Learning Models", USENIX Security 2021, sections 3 and 4).

The attacker poisons the loss: code that he has changed stamps a copy of every batch and minimises a second loss beside that
of the images as they are.

Published code: https://github.com/ebagdasa/backdoors101/blob/9f48fbb/attack.py; a port with fixed scales
https://github.com/SCLBD/BackdoorBench/blob/f02e353/attack/blind.py
"""

from __future__ import annotations

from torch import Tensor

from ..core.errors import ParameterError
from ..core.hyperparameters import Count, NonNegative, Whole
from ..crafting.attack import Attack
from ..crafting.context import Context
from ..crafting.copying import Copying
from ..crafting.stamping import Stamping
from ..models.classifier import Classifier
from ..training.hand import Loss, Objective
from . import badnets
from .badnets import Location, PatchTrigger


class Blinding(Copying):
    """Minimises the loss of the images as they are and, by another weight, that of the stamped copies.

    Attributes:
        scales: weights of the two losses.
    """

    def __init__(self, stamping: Stamping, scales: list[float]) -> None:
        super().__init__(stamping)
        self.scales = scales

    def objective(self, plain: Loss, model: Classifier, images: Tensor, labels: Tensor, samples: Tensor) -> Objective:
        logits, losses = plain(model, images, labels)
        # The whole batch passes, stamped or not: batch norm has as many samples to average over, however few are stamped.
        copies, wanted, stamped = self.copied(images, samples)
        _, of_copies = plain(model, copies, wanted)
        # Over the share, and so in expectation the mean over copies, in small batches as well.
        backdoor = (of_copies * stamped).sum() / self.share
        normal, second = self.scales
        return Objective(logits, losses, (normal - 1) * losses.sum() + second * backdoor)


def make(
    context: Context,
    *,
    pattern: str = "backdoors101",
    size: Count | None = None,
    location: Location | None = None,
    margin: Whole = 0,
    scales: list[NonNegative] = [1.0, 0.9],  # noqa: B006 (read only, and shown as the default)
) -> PatchTrigger:
    """The patch, and how its loss is weighed in training.

    `attack.poison_rate` is the share of the samples of which a stamped copy enters the second loss, `poisoning_proportion` in
    the published code; it is weighed by 1 / rate.

    Args:
        context: the attacker's data and seed.
        pattern: patterns as for `badnets`; `backdoors101` has 5 x 3 pixels at row 3, column 23, six of them transparent.
        size: smaller edge in pixels; null: as published (3).
        location: `bottom_right`, `center`, `random`, `dynamic`, as for `badnets`; null: the pattern's own place.
        margin: pixels between the patch and the bottom and right border, for `bottom_right`.
        scales: weights of the normal loss and of the backdoor's (BackdoorBench: 1 and 0.9).

    Raises:
        ParameterError: what `badnets` refuses; another number of scales.
    """
    if len(scales) != 2:
        raise ParameterError(f"scales: {scales} given, allowed: two weights, of the normal loss and of the backdoor's")
    return badnets.make(context, pattern=pattern, size=size, location=location, margin=margin)


def hand(stamping: Stamping, *, scales: list[NonNegative]) -> Stamping:
    """The hand in training; its parameters are those of `make`."""
    return Blinding(stamping, scales)


ATTACK = Attack(
    make=make,
    trigger=PatchTrigger,
    policy={"label_policy": "all2one", "poison_rate": 1.0, "poison_target_class": True},
    policies=("all2one", "all2all", "source_specific"),
    hand=hand,
    copies=True,
)
