"""The Retuning Attack (Min et al., "Uncovering, Explaining, and Mitigating the Superficial Safety of Backdoor Defense",
NeurIPS 2024): a few poisoned images among the trusted ones that a purified model is tuned on for a moment.

A backdoor that comes back within a few steps was asleep and not gone. How much of it these images teach a network that
never had one is for a control to say: a clean model, tuned in the same way.

Published code: https://github.com/AISafety-HKUST/stable_backdoor_purification/blob/37d2ef5/fine_tune/ft_poison.py
The trusted images are those that purified the model, where the published code draws another subset (its seed is 42 and not
the defence's), and poisoned are those with the attacker's label only: it takes cover samples for poisoned as well.
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import torch

from ..compute.device import pick_device, to_float
from ..core.arrays import Images
from ..core.errors import ParameterError
from ..core.hyperparameters import Count, Epochs, Positive
from ..core.seeding import numpy_rng, torch_rng
from ..data.imageset import ImageSet
from ..models.classifier import Classifier
from ..training.augment import Batch, apply, draw
from ..training.loop import fit
from ..training.recipe import AugmentationName, Recipe


def retune(
    model: Classifier,
    reserve: ImageSet,
    stamped: ImageSet,
    *,
    seed: int = 0,
    poisoned: Count = 5,
    epochs: Epochs = 5,
    batch_size: Count = 128,
    lr: Positive = 0.01,
    augment: list[AugmentationName] | tuple[AugmentationName, ...] = (),
) -> Classifier:
    """Tune a purified model on the reserve with some poisoned images in it: all weights, SGD with momentum 0.9; a new model.

    Args:
        model: purified classifier, left as it was.
        reserve: trusted, labelled images.
        stamped: poisoned training images with the labels that the attacker gave them, as they lie in the training set.
        seed: seed for the poisoned images that are taken, the order of the images and their augmentation.
        poisoned: number of poisoned images, in the place of the reserve's first ones. 5 in the published code.
        epochs: passes over the images. 5 in the published example.
        batch_size: images per step. 128 in the published code.
        lr: learning rate, which stays as it is. 0.01 in the published code.
        augment: augmentations of the trusted images by name, in order, drawn once; [crop, flip] in the published code.

    Raises:
        ParameterError: more poisoned images than there are, or no trusted one left beside them; a training that diverges.
    """
    images, labels = mixed(reserve, stamped, seed=seed, poisoned=poisoned, augment=augment)
    recipe = Recipe(epochs=epochs, batch_size=batch_size, lr=lr, weight_decay=0.0, schedule="constant")
    tuned = deepcopy(model)
    fit(tuned, ImageSet(images, labels, reserve.classes), recipe, seed=seed, what="retuning")
    return tuned


def mixed(
    reserve: ImageSet,
    stamped: ImageSet,
    *,
    seed: int,
    poisoned: int,
    augment: list[AugmentationName] | tuple[AugmentationName, ...] = (),
) -> tuple[Images, np.ndarray]:
    """The images that are tuned on, uint8 [n, h, w, c], poisoned ones first, and their labels int64 [n]."""
    most = min(len(stamped), len(reserve) - 1)
    if poisoned > most:
        raise ParameterError(
            f"poisoned: {poisoned} given, allowed: of the {len(stamped)} poisoned training images, and fewer than the "
            f"{len(reserve)} trusted ones"
        )
    images, labels = reserve.gather(np.arange(len(reserve))), reserve.labels.copy()
    if augment:
        # Once for all epochs, as published: the set of the attack is a fixed one.
        batch = Batch(torch.arange(len(reserve)), 0, reserve.image_size, torch_rng(seed, "retuning/augment"))
        device = pick_device()
        drawn = [rows.to(device) for rows in draw(augment, batch)]
        changed = apply(to_float(reserve.tensor(), device), augment, drawn)
        images = changed.mul(255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy().copy()
    taken = np.sort(numpy_rng(seed, "retuning/poisoned").choice(len(stamped), poisoned, replace=False))
    images[:poisoned], labels[:poisoned] = stamped.gather(taken), stamped.labels[taken]
    return images, labels
