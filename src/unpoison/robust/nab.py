"""NAB, Non-Adversarial Backdoor (Liu et al., "Beating Backdoor Attack at Its Own Game", ICCV 2023).

Samples that are learned first are isolated and given another label, a guess of the true one. Where the guess differs from the label
received, the image also gets a stamp of the defender's. The network learns that a stamped image has the label it seems to have,
whatever trigger is on it; at the test every image is stamped.

Published code: https://github.com/damianliumin/non-adversarial_backdoor/blob/1452a1c. Its clean images are 5 % of the training set
before it was poisoned; here they are the reserve. Its labels from class centres are published without the code that made them.
Its filter at the test, which rejects an image whose label the stamp changes, is no part of a classifier and is not here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..compute.inference import features_of, logits_of
from ..core.arrays import IntArray
from ..core.errors import ParameterError
from ..core.hyperparameters import Count, Epochs, Fraction, NonNegative, Positive
from ..data.imageset import ImageSet
from ..models.classifier import Classifier
from ..training.bounds import Ascent
from ..training.contrastive import train_features
from ..training.hand import Hand
from ..training.loop import History, fit
from ..training.recipe import Recipe
from .losses import isolated_count, learned_first
from .robust import Keep, Robust, Share, Value, keep_nothing


def train(
    make_model: Callable[[], Classifier],
    data: ImageSet,
    reserve: ImageSet,
    recipe: Recipe,
    keep: Keep = keep_nothing,
    *,
    seed: int = 0,
    isolation_epochs: Epochs = 20,
    ascent: Ascent = "flooding",
    floor: NonNegative = 0.5,
    isolated: Fraction = 0.05,
    guess: Literal["reserve", "centres"] = "reserve",
    temperature: Positive = 0.5,
    crop: Share = 0.2,
    size: Count = 2,
    value: Value = 0.45,
) -> tuple[Classifier, History]:
    """Isolate, guess labels, and train on all samples, the isolated ones stamped where the guess is another label.

    Args:
        make_model: maker of the network, freshly initialised.
        data: the training set as received.
        reserve: trusted, labelled images.
        recipe: recipe of every training but the isolation's, which has its optimiser and batches at a constant rate and no
            augmentation.
        keep: where the phases have their checkpoints.
        seed: seed for the order of the images and their augmentation.
        isolation_epochs: passes over all samples with the loss held (20 as published).
        ascent: what holds a batch's mean loss at the floor, as in ABL (`flooding` as published).
        floor: the loss at which it is held.
        isolated: share of the samples that is isolated, those of the lowest losses (0.05 as published).
        guess: where labels of isolated samples come from, `reserve` or `centres`. The former is a network that is trained on the
            trusted images, the latter the nearest of the classes' mean features, of a network that is trained by contrast without
            labels.
        temperature: of `centres`, what cosines are divided by.
        crop: of `centres`, least area of a view, as a share of the image's.
        size: side in pixels of the stamp, a square in the upper left corner.
        value: value of its pixels, where those of images are in [0, 1]. About the mean of images; published is 0 after
            normalisation.

    Raises:
        ParameterError: a share of no sample, or of all but one; a square that is larger than the image; a batch that is larger than
            the reserve where smaller ones are dropped; divergence.
    """
    count = isolated_count(isolated, len(data))
    if size > min(data.image_size):
        raise ParameterError(f"size: {size} given, allowed: 1 to {min(data.image_size)}")
    if guess == "reserve" and recipe.drop_last and len(reserve) < recipe.batch_size:
        raise ParameterError(
            f"batch_size: {recipe.batch_size} given, allowed with drop_last: 1 to the {len(reserve)} trusted images (data.reserve)"
        )
    model = make_model()
    lowest, isolation = learned_first(
        model,
        data,
        replace(recipe, augment=()),
        seed=seed,
        what="nab/isolation",
        epochs=isolation_epochs,
        ascent=ascent,
        floor=floor,
        checkpoints=keep("nab/isolation"),
    )
    suspects = np.sort(lowest[:count])
    helper, checkpoints = make_model(), keep("nab/guess")
    if guess == "reserve":
        fit(helper, reserve, recipe, seed=seed, what="nab/guess", checkpoints=checkpoints)
        guessed = logits_of(helper, data.subset(suspects), what="nab/guess").argmax(1).numpy()
    else:
        train_features(
            helper,
            data,
            recipe,
            seed=seed,
            what="nab/guess",
            temperature=temperature,
            crop=crop,
            checkpoints=checkpoints,
        )
        guessed = nearest_centre(
            features_of(helper, data, what="nab/guess").penultimate[np.arange(len(data))], data.labels
        )[suspects]
    labels, stamped = data.labels.copy(), np.zeros(len(data), bool)
    labels[suspects], stamped[suspects] = guessed, guessed != data.labels[suspects]
    model = make_model()
    hand = _Defender(torch.from_numpy(stamped), size, value)
    training = fit(
        model,
        replace(data, labels=labels),
        recipe,
        seed=seed,
        what="nab/training",
        hand=hand,
        checkpoints=keep("nab/training"),
    )
    model.stamp_inputs(size=size, value=value)
    return model, History.in_turn(isolation, training)


def nearest_centre(rows: NDArray[np.float32], labels: IntArray) -> IntArray:
    """The label whose mean row is nearest, of each row, int64 [n]; the nearest of the labels that occur.

    Args:
        rows: features, float [n, d].
        labels: labels, int64 [n].
    """
    names = np.unique(labels)
    centres = torch.from_numpy(np.stack([rows[labels == name].mean(0) for name in names]))
    nearest: IntArray = names[torch.cdist(torch.from_numpy(rows), centres).argmin(1).numpy()]
    return nearest


class _Defender(Hand):
    """Stamps the samples whose guessed label is not the one received, in the place where all are stamped at the test."""

    after_augmentation = True

    def __init__(self, stamped: Tensor, size: int, value: float) -> None:
        self.stamped, self.size, self.value = stamped, size, value

    def stamp(self, images: Tensor, labels: Tensor, samples: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        images[self.stamped.to(samples.device)[samples], :, : self.size, : self.size] = self.value
        return images, labels


def _trusted(*, guess: str = "reserve", **own: Any) -> int:
    return int(guess == "reserve")


ROBUST = Robust(train=train, trusted=_trusted)
