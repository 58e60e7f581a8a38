"""ASD, adaptive splitting (Gao et al., "Backdoor Defense via Adaptively Splitting Poisoned Dataset", CVPR 2023).

A network is trained by MixMatch on a pool of samples whose labels are believed and on the others without theirs. The pool starts
as a few trusted images and grows by the samples of the lowest symmetric cross entropy, class by class; then it is half of all
samples; and in the end the half whose losses a moment of supervised training lowers least, as it lowers those of poison most.

Published code: https://github.com/KuofengGao/ASD/blob/8bcb10b. It splits the samples by their losses as augmented, and takes its
trusted images from the training set before it was poisoned; here they are of the reserve.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..core.arrays import IntArray
from ..core.errors import UserError
from ..core.hyperparameters import Count, Fraction, NonNegative, Positive
from ..core.seeding import derive, numpy_rng
from ..data.imageset import ImageSet
from ..data.ranks import rising
from ..models.classifier import Classifier
from ..training.loop import History, fit
from ..training.mixmatch import MixMatch, adam, check_pools
from ..training.recipe import Recipe
from .losses import losses_of, symmetric_cross_entropy
from .robust import Keep, Robust, keep_nothing, own_keys

GROWTHS = 12
"""Sizes of the pool in the first half of the epochs, that of the trusted images alone among them: every fifth of 60 epochs."""


def train(
    make_model: Callable[[], Classifier],
    data: ImageSet,
    reserve: ImageSet,
    recipe: Recipe,
    keep: Keep = keep_nothing,
    *,
    seed: int = 0,
    seeds: Count = 10,
    growth: Count = 10,
    believed: Fraction = 0.5,
    meta_lr: Positive = 0.015,
    mixmatch_steps: Count | None = None,
    mixmatch_batch_size: Count = 64,
    mixmatch_lr: Positive = 0.002,
    sharpening: Positive = 0.5,
    alpha: Positive = 0.75,
    weight: NonNegative = 15.0,
) -> tuple[Classifier, History]:
    """Train by MixMatch on pools that are found anew before each epoch. All images are held in memory.

    Args:
        make_model: maker of the network, freshly initialised.
        data: the training set as received.
        reserve: trusted, labelled images.
        recipe: gives the epochs (120 as published) and the augmentation.
        keep: where the training has its checkpoints.
        seed: seed for the choice of trusted images, the order of the images and their augmentation.
        seeds: trusted images of each class, drawn from the reserve (10 as published).
        growth: samples of each class by which the pool grows, eleven times in the first half of the epochs, up to the share below.
        believed: share of the samples in the pool in the second half of the epochs.
        meta_lr: learning rate of the moment of supervised training. It is an epoch of Adam on the later half of the network, in the
            last quarter of the epochs.
        mixmatch_steps: steps in an epoch (1,024 as published); null: as many as batches in the training set.
        mixmatch_batch_size: images of the pool in a step.
        mixmatch_lr: learning rate, constant, by Adam.
        sharpening: temperature that guesses are sharpened with.
        alpha: of the distribution of the shares that images are mixed by.
        weight: weight of the guessed labels' loss at the end.

    Raises:
        ParameterError: a share of no sample or of all, fewer samples in the pool than a batch; divergence.
        UserError: a class without a trusted image.
    """
    chosen = _of_each_class(reserve, seeds, seed)
    trusted = reserve.subset(chosen)
    both = data.followed_by(trusted)
    for count in (len(trusted), int(believed * len(both))):
        with own_keys(batch_size="mixmatch_batch_size"):
            check_pools(count, len(both), mixmatch_batch_size)
    mixing = adam(recipe, epochs=recipe.epochs, batch_size=mixmatch_batch_size, lr=mixmatch_lr)

    def pool(epoch: int, model: Classifier) -> NDArray[np.bool_]:
        losses = losses_of(model, both, symmetric_cross_entropy, what="asd")
        mask = np.zeros(len(both), bool)
        if 2 * epoch < recipe.epochs:
            mask[len(data) :] = True
            count = growth * (2 * GROWTHS * epoch // recipe.epochs)
            mask[lowest_of_each_class(losses[: len(data)], data.labels, count, believed)] = True
            return mask
        if 4 * epoch >= 3 * recipe.epochs:
            # How much a moment of training on all labels lowers each loss: least counts.
            moment = replace(mixing, epochs=1, lr=meta_lr)
            tried = deepcopy(model)
            with own_keys(lr="meta_lr"):
                fit(
                    tried,
                    both,
                    moment,
                    seed=derive(seed, "asd/meta", epoch),
                    what="asd/meta",
                    parameters=_later_half(tried),
                )
            losses -= losses_of(tried, both, symmetric_cross_entropy, what="asd/meta")
        mask[rising(losses)[: int(believed * len(both))]] = True
        return mask

    model = make_model()
    hand = MixMatch(both, mixing, pool, steps=mixmatch_steps, temperature=sharpening, alpha=alpha, weight=weight)
    with own_keys(lr="mixmatch_lr", batch_size="mixmatch_batch_size"):
        return model, fit(model, both, mixing, seed=seed, what="asd", hand=hand, checkpoints=keep("asd"))


def lowest_of_each_class(losses: NDArray[np.float32], labels: IntArray, count: int, share: float) -> IntArray:
    """The `count` samples of each label with the lowest losses, or that share of them where it is less, int64 [k]."""
    order = rising(losses)
    members = [order[labels[order] == label] for label in np.unique(labels)]
    return np.concatenate([samples[: min(count, int(share * len(samples)))] for samples in members])


def _of_each_class(reserve: ImageSet, count: int, seed: int) -> IntArray:
    """So many trusted images of each class, or all where there are fewer, int64 [k]. Raises UserError for a class without one."""
    order = numpy_rng(seed, "asd/seeds").permutation(len(reserve))
    found = [order[reserve.labels[order] == label][:count] for label in range(len(reserve.classes))]
    for name, samples in zip(reserve.classes, found, strict=True):
        if not len(samples):
            raise UserError(
                f"asd: no trusted image of class {name!r} given, allowed: at least 1 of each (data.reserve)"
            )
    return np.concatenate(found)


def _later_half(model: Classifier) -> list[nn.Parameter]:
    """The parameters from the middle one of its layers on: of a ResNet-18 the two last stages and the head, as published."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    parameters = list(model.parameters())
    middle = next(i for i, value in enumerate(parameters) if value is layers[(len(layers) - 1) // 2].weight)
    return parameters[middle:]


ROBUST = Robust(train=train)
