"""Neural Attention Distillation (Li et al., "Neural Attention Distillation: Erasing Backdoor Triggers from Deep Neural
Networks", ICLR 2021).

A teacher is the model fine-tuned on the trusted images. The student starts from the backdoored model and learns the images'
labels together with where the teacher looks: section 3.2 of the paper, with the mean over channels of the squared activations
as attention.

Published code: https://github.com/bboylyg/NAD/blob/a5a10f1/at.py, and with the settings that are used here
https://github.com/SCLBD/BackdoorBench/blob/3f4b1a9/defense/nad.py. As there, the squared distance of two attentions is a mean
over positions, where the paper has a norm. The maps are found in any network (`maps`), where that code has a list of networks,
of which most have the last map only; the cosine of 100 epochs that is cut off after the teacher's ten is a constant rate here.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le, MinLen
from torch import Tensor

from ..core.hyperparameters import Count, Epochs, NonNegative, Positive
from ..data.imageset import ImageSet
from ..models.classifier import Classifier
from ..training.loop import fit
from ..training.recipe import AugmentationName, Recipe
from .maps import recorded, stages_of
from .purifier import Purifier, unsuited

Power = Annotated[float, Ge(1), Le(10)]
Weights = Annotated[list[NonNegative] | tuple[NonNegative, ...], MinLen(1)]


def purify(
    model: Classifier,
    reserve: ImageSet,
    *,
    seed: int = 0,
    teacher_epochs: Epochs = 10,
    epochs: Epochs = 10,
    batch_size: Count = 256,
    lr: Positive = 0.01,
    weight_decay: NonNegative = 1e-4,
    weights: Weights = (500.0, 1000.0, 1000.0),
    power: Power = 2.0,
    augment: list[AugmentationName] | tuple[AugmentationName, ...] = (),
) -> Classifier:
    """Tune the model to the trusted labels and to the attention of a fine-tuned teacher; a new model is returned.

    Args:
        model: the backdoored classifier, left as it was.
        reserve: trusted, labelled images.
        seed: seed for the order of the images and their augmentation.
        teacher_epochs: passes over the trusted reserve in which the teacher is fine-tuned.
        epochs: passes over the trusted reserve of the student.
        batch_size: images per step. 256 in BackdoorBench.
        lr: learning rate of teacher and student.
        weight_decay: L2 penalty of SGD, whose momentum is 0.9.
        weights: weights of the attention at the last resolutions, as many as there are weights, the last resolution's last.
        power: power of the activations in the attention.
        augment: augmentations by name, in order, out of `training.augment`; [crop, flip] in BackdoorBench.

    Raises:
        ParameterError: what `fit` raises.
        UserError: a network that is not finite, or has no map of more than one position.
    """
    recipe = Recipe(
        epochs=teacher_epochs,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        schedule="constant",
        augment=augment,
    )
    teacher, student = deepcopy(model), deepcopy(model)
    # Before the teacher's epochs, which a network without maps would have for nothing.
    stages = stages_of(teacher.eval(), reserve.image_size, len(weights))
    if not stages:
        raise unsuited("nad", model, "whose maps all have one position; allowed: larger images, or another network")
    fit(teacher, reserve, recipe, seed=seed, what="nad, teacher")
    # A network of fewer resolutions has the last weights.
    of_stage = dict(zip(stages, weights[-len(stages) :], strict=True))
    with recorded(teacher, stages) as wanted, recorded(student, stages) as maps:

        def loss(network: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                teacher(images)
            # Without auxiliary heads, which the attention knows nothing of.
            logits = network(images)
            total = F.cross_entropy(logits.float(), labels, reduction="none")
            for stage, weight in of_stage.items():
                total = total + weight * distance(maps[stage], wanted[stage], power)
            return logits, total

        fit(student, reserve, replace(recipe, epochs=epochs), seed=seed, what="nad", loss=loss)
    return student


def distance(student: Tensor, teacher: Tensor, power: float) -> Tensor:
    """The squared distance of the attention in two maps [b, d, h, w], a mean over positions, float32 [b]."""
    return (attention(student, power) - attention(teacher, power)).square().mean(1)


def attention(maps: Tensor, power: float) -> Tensor:
    """Where a map [b, d, h, w] is active: sums over channels of powers of the activations, float32 [b, h * w] of norm 1."""
    sums = maps.float().abs().pow(power).sum(1).flatten(1)
    # The published code's 1e-6, for a map that is zero.
    return sums / (sums.norm(dim=1, keepdim=True) + 1e-6)


PURIFIER = Purifier(purify=purify)
