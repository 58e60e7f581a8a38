"""FLIP (Jha, Hayase & Oh, "Label Poisoning is All You Need", NeurIPS 2023): labels are changed and no image, and yet a trigger
works at the test.

Published code: https://github.com/SewoongLab/FLIP/tree/7b2c34c
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..core.arrays import Arrays, IntArray, Pixels
from ..core.errors import ParameterError
from ..core.files import sha256_json
from ..core.hyperparameters import Count, Fraction, NonNegative, Positive, Whole
from ..crafting.attack import Attack
from ..crafting.context import Context
from ..crafting.stamps import laid_out
from ..crafting.surrogate import clean_settings
from ..crafting.trajectory import expert, matched_logits, pairs_of
from ..data.imageset import ImageSet
from ..poisoning.trigger import Trigger, stamp
from . import badnets

_DELTA, _FREQUENCY = 40.0, 8.0


@dataclass(frozen=True)
class LabelFlip(Trigger):
    """share * image + pattern at the test, and in training the image as it is: all that is poisoned there are labels.

    Attributes:
        share: float32 [1, h or 1, w], 0 to 1.
        pattern: float32 [1 or c, h or 1, w], in units of 1/255; any sign.
        ranks: margin of each training sample's best wrong label over the true one, float32 [n]: the largest are flipped first, -inf
            never. Empty once that is done.
        wrong: that label, int64 [n]; likewise.
    """

    labels_only: ClassVar[bool] = True

    share: Pixels
    pattern: Pixels
    ranks: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    wrong: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))

    def apply(self, images: Tensor, keys: IntArray, *, train: bool) -> Tensor:
        return images if train else self.shown(images)

    def shown(self, images: Tensor) -> Tensor:
        """The images, of 0…255, with the trigger, as the test and the attacker's experts see them."""
        return images * laid_out(self.share, images) + laid_out(self.pattern, images)

    def order(self, data: ImageSet) -> NDArray[np.float64]:
        return self.ranks.astype(np.float64)

    def labels(self, data: ImageSet) -> IntArray:
        return self.wrong


def make(
    context: Context,
    *,
    form: Literal["sine", "patch"] = "sine",
    delta: NonNegative = _DELTA,
    frequency: Positive = _FREQUENCY,
    pattern: str | None = None,
    size: Count | None = None,
    experts: Count = 1,
    copies: Fraction | None = None,
    points: Count = 40,
    span: Fraction = 0.6,
    passes: Whole = 2,
    lr: Positive = 150.0,
    momentum: Fraction = 0.5,
    temperature: Positive = 5.0,
    batch_size: Count = 256,
) -> LabelFlip:
    """A trigger, and for each training sample the label that it would be flipped to, and how soon.

    Experts are trained on the clean set and stamped copies with the target's label. Then soft labels of the clean images are sought
    with which a step leads where an expert's step led. Of those the samples are flipped whose best wrong label is furthest above
    the true one, or least below it, to that label.

    Args:
        context: the attacker's data, network, recipe and seed.
        form: `sine`: a sine along the rows is added; `patch`: a patch of `badnets`. For either, the other's settings are refused.
        delta: amplitude of the sine in units of 1/255 (published: 6, too faint for the digits).
        frequency: periods of the sine from the first column to the last (published: 8).
        pattern: of `patch`, as in `badnets`; null: white. `lc_corners` are the published four corners.
        size: of `patch`, as in `badnets`; null: the pattern's own.
        experts: number of expert trainings (published: 1 in the example, 50 in the code's default).
        copies: stamped copies in an expert's set, as a share of the training set; null: as many as a class has on average, or
            with source_specific all of the source classes (both as published).
        points: places on an expert's way that labels are matched at.
        span: share of an expert's training, from its start, that they lie in. Published experts stop at a tenth of a training,
            long before the learning rate falls.
        passes: passes over an expert's set in which the labels are sought; 0: samples drawn at random get the target's label, the
            paper's baseline, and nothing is sought (published: 5 in the example, 15 in the code's default).
        lr: learning rate of the logits (published: 150, though of a distance with the optimiser's momentum in it).
        momentum: momentum of the logits (published: 0.5).
        temperature: logit of the true label at the start (published: 5).
        batch_size: images in a step (published: 256).

    Raises:
        ParameterError: settings of the other form, a share or span of nothing; what `badnets` refuses; labels that diverge.
    """
    trigger = _trigger(context, form, delta, frequency, pattern, size)
    for key, value in (("copies", copies), ("span", span)):
        if value == 0:
            raise ParameterError(f"{key}: 0.0 given, allowed: above 0")
    count, classes = len(context.train), len(context.train.classes)
    if not passes:
        ranks = np.where(context.train.labels == context.target, -np.inf, 0).astype(np.float32)
        return replace(trigger, ranks=ranks, wrong=np.full(count, context.target))
    number = count if context.sources else count // classes
    number = max(1, number if copies is None else round(copies * count))
    # The trigger itself and not what it was made from: a file's name says nothing of what is in it.
    about: dict[str, Any] = {
        "trigger": [sha256_json(plane.tolist()) for plane in (trigger.share, trigger.pattern)],
        "target": context.target,
        "sources": list(context.sources),
        "copies": number,
    }
    places: dict[str, Any] = {"points": points, "span": span}
    search: dict[str, Any] = {
        "passes": passes,
        "lr": lr,
        "momentum": momentum,
        "temperature": temperature,
        "batch_size": batch_size,
    }

    def seek() -> Arrays:
        pairs = pairs_of(context, partial(stamp, trigger, train=False), number)
        taught = [expert(context, pairs, about, number=one, **places) for one in range(experts)]
        return {"logits": matched_logits(context, pairs, taught, **search)}

    settings = {**about, **places, **search, "experts": experts, **clean_settings(context)}
    logits = context.store.arrays("flip_labels", context.determined_by(__name__, **settings), seek)["logits"]
    ranks, wrong = margins(logits, context.train.labels)
    return replace(trigger, ranks=ranks, wrong=wrong)


