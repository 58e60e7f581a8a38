"""DBD, decoupling-based backdoor defence (Huang et al., "Backdoor Defense via Decoupling the Training Process", ICLR 2022).

Features are trained by contrast, without labels, so that poison lies with the images it looks like. A head on them learns slowly
what does not fit there: half of the samples are believed, those of the lowest symmetric cross entropy, and the network is trained
on them and, without their labels, on the others.

Published code: https://github.com/SCLBD/DBD/blob/d372ef4. One Adam serves head and network there; here each has its own. It splits
the samples by their losses as augmented, and keeps the epoch that is best on the test set; here the last one is returned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.hyperparameters import Count, Epochs, Fraction, NonNegative, Positive
from ..data.imageset import ImageSet
from ..data.ranks import rising
from ..models.classifier import Classifier
from ..training.contrastive import train_features
from ..training.hand import Hand, Loss, Objective
from ..training.loop import History, fit
from ..training.mixmatch import MixMatch, adam, check_pools
from ..training.recipe import Recipe
from .losses import losses_of, symmetric_cross_entropy
from .robust import Keep, Robust, Share, keep_nothing, own_keys


def train(
    make_model: Callable[[], Classifier],
    data: ImageSet,
    recipe: Recipe,
    keep: Keep = keep_nothing,
    *,
    seed: int = 0,
    extractor_epochs: Epochs = 100,
    temperature: Positive = 0.5,
    crop: Share = 0.2,
    classifier_epochs: Epochs = 10,
    believed: Fraction = 0.5,
    mixmatch_steps: Count | None = None,
    mixmatch_batch_size: Count = 64,
    mixmatch_lr: Positive = 0.002,
    sharpening: Positive = 0.5,
    alpha: Positive = 0.75,
    weight: NonNegative = 15.0,
) -> tuple[Classifier, History]:
    """Train features without labels, a head on them, and then all of it by MixMatch.

    Args:
        make_model: maker of the network, freshly initialised.
        data: the training set as received.
        recipe: recipe of the features' training, but for its epochs; the others have its augmentation, and MixMatch its epochs
            (190 as published).
        keep: where the phases have their checkpoints.
        seed: seed for the order and the views of the images, and for the head's weights.
        extractor_epochs: passes of the features' training (100 as published, of a schedule of 1,000).
        temperature: what cosines are divided by in it.
        crop: least area of a view in it, as a share of the image's.
        classifier_epochs: passes of the head's training.
        believed: share of the samples whose labels are believed, those of the lowest losses, found anew in each epoch.
        mixmatch_steps: steps in an epoch of MixMatch (1,024 as published); null: as many as batches in the training set.
        mixmatch_batch_size: believed images in a step of MixMatch, and batch of the head's training.
        mixmatch_lr: learning rate of both, constant, by Adam.
        sharpening: temperature that guesses are sharpened with.
        alpha: of the distribution of the shares that images are mixed by.
        weight: weight of the guessed labels' loss at the end.

    Raises:
        ParameterError: a share of no sample or of all, fewer samples than a batch; divergence.
    """
    # Before the long training of the features.
    with own_keys(batch_size="mixmatch_batch_size"):
        check_pools(int(believed * len(data)), len(data), mixmatch_batch_size)
    model = make_model()
    train_features(
        model,
        data,
        replace(recipe, epochs=extractor_epochs),
        seed=seed,
        what="dbd/extractor",
        temperature=temperature,
        crop=crop,
        checkpoints=keep("dbd/extractor"),
    )
    mixing = adam(recipe, epochs=recipe.epochs, batch_size=mixmatch_batch_size, lr=mixmatch_lr)
    with own_keys(lr="mixmatch_lr", batch_size="mixmatch_batch_size"):
        head = fit(
            model,
            data,
            replace(mixing, epochs=classifier_epochs),
            seed=seed,
            what="dbd/classifier",
            parameters=model.head.parameters(),
            hand=_Symmetric(),
            checkpoints=keep("dbd/classifier"),
        )

    def lowest(epoch: int, model: Classifier) -> NDArray[np.bool_]:
        mask = np.zeros(len(data), bool)
        losses = losses_of(model, data, symmetric_cross_entropy, what="dbd")
        mask[rising(losses)[: int(believed * len(data))]] = True
        return mask

    hand = MixMatch(data, mixing, lowest, steps=mixmatch_steps, temperature=sharpening, alpha=alpha, weight=weight)
    with own_keys(lr="mixmatch_lr", batch_size="mixmatch_batch_size"):
        mixed = fit(model, data, mixing, seed=seed, what="dbd/mixmatch", hand=hand, checkpoints=keep("dbd/mixmatch"))
    return model, History.in_turn(head, mixed)


class _Symmetric(Hand):
    """The head's loss, on features that are final; batch norm goes on averaging."""

    def objective(self, plain: Loss, model: Classifier, images: Tensor, labels: Tensor, samples: Tensor) -> Objective:
        with torch.no_grad():
            features = model.features(images)
        logits = model.head(features)
        return Objective(logits, symmetric_cross_entropy(logits.float(), labels))


ROBUST = Robust(train=train, inputs=("data",))
