"""Unlearning of Neural Cleanse (Wang et al., "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural
Networks", S&P 2019, section VI-C): the triggers that were inverted are put on trusted images, which keep their labels, and the
network is tuned on these. Where no class is flagged, the model stays as it is.

Published code: https://github.com/SCLBD/BackdoorBench/blob/f02e353/defense/nc.py, whose settings are the defaults, and which
stretches each mask to reach from 0 to 1 and stamps it from a picture; here masks and patterns are the verdict's own. The paper
tunes for one epoch, on a tenth of the training set.
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np
from numpy.typing import NDArray

from ..compute.finite import check_network
from ..core.errors import ParameterError, UserError
from ..core.hyperparameters import Count, Epochs, Fraction, NonNegative, Positive
from ..core.seeding import numpy_rng
from ..data.imageset import ImageSet
from ..data.verdicts import Verdict
from ..models.classifier import Classifier
from ..training.loop import fit
from ..training.recipe import AugmentationName, Recipe
from .purifier import Purifier


def purify(
    model: Classifier,
    reserve: ImageSet,
    verdict: Verdict,
    *,
    seed: int = 0,
    share: Fraction = 0.2,
    epochs: Epochs = 100,
    batch_size: Count = 256,
    lr: Positive = 0.01,
    weight_decay: NonNegative = 5e-4,
    augment: list[AugmentationName] | tuple[AugmentationName, ...] = (),
) -> Classifier:
    """Tune all weights on the trusted reserve, of which a share bears the inverted triggers; a new model is returned.

    Args:
        model: the backdoored classifier, left as it was.
        reserve: trusted, labelled images.
        verdict: which classes an inspector flags, with a mask and a pattern of each class.
        seed: seed for the choice of the images that are stamped, their order and their augmentation.
        share: share of the trusted images that bear the trigger of a flagged class, the same images for each of them.
        epochs: passes over all images; 1 in the paper.
        batch_size: images per step.
        lr: learning rate of the first epoch, lowered along a cosine from epoch to epoch.
        weight_decay: L2 penalty of SGD, whose momentum is 0.9.
        augment: augmentations by name, in order, out of `training.augment`, after the stamping; [crop, flip] in the
            published code.

    Raises:
        ParameterError: a share of no image, batches that batch norm cannot average over, divergence.
        UserError: a verdict without masks and patterns, or of images of another size; a network that is not finite.
    """
    if not verdict.aux:
        raise UserError(
            "nc_unlearn: a verdict without masks and patterns given; allowed: that of an inspector that inverts triggers"
        )
    check_network(model, "nc_unlearn")
    tuned = deepcopy(model).eval()
    if verdict.flagged.any():
        data = with_triggers(reserve, verdict, share, seed=seed)
        recipe = Recipe(
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            weight_decay=weight_decay,
            schedule="cosine",
            schedule_per="epoch",
            augment=augment,
        )
        fit(tuned, data, recipe, seed=seed, what="nc_unlearn")
    return tuned


def with_triggers(reserve: ImageSet, verdict: Verdict, share: float, *, seed: int) -> ImageSet:
    """The set to tune on: trusted images as they are, and the others once with the trigger of each flagged class.

    All keep their labels. Of n trusted images int(n * share) are stamped, and are not there without a trigger.
    """
    masks, patterns = verdict.aux["masks"], verdict.aux["patterns"]
    if masks.shape[1:] != reserve.image_size or patterns.shape[1] != reserve.channels:
        height, width = masks.shape[1:]
        raise UserError(
            f"nc_unlearn: masks of {height}x{width} px for {patterns.shape[1]} channels given, allowed: those of images as "
            "the reserve's"
        )
    count = int(len(reserve) * share)
    if not count:
        raise ParameterError(f"share: {share} given, allowed: at least {1 / len(reserve):.2g}, one trusted image")
    order = numpy_rng(seed, "nc_unlearn/stamped").permutation(len(reserve))
    stamped, plain = order[:count], order[count:]
    labels, images = reserve.labels, reserve.gather(stamped)
    flagged = np.flatnonzero(verdict.flagged)
    with_each = [stamp(images, masks[target], patterns[target]) for target in flagged]
    return ImageSet(
        np.concatenate([reserve.gather(plain), *with_each]),
        np.concatenate([labels[plain], *(labels[stamped] for _ in flagged)]),
        reserve.classes,
    )


def stamp(images: NDArray[np.uint8], mask: NDArray[np.floating], pattern: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(1 - m) x + m p, rounded to whole values.

    Args:
        images: uint8 [n, h, w, c].
        mask: share of the pattern at each pixel, real numbers in [0, 1], [h, w].
        pattern: uint8 [c, h, w].
    """
    share = mask.astype(np.float32)[..., None]
    mixed = (1 - share) * images + share * pattern.transpose(1, 2, 0)
    return np.rint(mixed).astype(np.uint8)


PURIFIER = Purifier(purify=purify, by="verdicts")
