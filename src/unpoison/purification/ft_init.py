"""Fine-tuning with a new head (`FT-init` of Min et al. 2023): all weights are tuned, from a random head.

As mode `ft-init` of FST's published code; FST without its term.
https://github.com/AISafety-HKUST/stable_backdoor_purification/blob/37d2ef5/fine_tune/ft.py
"""

from __future__ import annotations

from typing import Literal

from ..core.hyperparameters import Count, Epochs, NonNegative, Positive
from ..data.imageset import ImageSet
from ..models.classifier import Classifier
from ..training.recipe import AugmentationName, Smoothing
from .purifier import Purifier
from .tuning import tune


def purify(
    model: Classifier,
    reserve: ImageSet,
    *,
    seed: int = 0,
    epochs: Epochs = 10,
    batch_size: Count = 128,
    lr: Positive = 0.01,
    weight_decay: NonNegative = 0.0,
    schedule_per: Literal["batch", "epoch"] = "batch",
    augment: list[AugmentationName] | tuple[AugmentationName, ...] = (),
    label_smoothing: Smoothing = 0.0,
    keep_head_norm: bool = True,
) -> Classifier:
    """Draw the head anew, and tune all weights on the trusted reserve; a new model is returned.

    Args:
        model: the backdoored classifier, left as it was.
        reserve: trusted, labelled images.
        seed: seed for the new head, the order of the images and their augmentation.
        epochs: passes over the trusted reserve. 10 in the published code.
        batch_size: images per step. 128 in the published code.
        lr: learning rate of the first step, lowered along a cosine. 0.01 in the published code.
        weight_decay: L2 penalty of SGD, whose momentum is 0.9; none in the published code.
        schedule_per: how often the learning rate moves, every `batch` or every `epoch`; epoch in the published code.
        augment: augmentations by name, in order, out of `training.augment`; [crop, flip] in the published code.
        label_smoothing: share of each label that the other classes get, in equal parts.
        keep_head_norm: whether the head's weight has the norm of the old one, ‖W_ori‖_F, after every
            step; true in the published code.
    """
    return tune(
        model,
        reserve,
        "ft_init",
        seed=seed,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        schedule_per=schedule_per,
        augment=augment,
        label_smoothing=label_smoothing,
        keep_head_norm=keep_head_norm,
        new_head=True,
    )


PURIFIER = Purifier(purify=purify, texts=True)