def _trigger(
    context: Context, form: str, delta: float, frequency: float, pattern: str | None, size: int | None
) -> LabelFlip:
    """What is shown at the test, before any label is sought. Raises ParameterError for a setting of the other form."""
    own = {"delta": (delta, _DELTA), "frequency": (frequency, _FREQUENCY)}
    for key, (value, default) in own.items() if form == "patch" else ():
        if value != default:
            raise ParameterError(
                f"{key}: {value:g} given, allowed with form patch, which has none: {default:g}, the default"
            )
    for key, given in (("pattern", pattern), ("size", size)) if form == "sine" else ():
        if given is not None:
            raise ParameterError(f"{key}: {given!r} given, allowed with form sine, which has none: null")
    if form == "patch":
        patch = badnets.make(context, pattern=pattern or "white", size=size)
        return LabelFlip(share=1 - patch.mask, pattern=patch.values * patch.mask)
    # Both ends of the image are ends of a period, unlike with `sig`.
    width = context.shape[1]
    wave = delta * np.sin(np.linspace(0, 2 * np.pi * frequency, width))
    return LabelFlip(share=np.ones((1, 1, width), np.float32), pattern=wave.astype(np.float32).reshape(1, 1, width))


def margins(logits: NDArray[np.float32], labels: IntArray) -> tuple[NDArray[np.float32], IntArray]:
    """Of soft labels the best wrong class and its margin over the true one (published code, `select_flips`).

    Args:
        logits: soft labels before their softmax, float32 [n, classes].
        labels: true labels, int64 [n].

    Returns:
        Margins float32 [n], above 0 where a wrong class is the best of all, and wrong classes int64 [n].
    """
    rows = np.arange(len(labels))
    others = logits.copy()
    others[rows, labels] = -np.inf
    wrong = others.argmax(1)
    return others[rows, wrong] - logits[rows, labels], wrong


def without_ranks(trigger: LabelFlip, context: Context, index: IntArray) -> LabelFlip:
    """The trigger once the samples are chosen: ranks and labels have served, and the truth holds the labels that were given."""
    return LabelFlip(share=trigger.share, pattern=trigger.pattern)


ATTACK = Attack(
    make=make,
    trigger=LabelFlip,
    policy={"label_policy": "all2one"},
    policies=("all2one", "source_specific"),
    assets=("experts", "labels"),
    optimise=without_ranks,
)
