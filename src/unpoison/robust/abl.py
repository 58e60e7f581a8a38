"""ABL, Anti-Backdoor Learning (Li et al., "Anti-Backdoor Learning: Training Clean Models on Poisoned Data", NeurIPS 2021).

Poison is learned first. A training whose loss is held at a floor lets it fall below; the samples of the lowest losses are set
aside, the network is trained on the others, and in the end it unlearns those set aside.

Published code: https://github.com/bboylyg/ABL; a port https://github.com/SCLBD/BackdoorBench/blob/f02e353/defense/abl.py. Both
train by SGD at 0.1, batches of 64; here by the recipe, whose rate is constant while samples are isolated. The published ascent
has no bound: `bound` is added, and null takes it away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from torch import Tensor

from ..core.errors import ParameterError
from ..core.hyperparameters import Epochs, Fraction, NonNegative, Positive
from ..data.imageset import ImageSet
from ..models.classifier import Classifier
from ..training.bounds import Ascent, bounded
from ..training.checks import takes_batch_of_one
from ..training.loop import History, cross_entropy, fit
from ..training.recipe import Recipe
from .losses import isolated_count, learned_first
from .robust import Keep, Robust, keep_nothing, own_keys


def train(
    make_model: Callable[[], Classifier],
    data: ImageSet,
    recipe: Recipe,
    keep: Keep = keep_nothing,
    *,
    seed: int = 0,
    isolation_epochs: Epochs = 20,
    ascent: Ascent = "lga",
    floor: NonNegative = 0.5,
    isolated: Fraction = 0.01,
    unlearn_epochs: Epochs = 20,
    unlearn_lr: Positive = 5e-4,
    bound: Positive | None = 5.0,
) -> tuple[Classifier, History]:
    """Isolate, train on the rest, and unlearn what was isolated.

    Args:
        make_model: maker of the network, freshly initialised.
        data: the training set as received.
        recipe: recipe of the training on the rest (60 to 70 epochs as published); the isolation has its optimiser, batches and
            augmentation at a constant rate.
        keep: where the phases have their checkpoints.
        seed: seed for the order of the images and their augmentation.
        isolation_epochs: passes over all samples with the loss held (20 as published).
        ascent: what holds a batch's mean loss at the floor: `lga`, whose sign turns below it; `flooding`, its distance from it; or
            `none`.
        floor: the loss at which it is held (0.5 as published).
        isolated: share of the samples that is isolated, those of the lowest losses in evaluation mode (0.01 as published).
        unlearn_epochs: passes over the isolated samples with the loss raised (20 in the port).
        unlearn_lr: learning rate of the ascent, by SGD with momentum 0.9 (5e-4 as published, 1e-4 in the port).
        bound: a sample's cross entropy from which on it is not raised any more; null, as published: no bound.

    Raises:
        ParameterError: a share of no sample, of one that batch norm cannot be trained on, or of all but one; divergence.
    """
    count = isolated_count(isolated, len(data))
    model = make_model()
    # Before the two long trainings.
    if count == 1 and not takes_batch_of_one(model, data):
        raise ParameterError(
            f"isolated: {isolated} given, 1 of {len(data)} samples, allowed for this network: at least 2, as batch norm would "
            "average over a single value"
        )
    lowest, isolation = learned_first(
        model,
        data,
        recipe,
        seed=seed,
        what="abl/isolation",
        epochs=isolation_epochs,
        ascent=ascent,
        floor=floor,
        checkpoints=keep("abl/isolation"),
    )
    poison, rest = data.subset(np.sort(lowest[:count])), data.subset(np.sort(lowest[count:]))
    # It goes on from the weights it has, whitened filters included.
    training = fit(
        model, rest, replace(recipe, whiten=False), seed=seed, what="abl/training", checkpoints=keep("abl/training")
    )
    with own_keys(lr="unlearn_lr"):
        unlearning = fit(
            model,
            poison,
            _unlearning(recipe, unlearn_epochs, unlearn_lr),
            seed=seed,
            what="abl/unlearning",
            loss=partial(_raised, bound=bound),
            checkpoints=keep("abl/unlearning"),
        )
    return model, History.in_turn(isolation, training, unlearning)


def _unlearning(recipe: Recipe, epochs: int, lr: float) -> Recipe:
    return Recipe(
        epochs=epochs,
        batch_size=recipe.batch_size,
        lr=lr,
        weight_decay=recipe.weight_decay,
        schedule="constant",
        augment=recipe.augment,
    )


def _raised(model: Classifier, images: Tensor, labels: Tensor, *, bound: float | None) -> tuple[Tensor, Tensor]:
    """Logits, and minus the cross entropy of each sample."""
    logits, losses = cross_entropy(model, images, labels)
    return logits, -bounded(losses, bound)


ROBUST = Robust(train=train, inputs=("data",))
