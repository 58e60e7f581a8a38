"""D-ST, secure training (Chen et al., "Effective Backdoor Defense by Exploiting Sensitivity of Poisoned Samples", NeurIPS 2022,
section 4): features are trained by contrast, with the labels of the samples that look clean, and then a linear classifier, which
learns these and unlearns those that look poisoned.

Its scores are those of the paper's own detector (`scores/fct`) or of any other.
Published code: https://github.com/SCLBD/Effective_backdoor_defense/blob/63fda0e. It keeps the epoch that is best on the test set;
here the last one is returned.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.hyperparameters import Epochs, Fraction, NonNegative, Positive
from ..data.imageset import ImageSet
from ..data.scores import Scored, ends
from ..models.classifier import Classifier
from ..training.contrastive import train_features
from ..training.hand import Hand, Loss, Objective
from ..training.loop import History, fit
from ..training.recipe import Recipe
from ..training.views import view
from .robust import Keep, Robust, Share, keep_nothing, own_keys

BASE_TEMPERATURE = 0.07
"""The published loss is scaled by the temperature over this one."""


def train(
    make_model: Callable[[], Classifier],
    data: ImageSet,
    scored: Scored,
    recipe: Recipe,
    keep: Keep = keep_nothing,
    *,
    seed: int = 0,
    clean_share: Fraction = 0.2,
    poison_share: Fraction = 0.05,
    temperature: Positive = 0.1,
    crop: Share = 0.2,
    classifier_epochs: Epochs = 10,
    classifier_lr: Positive = 5.0,
    unlearn_weight: NonNegative = 0.001,
) -> tuple[Classifier, History]:
    """Train features on all samples that were scored, then a linear head on both ends of their ranking.

    Args:
        make_model: maker of the network, freshly initialised.
        data: the training set as received.
        scored: samples of it with the scores of a detector.
        recipe: recipe of the features' training (200 epochs of SGD at 0.5, weight decay 1e-4, batches of 512 as published). Its
            augmentation has no part in it: views are random crops, flips and colours.
        keep: where the phases have their checkpoints.
        seed: seed for the order and the views of the images.
        clean_share: share of the samples with the lowest scores, whose labels are believed.
        poison_share: share of the samples with the highest scores, which are unlearned.
        temperature: what cosines are divided by in the features' training.
        crop: least area of a view, as a share of the image's.
        classifier_epochs: passes of the head's training over both ends.
        classifier_lr: its learning rate, constant, by SGD with momentum 0.9.
        unlearn_weight: weight of the cross entropy of samples that look poisoned, which is raised.

    Raises:
        ParameterError: shares of no sample or that overlap; divergence.
    """
    # What was not scored has no part in it.
    data = scored.data
    clean, poison = ends(scored, clean_share, poison_share)
    trusted = torch.zeros(len(data), dtype=torch.bool)
    trusted[clean] = True

    def same(labels: Tensor, samples: Tensor) -> Tensor:
        # Rows alone: what looks clean counts all of its label as its likes, suspects among them; a suspect no image but itself.
        return (labels[:, None] == labels[None, :]) & trusted.to(samples.device)[samples][:, None]

    model = make_model()
    train_features(
        model,
        data,
        recipe,
        seed=seed,
        what="dst/extractor",
        temperature=temperature,
        crop=crop,
        same=same,
        weight=temperature / BASE_TEMPERATURE,
        checkpoints=keep("dst/extractor"),
    )
    split = np.sort(np.concatenate([clean, poison]))
    classifier = Recipe(
        epochs=classifier_epochs, batch_size=recipe.batch_size, lr=classifier_lr, weight_decay=0.0, schedule="constant"
    )
    with own_keys(lr="classifier_lr"):
        history = fit(
            model,
            data.subset(split),
            classifier,
            seed=seed,
            what="dst/classifier",
            parameters=model.head.parameters(),
            hand=_Mixed(trusted[torch.from_numpy(split)], unlearn_weight, crop),
            checkpoints=keep("dst/classifier"),
        )
    return model, history


class _Mixed(Hand):
    """The head's loss: the mean cross entropy of the samples that are believed, less a little of the others' (section 4.2)."""

    def __init__(self, believed: Tensor, weight: float, crop: float) -> None:
        self.believed, self.weight, self.crop = believed, weight, crop

    def objective(self, plain: Loss, model: Classifier, images: Tensor, labels: Tensor, samples: Tensor) -> Objective:
        # The features are final: batch norm as at the test, and nothing goes back through them.
        model.backbone.eval()
        with torch.no_grad():
            features = model.features(view(images, crop=self.crop))
        logits = model.head(features)
        losses = F.cross_entropy(logits.float(), labels, reduction="none")
        return Objective(logits, mixed(losses, self.believed.to(samples.device)[samples], self.weight))


def mixed(losses: Tensor, believed: Tensor, weight: float) -> Tensor:
    """Terms [b] whose mean is the mean of the losses that are believed less `weight` times the mean of the others.

    Args:
        losses: losses of samples, float [b].
        believed: mask of those that look clean, bool [b].
        weight: of the others.
    """
    share = believed.float().mean()
    # A kind that is not in the batch has no term in it.
    return torch.where(believed, losses / share.clamp(min=1e-12), -weight * losses / (1 - share).clamp(min=1e-12))


ROBUST = Robust(train=train, inputs=("data",), by="scores")
