"""The recipe of a training run as one value, and the learning rates it stands for."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi
from typing import Annotated, Literal, NamedTuple

from annotated_types import Ge, Lt

from ..core.errors import ParameterError
from ..core.hyperparameters import LARGEST, Count, Epochs, Fraction, NonNegative, Positive

AugmentationName = Literal["crop", "flip", "cutout", "rotation", "colour_jitter", "translate", "alternating_flip"]
Smoothing = Annotated[float, Ge(0), Lt(1)]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Batches, optimiser, schedule, label smoothing and augmentation. Published ones by name: `training.recipes`.

    Attributes:
        epochs: passes over the data.
        batch_size: images per step.
        drop_last: whether an epoch's last batch is left out where it is smaller than the others.
        optimizer: `sgd` (with `momentum`), `adam` (betas 0.9, which `onecycle` moves as it does momentum, and 0.999), or
            `muon` for convolutions beside SGD (Nesterov, 0.85) for biases, batch norm and linear layers.
        lr: peak learning rate; Muon's is the length of a step in each direction of a filter bank.
        sgd_lr: peak learning rate of the SGD beside Muon, along the same schedule.
        momentum: momentum of SGD or Muon. `onecycle` moves it from 0.95 to 0.85 at the peak and back, whatever is given here.
        nesterov: whether SGD's momentum, which then must be above 0, is Nesterov's.
        weight_decay: L2 penalty of the optimiser; none on what Muon trains, whose norm is fixed.
        schedule: `onecycle` (Smith & Topin 2018), `cosine` to 0, `linear` to 0, `multistep` (times `gamma` at each of
            `milestones`), `constant`.
        schedule_per: interval at which the learning rate changes, every `batch` or, as in published CIFAR code, every
            `epoch`.
        schedule_epochs: length of the schedule in epochs; None for `epochs`. A longer one is cut off by the end of
            training; after the end of a shorter one `onecycle` stays where it is and `cosine` rises again, as in torch.
        milestones: epochs after which `multistep` acts; None for 50 % and 75 % of the schedule.
        gamma: factor on the learning rate at a milestone.
        whiten: whether the first convolution gets filters that whiten patches of the images, and is not trained.
        label_smoothing: share of each label that is spread evenly over all classes.
        sam: radius of Sharpness-Aware Minimisation (`training.sam`), over all trained weights together; 0: without it.
        augment: names out of `training.augment`, applied in this order.
    """

    epochs: Epochs = 20
    batch_size: Count = 128
    drop_last: bool = False
    optimizer: Literal["sgd", "adam", "muon"] = "sgd"
    lr: Positive = 0.1
    sgd_lr: Positive = 0.05
    momentum: Fraction = 0.9
    nesterov: bool = False
    weight_decay: NonNegative = 5e-4
    schedule: Literal["onecycle", "cosine", "linear", "multistep", "constant"] = "onecycle"
    schedule_per: Literal["batch", "epoch"] = "batch"
    schedule_epochs: Epochs | None = None
    milestones: list[Epochs] | tuple[Epochs, ...] | None = None
    gamma: Positive = 0.1
    whiten: bool = False
    label_smoothing: Smoothing = 0.0
    sam: NonNegative = 0.0
    augment: list[AugmentationName] | tuple[AugmentationName, ...] = ()


class Rate(NamedTuple):
    """Learning rate and momentum (SGD) or first beta (Adam) for one step."""

    lr: float
    momentum: float


def rates(recipe: Recipe, steps_per_epoch: int) -> list[Rate]:
    """Rate of every step of a run, as torch.optim.lr_scheduler gives it, without a torch optimiser.

    Args:
        recipe: recipe with the schedule; one that moves per epoch is constant within an epoch.
        steps_per_epoch: batches in an epoch.

    Raises:
        ParameterError: a rate above `LARGEST`, which no optimiser takes.
    """
    # Positions count what the schedule moves by, batches or epochs; a step's position is that of its batch or epoch.
    every = steps_per_epoch if recipe.schedule_per == "epoch" else 1
    per_epoch = steps_per_epoch // every
    length = (recipe.schedule_epochs or recipe.epochs) * per_epoch
    try:
        found = [_rate(recipe, step // every, length, per_epoch) for step in range(recipe.epochs * steps_per_epoch)]
    except OverflowError:
        raise ParameterError(
            f"gamma: {recipe.gamma} given, allowed: one whose power after all milestones is a number"
        ) from None
    if (highest := max(rate.lr for rate in found)) > LARGEST:
        raise ParameterError(
            f"lr: {recipe.lr} given, with which the highest rate is {highest:.3g}; allowed: up to {LARGEST:g}"
        )
    return found


def _rate(recipe: Recipe, position: int, length: int, per_epoch: int) -> Rate:
    momentum = 0.9 if recipe.optimizer == "adam" else recipe.momentum
    if recipe.schedule == "onecycle":
        # torch's OneCycleLR and its defaults: up from lr / 25 during three tenths of the way, down to lr / 250,000 for the
        # rest, momentum the other way round. Its first phase ends at 0.3 * total - 1, a position that need not be whole.
        # Here total is one more than there are steps, so the very end is never reached.
        top = 0.3 * (length + 1) - 1
        if position <= top:
            share = position / top
            return Rate(_between(recipe.lr / 25, recipe.lr, share), _between(0.95, 0.85, share))
        share = (min(position, length) - top) / (length - top)
        return Rate(_between(recipe.lr, recipe.lr / 250_000, share), _between(0.85, 0.95, share))
    if recipe.schedule == "cosine":
        # Past its length the cosine rises again: published recipes that rely on torch's formula do as well.
        return Rate(_between(recipe.lr, 0.0, position / length), momentum)
    if recipe.schedule == "linear":
        return Rate(recipe.lr * max(0.0, 1 - position / length), momentum)
    if recipe.schedule == "multistep":
        milestones: list[int] = [length // 2, length * 3 // 4]
        if recipe.milestones is not None:
            milestones = [epoch * per_epoch for epoch in recipe.milestones]
        return Rate(recipe.lr * recipe.gamma ** sum(position >= milestone for milestone in milestones), momentum)
    return Rate(recipe.lr, momentum)


def _between(start: float, end: float, share: float) -> float:
    """Half a cosine from `start` (share 0) to `end` (share 1)."""
    return end + (start - end) * (1 + cos(pi * share)) / 2
