"""Knowledge distillation on variations (Struppek et al., "Leveraging Diffusion-Based Image Variations for Robust Training on
Poisoned Data", 2023): the student never sees an image of the suspect set.

Published code: https://github.com/LukasStruppek/Robust_Training_on_Poisoned_Samples/blob/94f0d35/losses/kl_loss.py
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor

from ..compute.device import pick_device
from ..compute.finite import check_network
from ..compute.inference import BATCH, logits_of
from ..core.hyperparameters import Fraction, Positive
from ..data.imageset import ImageSet
from ..models.classifier import AUXILIARY_WEIGHT, Classifier
from ..training.loop import History, fit
from ..training.recipe import Recipe
from .robust import Keep, Robust, keep_nothing

Copies = Annotated[int, Ge(0), Le(100)]


def distillation_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    alpha: float,
    temperature: float,
    ce_temperature: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Loss of each sample, float [n]: a distillation term and a label term.

    alpha * T^2 * KL(softmax(teacher / T) || softmax(student / T)) + (1 - alpha) * CE(student / ce_temperature, labels)

    Args:
        student: logits of the student, float [n, classes].
        teacher: logits of the teacher, float [n, classes].
        labels: labels, int64 [n].
        alpha: weight of the distillation term; the label term has the rest.
        temperature: T of the distillation term.
        ce_temperature: temperature of the label term.
        label_smoothing: share of each label spread over all classes; the teacher's distribution is soft as it is.
    """
    # Both in log space: at a low temperature a probability underflows, and its logarithm would be infinite. T^2 brings the
    # gradient of the softened term, which falls with 1 / T^2, back to that of the label term (Hinton et al. 2015).
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1) * temperature**2
    labelled = F.cross_entropy(student / ce_temperature, labels, reduction="none", label_smoothing=label_smoothing)
    return alpha * divergence + (1 - alpha) * labelled


def train(
    make_model: Callable[[], Classifier],
    variations: ImageSet,
    teacher: Classifier,
    public: ImageSet,
    recipe: Recipe,
    keep: Keep = keep_nothing,
    *,
    seed: int = 0,
    alpha: Fraction = 0.5,
    temperature: Positive = 10.0,
    ce_temperature: Positive = 1.0,
    copies: Copies = 0,
) -> tuple[Classifier, History]:
    """Train a student on variations, with their sources' labels and the teacher's logits.

    A variation is not quite an image of the data. Trusted images, which show no trigger, are: the teacher's answers to them carry
    over what it knows and not what it was taught by poison.

    Args:
        make_model: maker of the student, freshly initialised.
        variations: images that replace the training set.
        teacher: the backdoored model, whose weights stay; it sees each batch as augmented, in evaluation mode.
        public: trusted, unlabelled images; may be none.
        recipe: recipe of the student's training; its label smoothing is that of the label term.
        keep: where the training has its checkpoints.
        seed: seed for the order of the images and their augmentation.
        alpha: weight of the teacher's term; the label term has the rest. 0.5 in the published code.
        temperature: temperature of the teacher's term. 10 in the published code.
        ce_temperature: temperature of the label term; 1 is the textbook loss. The published code applies `temperature` to
            both terms, which weakens the labels about tenfold: set it to `temperature` to reproduce that.
        copies: times that each of the trusted images is in an epoch, with the label that the teacher gives it. 0 as published.
    """
    student = make_model()
    # Refused here: a student of targets that are not finite would seem to have diverged itself.
    check_network(teacher, "teacher")
    logits_of(teacher, variations.subset(np.arange(min(len(variations), BATCH))), what="teacher")
    data = variations
    if copies and len(public):
        answers = logits_of(teacher, public, what="teacher").argmax(1).numpy()
        data = variations.followed_by(*[replace(public, labels=answers)] * copies)
    # In evaluation mode, or the teacher's batch norm would adapt to the variations and no longer be the suspect model's.
    teacher.to(device=pick_device(), memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    def loss(model: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        # The teacher answers for what the student sees, augmentation included; its logits cannot be kept from epoch to epoch.
        with torch.no_grad():
            target = teacher(images).float()
        logits, auxiliary = model.logits_and_auxiliary(images)

        def distilled(student_logits: Tensor) -> Tensor:
            return distillation_loss(
                student_logits.float(),
                target,
                labels,
                alpha=alpha,
                temperature=temperature,
                ce_temperature=ce_temperature,
                label_smoothing=recipe.label_smoothing,
            )

        total = distilled(logits)
        # An auxiliary head learns from the teacher's one output: in evaluation mode the teacher's own auxiliary heads are off.
        for head_logits in auxiliary:
            total = total + AUXILIARY_WEIGHT * distilled(head_logits)
        return logits, total

    return student, fit(student, data, recipe, seed=seed, what="student", loss=loss, checkpoints=keep("student"))


ROBUST = Robust(train=train, inputs=("variations", "backdoored", "public"))
