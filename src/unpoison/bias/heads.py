"""A network of several attributes: one trunk, and for each attribute a head of one sigmoid.

Huang et al. ("Distilling Cognitive Backdoor Patterns within an Image", ICLR 2023) train CelebA's 40 attributes so. In their
published code a head is two linear layers with two logits and a softmax behind a shared layer with dropout; here it is one row of
the classifier's linear layer, whose sigmoid is the same function of the difference of two logits.

Published code: https://github.com/HanxunH/CognitiveDistillation/tree/6aba6f9 (CelebA's data, network and configurations)
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..compute.device import pick_device
from ..core.arrays import IntArray
from ..data.imageset import ImageSet
from ..models.classifier import AUXILIARY_WEIGHT, Classifier
from ..training.hand import Loss
from ..training.loop import History, fit
from ..training.recipe import Recipe


class OneHead(nn.Module):
    """A classifier that gives one attribute's logit alone: images to float [n, 1].

    Args:
        model: the network of all attributes.
        head: number of the attribute.
    """

    def __init__(self, model: Classifier, head: int) -> None:
        super().__init__()
        self.model, self.head, self.traceable = model, head, model.traceable

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits[:, self.head : self.head + 1]


class Measured(NamedTuple):
    """What a head does on images that it was not trained on.

    Attributes:
        accuracy: share of the images whose value it gives.
        balanced: mean of that share among the images that have the attribute and among those that lack it; of one kind alone
            that kind's share.
    """

    accuracy: float
    balanced: float


def fit_attributes(
    model: Classifier, data: ImageSet, values: IntArray, recipe: Recipe, *, seed: int, what: str = "bias"
) -> History:
    """Train a network of as many outputs as there are attributes, in place; the labels of `data` have no part in it.

    A sample's loss is the sum of the binary cross entropies of its attributes, as published.

    Args:
        model: network with fresh weights.
        data: training images.
        values: 0 or 1, int64 [n, attributes].
        recipe: recipe of the training; its smoothing moves each value towards a half.
        seed: seed of the run.
        what: name of the run.

    Raises:
        ParameterError: what `training.loop.fit` refuses.
    """
    # The loop hands a loss the labels of a batch: here they are the samples' numbers, by which all values are found.
    return fit(
        model, replace(data, labels=np.arange(len(data))), recipe, seed=seed, what=what, loss=loss_of(values, recipe)
    )


def loss_of(values: IntArray, recipe: Recipe) -> Loss:
    """The loss for batches whose labels are the samples' numbers."""
    smoothing = recipe.label_smoothing
    wanted = torch.from_numpy(values * (1 - smoothing) + smoothing / 2).float().to(pick_device())

    def loss(model: Classifier, images: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        logits, auxiliary = model.logits_and_auxiliary(images)
        targets = wanted[samples]

        def entropy(of: Tensor) -> Tensor:
            return F.binary_cross_entropy_with_logits(of.float(), targets, reduction="none").sum(1)

        losses = entropy(logits)
        for head_logits in auxiliary:
            losses = losses + AUXILIARY_WEIGHT * entropy(head_logits)
        return logits, losses

    return loss


def measured(logits: NDArray[np.float32], values: IntArray) -> Measured:
    """How right one attribute's logits are.

    Args:
        logits: float [n], at least one.
        values: 0 or 1, int64 [n].
    """
    right = (logits > 0) == (values == 1)
    kinds = [right[values == value] for value in (0, 1) if (values == value).any()]
    return Measured(float(right.mean()), float(np.mean([kind.mean() for kind in kinds])))
