"""What ends a training with one line: batches that batch norm cannot average over, and a network that has diverged."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import torch

from ..compute.device import autocast, batch_size, to_float
from ..compute.finite import not_finite
from ..core.errors import ParameterError
from ..data.imageset import ImageSet
from ..models.classifier import Classifier
from .recipe import Recipe


def diverged(recipe: Recipe, what: str, fact: str) -> ParameterError:
    """The error for a training that came to nothing, with the fact that shows it."""
    return ParameterError(
        f"lr: {recipe.lr} given, with which the training of {what} diverged: {fact}; allowed: a lower one, and other "
        "weights of the loss where it has any"
    )


@torch.no_grad()
def fact_of_divergence(model: Classifier, data: ImageSet) -> str:
    """What is not finite, in words: weights, batch norm's statistics, or logits of some of the data; "" where all is.

    Args:
        model: the model, on its device and in evaluation mode.
        data: images, some of which are passed: a step can end at finite weights that are too large for any logits.
    """
    # The last step's damage shows in no loss, and statistics are used in evaluation mode only.
    if bad := not_finite(model):
        return f"{len(bad)} of {len(model.state_dict())} tensors are not finite ({bad[0]})"
    some = data.tensor(np.arange(min(len(data), batch_size(data.image_size, 64))))
    device = next(model.parameters()).device
    with autocast(device):
        finite = model(to_float(some, device)).isfinite().all()
    return "" if finite else "its logits are not finite"


def check_trained(model: Classifier, data: ImageSet, recipe: Recipe, what: str) -> None:
    """Raises ParameterError where `fact_of_divergence` has something to say."""
    if fact := fact_of_divergence(model, data):
        raise diverged(recipe, what, f"{fact} after epoch {recipe.epochs}")


def check_batch_of_one(model: Classifier, data: ImageSet, recipe: Recipe) -> None:
    """Raises ParameterError where a batch of one image leaves batch norm a single value to average over."""
    if takes_batch_of_one(model, data):
        return
    height, width = data.image_size
    images = f"images of {height}x{width} px" if len(data) > 1 else f"1 image of {height}x{width} px"
    raise ParameterError(
        f"batch_size: {recipe.batch_size} given for {images}, allowed for this network: at least 2, of 2 images or more "
        "(trusted ones: data.reserve), as batch norm would average over a single value"
    )


def takes_batch_of_one(model: Classifier, data: ImageSet) -> bool:
    """Whether one of the images alone can be trained on: batch norm needs more than a single value to average over."""
    # Tried on a copy, whose statistics may change, and in training mode, which runs auxiliary heads as well.
    trial, device = deepcopy(model).train(), next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        try:
            trial.logits_and_auxiliary(to_float(data.tensor(np.arange(1)), device))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            return False
    return True
