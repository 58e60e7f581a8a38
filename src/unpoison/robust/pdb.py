"""PDB (Wei et al., "Mitigating Backdoor Attack by Injecting Proactive Defensive Backdoor", NeurIPS 2024).

The defender plants a backdoor of his own: trusted images with a trigger that no image file can hold, pixels out of their range,
and labels moved on by a class. At the test every image gets that trigger, and the label is moved back: what the network sees of an
attacker's trigger then counts for less.

Published code: https://github.com/shawkui/Proactive_Defensive_Backdoor/blob/7c847e5/defense/pdb.py. Its trusted images are a tenth
of the training set before it was poisoned, which a defender does not have; here they are the reserve. It turns and darkens some
of them besides; here all images have the recipe's augmentation.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..core.errors import ParameterError
from ..core.hyperparameters import Count
from ..data.imageset import ImageSet
from ..models.classifier import Classifier
from ..training.hand import Hand
from ..training.loop import History, fit
from ..training.recipe import Recipe
from .robust import Keep, Robust, Value, keep_nothing


def train(
    make_model: Callable[[], Classifier],
    data: ImageSet,
    reserve: ImageSet,
    recipe: Recipe,
    keep: Keep = keep_nothing,
    *,
    seed: int = 0,
    size: Count = 7,
    value: Value = 2.0,
    shift: Count = 1,
    copies: Count = 5,
) -> tuple[Classifier, History]:
    """Train on the set as received and on stamped trusted images; the network that is returned stamps and moves back by itself.

    Both sets are held in memory.

    Args:
        make_model: maker of the network, freshly initialised.
        data: the training set as received.
        reserve: trusted, labelled images.
        recipe: recipe of the training.
        keep: where the training has its checkpoints.
        seed: seed for the order of the images and their augmentation.
        size: side in pixels of the defender's trigger, a square in the upper left corner.
        value: value of its pixels, where those of images are in [0, 1].
        shift: classes that a stamped image's label is moved on by, modulo their number.
        copies: times that each trusted image is in an epoch.

    Raises:
        ParameterError: a square that is larger than the image, a shift that leaves labels where they are, a value that the recipe's
            augmentation would clip; divergence.
    """
    model, count = make_model(), len(data.classes)
    if shift % count == 0:
        raise ParameterError(f"shift: {shift} given, allowed: any but a multiple of the {count} classes")
    if size > min(data.image_size):
        raise ParameterError(f"size: {size} given, allowed: 1 to {min(data.image_size)}")
    if "colour_jitter" in recipe.augment and not 0 <= value <= 1:
        raise ParameterError(
            f"value: {value} given, allowed with augment colour_jitter, which clips its images: 0 to 1"
        )
    trusted = reserve.gather(np.arange(len(reserve)))
    images = np.concatenate([data.gather(np.arange(len(data))), *[trusted] * copies])
    labels = np.concatenate([data.labels, *[(reserve.labels + shift) % count] * copies])
    both = ImageSet(images, labels, data.classes)
    hand = _Defender(len(data), size, value)
    history = fit(model, both, recipe, seed=seed, what="pdb", hand=hand, checkpoints=keep("pdb"))
    # The logit of a class is that of the label that its stamped images were given.
    moved = (torch.arange(count) + shift) % count
    with torch.no_grad():
        model.head.weight.copy_(model.head.weight[moved])
        model.head.bias.copy_(model.head.bias[moved])
    model.stamp_inputs(size=size, value=value)
    return model, history


class _Defender(Hand):
    """Stamps the trusted images, before they are augmented, as published."""

    def __init__(self, first: int, size: int, value: float) -> None:
        self.first, self.size, self.value = first, size, value

    def stamp(self, images: Tensor, labels: Tensor, samples: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        images[samples >= self.first, :, : self.size, : self.size] = self.value
        return images, labels


ROBUST = Robust(train=train)
