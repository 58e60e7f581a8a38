"""Fine-tuning, then unlearning (Huang et al., "Distilling Cognitive Backdoor Patterns within an Image", ICLR 2023), after
Anti-Backdoor Learning (Li et al., NeurIPS 2021): what a detector ranks highest is unlearned, by any detector's scores.

First the samples that look clean are learned; then, in turn, they are learned and those that look poisoned unlearned.

Published code: https://github.com/HanxunH/CognitiveDistillation/blob/6aba6f9/unlearn_fintune.py, whose rates and epochs are the
defaults; the paper gives 5 epochs at a rate of 5e-4. `bound` and `allowed_drop` are added, and null takes them away.
"""

from __future__ import annotations

from copy import deepcopy

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
    clean_share: Fraction = 0.7,
    poison_share: Fraction = 0.025,
    finetune_epochs: Epochs = 20,
    epochs: Epochs = 5,
    batch_size: Count = 128,
    lr: Positive = 0.01,
    relearn_lr: Positive = 1e-3,
    unlearn_lr: Positive = 1e-5,
    weight_decay: NonNegative = 1e-4,
    augment: list[AugmentationName] | tuple[AugmentationName, ...] = (),
    bound: Positive | None = 5.0,
    allowed_drop: Fraction | None = 0.1,
) -> Classifier:
    """Fine-tune on the samples that look clean, then descend on them and ascend on the others in turn; a new model is returned.

    Args:
        model: the backdoored classifier, left as it was.
        reserve: trusted, labelled images, which the accuracy is watched on.
        scored: training samples with the scores of a detector.
        seed: seed for the order of the images and their augmentation.
        clean_share: share of the samples with the lowest scores, which are learned.
        poison_share: share of the samples with the highest scores, which are unlearned.
        finetune_epochs: passes over the samples that look clean before anything is unlearned.
        epochs: passes over either set after that.
        batch_size: images per step.
        lr: learning rate of fine-tuning; a tenth of it in the second half of its epochs.
        relearn_lr: learning rate of the descent after that.
        unlearn_lr: learning rate of the ascent.
        weight_decay: L2 penalty of SGD, with Nesterov's momentum of 0.9.
        augment: augmentations of the samples that look clean, by name, in order, out of `training.augment`; [crop, flip,
            cutout] in the published code. Those that are unlearned stay as they are.
        bound: a sample's cross entropy from which on it is not raised any more; null, as published: no bound.
        allowed_drop: accuracy on the reserve that an epoch may leave lost after fine-tuning, else the epoch before is
            returned; null, as published: all of it.

    Raises:
        ParameterError: shares of no sample or that overlap, batches that batch norm cannot average over, divergence.
        UserError: a network that is not finite.
    """
    network = on_device(deepcopy(model), "unlearn")
    clean, poison = isolate(scored, clean_share, poison_share)
    for key, share in (("clean_share", clean_share), ("poison_share", poison_share)):
        check_share(network, scored, key, share)
    check_batches(network, batch_size, clean, poison)
    recipe = Recipe(batch_size=batch_size, lr=lr, weight_decay=weight_decay, nesterov=True)
    # One optimiser throughout, as published: its momentum is carried over.
    optimizer = Optimizer(recipe, network.parameters())
    learned = Batches(clean, batch_size, seed=seed, purpose="unlearn/clean", augment=augment)
    unlearned = Batches(poison, batch_size, seed=seed, purpose="unlearn/poison")
    for epoch in progress(range(finetune_epochs), what="unlearn, fine-tuning", unit="epoch", total=finetune_epochs):
        run_epoch(network, learned, epoch, optimizer, lr if 2 * epoch < finetune_epochs else lr / 10)
    check_purified(network, reserve, "unlearn", lr)
    # What fine-tuning alone has cost is not held against the ascent.
    watch = Watch(network, reserve, allowed_drop)
    for epoch in progress(range(epochs), what="unlearn", unit="epoch", total=epochs):
        run_epoch(network, learned, finetune_epochs + epoch, optimizer, relearn_lr)
        check_purified(network, reserve, "unlearn", relearn_lr, key="relearn_lr")
        run_epoch(network, unlearned, epoch, optimizer, unlearn_lr, ascend=True, bound=bound)
        # Before the watch, which would take what is not finite for a collapse and hide it.
        check_purified(network, reserve, "unlearn", unlearn_lr, key="unlearn_lr")
        if watch.collapsed(network):
            watch.restore(network)
            break
    return network.eval()


PURIFIER = Purifier(purify=purify, by="scores")
