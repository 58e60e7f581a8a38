"""What the stages around stress tests share: the section `stress` of the parameters, and the models it may name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge, Gt, Le

from parameters import PARAMS, Params, checked
from purifying import purified_of
from unpoison.core.errors import UserError
from unpoison.core.hyperparameters import Count, Epochs, NonNegative, Positive
from unpoison.training.recipe import AugmentationName


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The section `stress`; the values are those of `stress.retuning.retune` and `stress.reactivation.train_generator`.

    Attributes:
        methods: purified models that are tested.
        poisoned: poisoned training images that a model is retuned on.
        epochs: epochs of retuning.
        batch_size: images per step, of both attacks.
        lr: learning rate of retuning.
        augment: augmentations of the trusted images, drawn once.
        points: networks on the line to the backdoored model, both ends among them.
        reactivation: whether the reactivation attack is run, for which the clean model is trained whatever `control` says.
        images: clean and as many poisoned images of its generator.
        query_epochs: epochs of its generator.
        query_lr: learning rate of its generator.
        alpha: weight of the divergence from the retuned model.
        budget: largest change of a pixel, of 255.
    """

    methods: list[str] = field(default_factory=list)
    poisoned: Count = 5
    epochs: Epochs = 5
    batch_size: Count = 128
    lr: Positive = 0.01
    augment: list[AugmentationName] = field(default_factory=list)
    points: Annotated[int, Ge(2), Le(1000)] = 11
    reactivation: bool = False
    images: Count = 500
    query_epochs: Epochs = 50
    query_lr: Positive = 0.1
    alpha: NonNegative = 0.2
    budget: Annotated[float, Gt(0), Le(255)] = 16.0


def settings(params: Params) -> Settings:
    wanted, known = Settings(**checked(params, "stress", Settings)), purified_of(params)
    if len(set(wanted.methods)) != len(wanted.methods) or not set(wanted.methods) <= set(known):
        allowed = (
            f"a list out of the models that are purified: {', '.join(known)}" if known else "[], no model is purified"
        )
        raise UserError(f"{PARAMS}: stress.methods: {wanted.methods!r} given, allowed: {allowed}")
    return wanted
