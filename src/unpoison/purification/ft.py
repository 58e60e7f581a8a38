"""Fine-tuning: the plain baseline of every purification paper."""

from __future__ import annotations

from copy import deepcopy

from ..core.hyperparameters import Count, NonNegative, Positive
from ..data.imageset import ImageSet
from ..models.classifier import Classifier
from ..training.loop import fit
from ..training.recipe import AugmentationName, Recipe
from .purifier import Purifier


def purify(
    model: Classifier,
    reserve: ImageSet,
    *,
    seed: int = 0,
    epochs: Count = 10,
    batch_size: Count = 128,
    lr: Positive = 0.01,
    weight_decay: NonNegative = 0.0,
    augment: list[AugmentationName] | tuple[AugmentationName, ...] = (),
) -> Classifier:
    """Tune all weights on the trusted reserve with cross entropy; a new model is returned.

    The setting is FST's for its `ft` baseline (Min et al. 2023, public code): SGD with momentum 0.9, learning rate 0.01
    with a cosine to 0, batches of 128, 10 epochs. That code also keeps the head's norm fixed in this mode; plain
    fine-tuning does not, and neither does this.
    """
    tuned = deepcopy(model)
    recipe = Recipe(
        epochs=epochs, batch_size=batch_size, lr=lr, weight_decay=weight_decay, schedule="cosine", augment=augment
    )
    fit(tuned, reserve, recipe, seed=seed, what="ft")
    return tuned


PURIFIER = Purifier(purify=purify)
