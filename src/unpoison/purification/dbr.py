"""D-BR, backdoor removal (Chen et al., "Effective Backdoor Defense by Exploiting Sensitivity of Poisoned Samples",
NeurIPS 2022): the samples that look poisoned are unlearned, those that look clean are learned again, in turn.

Its scores are those of the paper's own detector (`scores/fct`) or of any other.
Published code: https://github.com/SCLBD/Effective_backdoor_defense/blob/63fda0e/unlearn_relearn.py. It keeps the epoch that is
best in accuracy less ASR on the test set; here the last one is returned. There the ascent has no bound, and in the end no
class may be left: `bound` and `allowed_drop` are added, and null takes them away.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Literal

from ..core.hyperparameters import Count, Epochs, Fraction, NonNegative, Positive
from ..core.progress import progress
from ..data.imageset import ImageSet
from ..data.scores import Scored, isolate
from ..models.classifier import Classifier
from ..training.optimizer import Optimizer
from ..training.recipe import AugmentationName, Recipe
from .ascent import Watch
from .batches import Batches, check_batches, check_purified, on_device
from .isolation import check_share, run_epoch
from .purifier import Purifier


def purify(
    model: Classifier,
    reserve: ImageSet,
    scored: Scored,
    *,
    seed: int = 0,
    clean_share: Fraction = 0.2,
    poison_share: Fraction = 0.05,
    relearn: Literal["clean", "reserve", "both"] = "clean",
    epochs: Epochs = 20,
    batch_size: Count = 128,
    lr: Positive = 1e-4,
    weight_decay: NonNegative = 5e-4,
    augment: list[AugmentationName] | tuple[AugmentationName, ...] = (),
    bound: Positive | None = 5.0,
    allowed_drop: Fraction | None = 0.1,
) -> Classifier:
    """In each epoch ascend on the samples that look poisoned, then descend on those that look clean; a new model is returned.

    Args:
        model: the backdoored classifier, left as it was.
        reserve: trusted, labelled images, which the accuracy is watched on.
        scored: training samples with the scores of a detector.
        seed: seed for the order of the images and their augmentation.
        clean_share: share of the samples with the lowest scores, which are learned again.
        poison_share: share of the samples with the highest scores, which are unlearned.
        relearn: what is learned again: `clean`, as published, the trusted `reserve`, or `both`.
        epochs: passes over either set; 20 in the published instructions.
        batch_size: images per step.
        lr: learning rate of all steps.
        weight_decay: L2 penalty of SGD, whose momentum is 0.9.
        augment: augmentations by name, in order, out of `training.augment`; [crop, flip] in the published code.
        bound: a sample's cross entropy from which on it is not raised any more; null, as published: no bound.
        allowed_drop: accuracy on the reserve that an epoch may leave lost, else the epoch before is returned; null, as
            published: all of it.

    Raises:
        ParameterError: shares of no sample or that overlap, batches that batch norm cannot average over, divergence.
        UserError: a network that is not finite.
    """
    network = on_device(deepcopy(model), "dbr")
    clean, poison = isolate(scored, clean_share, poison_share)
    check_share(network, scored, "poison_share", poison_share)
    if relearn == "clean":
        check_share(network, scored, "clean_share", clean_share)
    else:
        clean = reserve if relearn == "reserve" else clean.followed_by(reserve)
    check_batches(network, batch_size, clean, poison)
    recipe = Recipe(batch_size=batch_size, lr=lr, weight_decay=weight_decay)
    # One optimiser for both, as published: the momentum of the ascent is carried into the first steps of the descent.
    optimizer = Optimizer(recipe, network.parameters())
    unlearned = Batches(poison, batch_size, seed=seed, purpose="dbr/poison", augment=augment)
    relearned = Batches(clean, batch_size, seed=seed, purpose="dbr/clean", augment=augment)
    watch = Watch(network, reserve, allowed_drop)
    for epoch in progress(range(epochs), what="dbr", unit="epoch", total=epochs):
        run_epoch(network, unlearned, epoch, optimizer, lr, ascend=True, bound=bound)
        run_epoch(network, relearned, epoch, optimizer, lr)
        # Before the watch, which would take what is not finite for a collapse and hide it.
        check_purified(network, reserve, "dbr", lr)
        if watch.collapsed(network):
            watch.restore(network)
            break
    return network.eval()


PURIFIER = Purifier(purify=purify, by="scores")
