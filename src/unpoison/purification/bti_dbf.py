"""BTI-DBF (U) (Xu et al., "Towards Reliable and Efficient Backdoor Trigger Inversion via Decoupling Benign Features", ICLR
2024, section 4.3): what acts as the trigger is inverted (`inversion`), and unlearned on images that have it and true labels.

Minimises CE(f(x'), y) + MSE(z(x), z(x')), x' the images of a batch of which some have the inverted trigger, z the backbone's
raw output, in training mode.

Published code: https://github.com/AISafety-HKUST/stable_backdoor_purification/blob/37d2ef5/fine_tune/BTIDBF/btidbfu.py, the
copy of PAM's authors, which ends with an error in this mode. What differs is said in `inversion`.
"""

from __future__ import annotations

from copy import deepcopy

import torch.nn.functional as F

from ..compute.device import autocast
from ..core.hyperparameters import Count, Epochs, Fraction, NonNegative, Positive
from ..data.imageset import ImageSet
from ..models.classifier import Classifier
from ..training.optimizer import Optimizer
from ..training.recipe import AugmentationName, Rate, Recipe
from .batches import on_device
from .inversion import Settings, raw_of, unlearning_batches
from .purifier import Purifier


def purify(
    model: Classifier,
    reserve: ImageSet,
    *,
    seed: int = 0,
    rounds: Count = 5,
    pretrain_epochs: Epochs = 50,
    mask_epochs: Epochs = 20,
    generator_epochs: Epochs = 30,
    epochs: Epochs = 30,
    batch_size: Count = 128,
    lr: Positive = 0.0001,
    inverted: Fraction = 0.2,
    width: Count = 32,
    mask_lr: Positive = 0.01,
    generator_lr: Positive = 0.001,
    image_bound: NonNegative = 0.3,
    feature_bound: NonNegative = 3.0,
    augment: list[AugmentationName] | tuple[AugmentationName, ...] = (),
) -> Classifier:
    """Unlearn the inverted trigger with all weights; a new model is returned.

    Args:
        model: the backdoored classifier, left as it was.
        reserve: trusted, labelled images.
        seed: seed for the generator, the masks, the images it changes, their order and their augmentation.
        rounds: rounds of inversion and unlearning. 5 in the published code, 3 in its example.
        pretrain_epochs: passes over the reserve in which the generator learns to leave images as they are.
        mask_epochs: passes over the reserve in each round for the mask of benign features.
        generator_epochs: passes over the reserve in each round for the generator.
        epochs: passes over the reserve in each round for unlearning; 15 to 20 keep more accuracy, says the published code.
        batch_size: images per step, of all phases. 128 in the published code.
        lr: learning rate of Adam in unlearning, constant.
        inverted: share of each batch that the generator changes, rounded down, and one image more.
        width: channels of the generator's first level. 32 in the published code.
        mask_lr: learning rate of Adam for the mask.
        generator_lr: learning rate of Adam for the generator.
        image_bound: distance of the generator's images, a mean square of normalised ones, from which on it learns that alone.
        feature_bound: distance of their benign features, a mean square, from which on it learns that of the images alone.
        augment: augmentations by name, in order, out of `training.augment`, in all phases; [crop, flip] in the published code.

    Raises:
        UserError: a network that is not finite.
        ParameterError: a model or a generator that diverges, or batch norm over a single value.
    """
    settings = Settings(
        rounds=rounds,
        pretrain_epochs=pretrain_epochs,
        mask_epochs=mask_epochs,
        generator_epochs=generator_epochs,
        epochs=epochs,
        batch_size=batch_size,
        inverted=inverted,
        width=width,
        mask_lr=mask_lr,
        generator_lr=generator_lr,
        image_bound=image_bound,
        feature_bound=feature_bound,
        augment=augment,
    )
    tuned = on_device(deepcopy(model), "bti_dbf")
    optimizer = Optimizer(Recipe(optimizer="adam", lr=lr, weight_decay=0.0), tuned.parameters())
    for images, mixed, labels in unlearning_batches(tuned, reserve, settings, seed=seed, what="bti_dbf", lr=lr):
        with autocast(images.device):
            # Apart, as published: batch norm normalises each of the two by its own batch.
            raw, of_mixed = raw_of(tuned, images), raw_of(tuned, mixed)
            logits = tuned.head(tuned.backbone.pool(of_mixed))
        loss = F.cross_entropy(logits.float(), labels) + F.mse_loss(raw.float(), of_mixed.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(Rate(lr, 0.9))
    return tuned.eval()


PURIFIER = Purifier(purify=purify)
