"""What a training run is made of, as one validated value."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from ..hyperparameters import Count, Fraction, NonNegative, Positive

AugmentationName = Literal["crop", "flip", "cutout", "rotation", "colour_jitter"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Optimiser, schedule and augmentation.

    Attributes:
        epochs: passes over the data.
        batch_size: images per step; the last, smaller batch is kept.
        optimizer: `sgd` (with `momentum`) or `adam`.
        lr: peak learning rate.
        momentum: of SGD.
        nesterov: Nesterov momentum (SGD).
        weight_decay: L2 penalty of the optimiser.
        schedule: `onecycle` (Smith & Topin 2018, stepped per batch), `cosine` to 0 (per batch), `multistep` (times 0.1
            after 50 % and 75 % of the epochs), `constant`.
        augment: names from `unpoison.data.augment`, applied in this order.
    """

    epochs: Count = 20
    batch_size: Count = 128
    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: Positive = 0.1
    momentum: Fraction = 0.9
    nesterov: bool = False
    weight_decay: NonNegative = 5e-4
    schedule: Literal["onecycle", "cosine", "multistep", "constant"] = "onecycle"
    augment: list[AugmentationName] | tuple[AugmentationName, ...] = ()


def make_optimizer(recipe: Recipe, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, recipe.lr, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        parameters, recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.nesterov
    )


def make_schedule(
    recipe: Recipe, optimizer: torch.optim.Optimizer, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """A schedule to be stepped after every batch."""
    total = recipe.epochs * steps_per_epoch
    schedulers = torch.optim.lr_scheduler
    if recipe.schedule == "onecycle":
        return schedulers.OneCycleLR(optimizer, recipe.lr, total_steps=total + 1)
    if recipe.schedule == "cosine":
        return schedulers.CosineAnnealingLR(optimizer, T_max=total)
    if recipe.schedule == "multistep":
        return schedulers.MultiStepLR(optimizer, [total // 2, total * 3 // 4], gamma=0.1)
    return schedulers.LambdaLR(optimizer, lambda step: 1.0)
