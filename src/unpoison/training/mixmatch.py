"""MixMatch (Berthelot et al., "MixMatch: A Holistic Approach to Semi-Supervised Learning", NeurIPS 2019): training on images whose
labels are believed and on images whose labels are guessed.

Here batch norm sees the images of a step as one batch; the published code interleaves three of them and runs each by itself.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Generator, Tensor

from ..compute.device import to_float
from ..compute.distributed import World
from ..core.errors import ParameterError
from ..core.hyperparameters import NonNegative, Positive
from ..data.imageset import ImageSet
from ..models.classifier import Classifier
from .augment import Batch, apply, draw
from .hand import Hand, Loss, Objective
from .recipe import Recipe

Believed = Callable[[int, Classifier], NDArray[np.bool_]]
"""The number of an epoch, from 0, and the network, in evaluation mode, to the mask of the samples whose labels are believed, [n]:
some, not all, and a function of these two alone, as a resumed training asks anew."""


def sharpened(shares: Tensor, temperature: float) -> Tensor:
    """Distributions [b, classes] made more certain: raised to the power of 1 / temperature, and scaled to a sum of 1."""
    powers = shares ** (1 / temperature)
    return powers / powers.sum(1, keepdim=True)


def mixed_with(values: Tensor, others: Tensor, share: float) -> Tensor:
    """Values and those at the places `others`, by shares of `share` and the rest (Zhang et al., "mixup", ICLR 2018)."""
    return share * values + (1 - share) * values[others]


def semi_supervised_loss(logits: Tensor, targets: Tensor, believed: int) -> tuple[Tensor, Tensor]:
    """Losses of images whose labels are believed, and of those whose labels are guessed.

    Args:
        logits: float [b, classes], believed ones first.
        targets: distributions, float [b, classes].
        believed: number of the former.

    Returns:
        Cross entropy of each of the first, [believed], and of each of the others the mean over the classes of the squared
        difference of the shares, [b - believed].
    """
    entropies = -(targets[:believed] * F.log_softmax(logits[:believed], dim=1)).sum(1)
    squares = (logits[believed:].softmax(1) - targets[believed:]).square().mean(1)
    return entropies, squares


def adam(recipe: Recipe, *, epochs: int, batch_size: int, lr: float) -> Recipe:
    """The recipe of a training by MixMatch: Adam at a constant learning rate, with another recipe's augmentation."""
    return Recipe(
        epochs=epochs,
        batch_size=batch_size,
        optimizer="adam",
        lr=lr,
        weight_decay=0.0,
        schedule="constant",
        augment=recipe.augment,
    )


def check_pools(believed: int, count: int, batch_size: int) -> None:
    """Raises ParameterError where a batch is larger than the samples that are believed, or than the others.

    Args:
        believed: number of the former.
        count: number of all.
        batch_size: images of a kind in a step.
    """
    for kind, pool in (("believed", believed), ("guessed", count - believed)):
        if pool < batch_size:
            raise ParameterError(
                f"batch_size: {batch_size} given, allowed: up to the {pool} samples whose labels are {kind}"
            )


class MixMatch(Hand):
    """Each batch of believed images is mixed with two views each of as many others, whose labels the network guesses.

    An epoch is `steps` batches, whatever the numbers of both kinds are.
    """

    # What draws the augmentation is not known to a compiled pass, and the network is passed twice.
    eager = True

    def __init__(
        self,
        data: ImageSet,
        recipe: Recipe,
        believed: Believed,
        *,
        steps: int | None,
        temperature: Positive,
        alpha: Positive,
        weight: NonNegative,
    ) -> None:
        """A hand for a training of `fit` on the same data with the same recipe.

        Args:
            data: all samples.
            recipe: recipe of the training, whose augmentation the views have.
            believed: asked before each epoch for the samples whose labels are believed.
            steps: steps in an epoch; None: as many as batches in the set.
            temperature: that guesses are sharpened with (0.5 as published).
            alpha: of the distribution Beta(alpha, alpha) of the shares that images are mixed by (0.75).
            weight: weight of the guessed labels' loss at the end (75 for CIFAR-10); it rises to it from 0, epoch by epoch.
        """
        self.data, self.recipe, self.believed = data, recipe, believed
        self.steps = steps or max(1, len(data) // recipe.batch_size)
        self.temperature, self.alpha, self.weight = temperature, alpha, weight

    def length(self, count: int) -> int:
        return self.steps * self.recipe.batch_size

    def start(self, model: Classifier, here: World) -> None:
        self.model, self.here = model, here

    def start_epoch(self, epoch: int, epochs: int) -> None:
        # Statistics of batch norm are each process's own until now; all are to find the same samples.
        self.here.average_buffers(self.model)
        self.mask = self.believed(epoch, self.model.eval())
        check_pools(int(self.mask.sum()), len(self.mask), self.recipe.batch_size)
        self.model.train()
        self.ramp, self.epoch = self.weight * epoch / epochs, epoch
        self.others = _in_turn(torch.from_numpy(np.flatnonzero(~self.mask)), self.length(0), torch.default_generator)
        self.used = 0

    def order(self, epoch: int, count: int, generator: Generator) -> Tensor:
        return _in_turn(torch.from_numpy(np.flatnonzero(self.mask)), self.length(count), generator)

    def objective(self, plain: Loss, model: Classifier, images: Tensor, labels: Tensor, samples: Tensor) -> Objective:
        count, device = len(images), images.device
        # Two views of as many others, and the network's guess: the mean over both, sharpened.
        index = self.others[self.used : self.used + count]
        self.used += count
        loaded = to_float(self.data.tensor(index.numpy()), device)
        batch = Batch(index, self.epoch, self.data.image_size, torch.default_generator)
        views = [self._augmented(loaded, batch) for _ in range(2)]
        with torch.no_grad():
            shares = sum(model(view).float().softmax(1) for view in views) / 2
            guessed = sharpened(shares, self.temperature)
        targets = torch.cat([F.one_hot(labels, guessed.shape[1]).to(guessed), guessed, guessed])
        # Every image is mixed with one of all, itself having the greater share.
        share = float(torch.distributions.Beta(self.alpha, self.alpha).sample())
        share, others = max(share, 1 - share), torch.randperm(3 * count).to(device)
        every = torch.cat([images, *views])
        logits = model(mixed_with(every, others, share)).float()
        entropies, squares = semi_supervised_loss(logits, mixed_with(targets, others, share), count)
        return Objective(logits[:count], entropies, self.ramp * squares.mean() * count)

    def _augmented(self, images: Tensor, batch: Batch) -> Tensor:
        names = self.recipe.augment
        return apply(images, names, [rows.to(images.device) for rows in draw(names, batch)])


def _in_turn(samples: Tensor, length: int, generator: Generator) -> Tensor:
    """So many samples, int64 [length]: all in a random order, then all in another."""
    rounds = -(-length // len(samples))
    return torch.cat([samples[torch.randperm(len(samples), generator=generator)] for _ in range(rounds)])[:length]
