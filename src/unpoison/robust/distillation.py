"""Knowledge distillation on variations only (Struppek et al., "Leveraging Diffusion-Based Image Variations for Robust
Training on Poisoned Data", 2023): the student never sees an image of the suspect set.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..compute.device import pick_device
from ..core.hyperparameters import Fraction, Positive
from ..data.imageset import ImageSet
from ..models.classifier import AUXILIARY_WEIGHT, Classifier
from ..training.loop import History, fit
from ..training.recipe import Recipe
from .robust import Robust


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
    """Per-sample loss [n] from logits float [n, classes] and labels int64 [n].

    alpha * T^2 * KL(softmax(teacher / T) || softmax(student / T)) + (1 - alpha) * CE(student / ce_temperature, labels)

    `label_smoothing` is of the labels alone: the teacher's distribution is soft as it is.
    """
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1) * temperature**2
    labelled = F.cross_entropy(student / ce_temperature, labels, reduction="none", label_smoothing=label_smoothing)
    return alpha * divergence + (1 - alpha) * labelled


def train(
    make_model: Callable[[], Classifier],
    variations: ImageSet,
    teacher: Classifier,
    recipe: Recipe,
    *,
    seed: int = 0,
    alpha: Fraction = 0.5,
    temperature: Positive = 10.0,
    ce_temperature: Positive = 1.0,
) -> tuple[Classifier, History]:
    """Train a student on variations with their sources' labels and the teacher's logits.

    Args:
        make_model: gives the student, freshly initialised.
        variations: images that replace the training set.
        teacher: the backdoored model; left as it was, in evaluation mode, on the same augmented batch.
        recipe: of the student's training; its label smoothing is that of the label term.
        seed: of order and augmentation.
        alpha: weight of the teacher against the labels (0.5 in the paper's code).
        temperature: of the distillation term (10 in the paper's code).
        ce_temperature: of the label term. 1 is the textbook loss; the published code applies `temperature` to both
            terms, which weakens the labels about tenfold: set it to `temperature` to reproduce that.
    """
    student = make_model()
    teacher.to(device=pick_device(), memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    def loss(model: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            target = teacher(images).float()
        logits, auxiliary = model.logits_and_auxiliary(images)

        def of(student_logits: Tensor) -> Tensor:
            return distillation_loss(
                student_logits.float(),
                target,
                labels,
                alpha=alpha,
                temperature=temperature,
                ce_temperature=ce_temperature,
                label_smoothing=recipe.label_smoothing,
            )

        total = of(logits)
        # An auxiliary head learns from the same teacher; its logits have no counterpart there.
        for more in auxiliary:
            total = total + AUXILIARY_WEIGHT * of(more)
        return logits, total

    return student, fit(student, variations, recipe, seed=seed, what="student", loss=loss)


ROBUST = Robust(train=train, inputs=("variations", "backdoored"))
