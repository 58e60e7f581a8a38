"""A hand in training, an attacker's or a defender's: what it does to each batch, to what is minimised, and after each step.

`loop` and `plan` call it and know no method. Methods that have one subclass `Hand`, which by itself does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Generator, Tensor, nn

if TYPE_CHECKING:
    from ..compute.distributed import World
    from ..models.classifier import Classifier

Loss = Callable[["Classifier", Tensor, Tensor], tuple[Tensor, Tensor]]
"""(model, float images [b, c, h, w], labels int64 [b]) -> (logits [b, classes], loss of each sample [b])"""


class Objective(NamedTuple):
    """What a step minimises: the sum of `losses` and `extra`, over the samples of the whole batch.

    Attributes:
        logits: logits of the batch, [b, classes].
        losses: loss of each sample, [b]: what the training's record keeps.
        extra: what the hand adds, summed over the samples; None for nothing.
    """

    logits: Tensor
    losses: Tensor
    extra: Tensor | None = None


class Hand:
    """A hand in training; this one keeps still.

    Attributes:
        after_augmentation: whether `stamp` sees the images after their augmentation, or before.
        sam: radius of Sharpness-Aware Minimisation that is trained with; 0: the recipe's own.
        eager: whether it looks into the network's passes, or goes back through one twice, which a compiled pass does not allow.
        spent: by name what a private training has spent of its budget, after `check`; of all others nothing.
    """

    after_augmentation: bool = False
    sam: float = 0.0
    eager: bool = False
    spent: Mapping[str, float] = MappingProxyType({})

    def check(self, steps: int) -> None:
        """Before anything is trained: whether a training will do.

        Args:
            steps: number of the optimiser's steps in all epochs together.

        Raises:
            UserError: one that is too short.
        """

    def start(self, model: Classifier, here: World) -> None:
        """Before the first epoch: the network is on its device, in training mode; `here` are the processes."""

    def length(self, count: int) -> int:
        """Samples in an epoch of a set of `count`."""
        return count

    def order(self, epoch: int, count: int, generator: Generator) -> Tensor:
        """The samples of an epoch in their order, int64 [length(count)], the same in every process; after `start_epoch`.

        Args:
            epoch: number of the epoch, from 0.
            count: samples in the set.
            generator: CPU generator of the training run.
        """
        return torch.randperm(count, generator=generator)

    def batches(
        self, epoch: int, count: int, generator: Generator, cut: Callable[[Tensor], list[Tensor]]
    ) -> list[Tensor]:
        """The batches of an epoch, each int64 [b], as many as `cut` makes of `count` samples, the same in every process.

        Args:
            epoch: number of the epoch, from 0.
            count: samples in the set.
            generator: CPU generator of the training run.
            cut: cuts an epoch's samples into the recipe's batches.
        """
        return cut(self.order(epoch, count, generator))

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Before an epoch, counted from 0, of so many."""

    def stamp(self, images: Tensor, labels: Tensor, samples: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Images and labels of a batch after the attack.

        Args:
            images: clean images, float [b, c, h, w] in [0, 1]; may be written to.
            labels: labels of the training set, int64 [b].
            samples: indices in the training set, int64 [b].
            epoch: number of the epoch, from 0.

        Returns:
            Images and labels in the same shapes; images may be the given ones, written to.
        """
        return images, labels

    def objective(self, plain: Loss, model: Classifier, images: Tensor, labels: Tensor, samples: Tensor) -> Objective:
        """What a step minimises.

        Args:
            plain: the loss that the recipe asks for.
            model: the network, in training mode.
            images: what `stamp` and the augmentation made of this process's share of the batch, float [b, c, h, w] in [0, 1].
            labels: the labels of `stamp`, int64 [b].
            samples: indices in the training set, int64 [b].
        """
        return Objective(*plain(model, images, labels))

    def backward(self, objective: Objective, parameters: Sequence[nn.Parameter], total: int, here: World) -> None:
        """Leave in the parameters, which have none, the gradients of the whole batch's mean, the same in every process.

        Args:
            objective: what `objective` made of this process's share of the batch.
            parameters: those that the optimiser steps.
            total: samples in the whole batch.
            here: the processes.
        """
        value = objective.losses.sum() if objective.extra is None else objective.losses.sum() + objective.extra
        # Over the whole batch, not this process's share of it: the summed gradients are then those of the mean.
        (value / total).backward()
        here.sum_gradients(parameters)

    def after_step(self) -> None:
        """After the optimiser's step, with gradients on: networks of the hand's own take theirs."""

    def check_networks(self) -> None:
        """After the last epoch, and where the training diverged: networks of the hand's own are at fault first.

        Raises:
            UserError: one of them is not finite.
        """

    def tensors(self) -> dict[str, Tensor]:
        """By name what a killed training needs to go on: the hand's networks and the moments of their optimisers."""
        return {}
