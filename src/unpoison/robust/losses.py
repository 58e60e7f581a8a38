"""How a network's loss tells samples apart: what several methods of the family rank samples by."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..compute.checkpoints import Checkpoints
from ..compute.inference import logits_of
from ..core.arrays import IntArray
from ..core.errors import ParameterError
from ..data.imageset import ImageSet
from ..data.ranks import rising
from ..data.scores import least_share
from ..models.classifier import Classifier
from ..training.bounds import Ascent, held
from ..training.loop import History, fit
from ..training.recipe import Recipe

Losses = Callable[[Tensor, Tensor], Tensor]
"""Logits [b, classes] and labels [b] to the loss of each sample, [b]."""

LOG_OF_NOTHING = math.log(1e-4)
"""Stands for the logarithm of a share of 0."""


def symmetric_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """A tenth of the cross entropy and the reverse one (Wang et al., "Symmetric Cross Entropy for Robust Learning with Noisy
    Labels", ICCV 2019, equation 7), with the weights of DBD and ASD; float [b].

    The reverse one is minus the sum of the network's shares times the logarithms of the label's, 1 and 0s.

    Args:
        logits: float [b, classes].
        labels: int64 [b].
    """
    shares = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    return 0.1 * F.cross_entropy(logits, labels, reduction="none") - (1 - shares) * LOG_OF_NOTHING


def losses_of(model: Classifier, data: ImageSet, losses: Losses, *, what: str) -> NDArray[np.float32]:
    """The loss of each sample in evaluation mode, float32 [n]."""
    return losses(logits_of(model, data, what=what), torch.from_numpy(data.labels)).numpy()


def isolated_count(isolated: float, count: int) -> int:
    """How many of so many samples a share is. Raises ParameterError for none, or all but one."""
    found = int(isolated * count)
    if not 1 <= found <= count - 2:
        raise ParameterError(
            f"isolated: {isolated} given, allowed: {least_share(count)} to {1 - 2 / count:.6g} of the {count} samples"
        )
    return found


def learned_first(
    model: Classifier,
    data: ImageSet,
    recipe: Recipe,
    *,
    seed: int,
    what: str,
    epochs: int,
    ascent: Ascent,
    floor: float,
    checkpoints: Checkpoints | None,
) -> tuple[IntArray, History]:
    """Train with the loss held at a floor, below which it falls where samples are learned easily (ABL, section 3.2).

    Args:
        model: the network, trained in place.
        data: the training set as received.
        recipe: gives the optimiser, batches and augmentation; the rate is constant, labels are not smoothed.
        seed: seed for the order of the images and their augmentation.
        what: name of the training.
        epochs: passes over all samples.
        ascent: what holds a batch's mean loss at the floor.
        floor: the loss at which it is held.
        checkpoints: where the training has them.

    Returns:
        The samples by their cross entropy after it, lowest first, int64 [n].
    """
    history = fit(
        model,
        data,
        replace(recipe, epochs=epochs, schedule="constant", label_smoothing=0.0),
        seed=seed,
        what=what,
        loss=partial(held, ascent=ascent, floor=floor),
        checkpoints=checkpoints,
    )
    losses = losses_of(model, data, partial(F.cross_entropy, reduction="none"), what=what)
    return rising(losses), history
