"""Reconstructive Neuron Pruning (Li et al., "Reconstructive Neuron Pruning for Backdoor Defense", ICML 2023).

A copy of the network unlearns the trusted images, by ascent of their loss; what is left to it is the backdoor.
Masks of its batch norms, with all weights fixed, then relearn the images: they have to close the channels that
still serve the backdoor, and those are pruned in the network as it came.

The collapse of the unlearned copy is the method's purpose, and only masks come out of it: the ascent has no guard but its stop
by accuracy and a cap on its epochs.

Published code: https://github.com/bboylyg/RNP/blob/966e060/main.py. Its clipping of gradients stands before the backward pass,
where there are none, so here is none either; it also crops and flips; and where the accuracy never falls it ends with an error,
while here the masks relearn from what the last epoch left.

Published thresholds are read off a sweep against the attack success rate on triggered test images, which no defender has. That
is not offered: a threshold is given.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch.nn import functional as F

from ..compute.device import autocast
from ..core.hyperparameters import Count, Epochs, Fraction, NonNegative, Positive
from ..core.progress import progress
from ..data.imageset import ImageSet
from ..models.classifier import Classifier
from ..training.optimizer import Optimizer
from ..training.recipe import AugmentationName, Rate, Recipe, rates
from .batches import Batches, check_batches, check_purified, on_device
from .channels import Masks, batch_norms, normalised_by_batch
from .purifier import Purifier


def purify(
    model: Classifier,
    reserve: ImageSet,
    *,
    seed: int = 0,
    epochs: Epochs = 20,
    lr: Positive = 0.01,
    weight_decay: NonNegative = 5e-4,
    accuracy: Fraction = 0.2,
    mask_epochs: Epochs = 20,
    mask_lr: Positive = 0.2,
    alpha: Positive = 0.2,
    threshold: Fraction = 0.3,
    batch_size: Count = 128,
    augment: list[AugmentationName] | tuple[AugmentationName, ...] = (),
) -> Classifier:
    """Unlearn the trusted reserve, relearn it by masks, and prune the channels with low ones; a new model is returned.

    Args:
        model: the backdoored classifier, left as it was.
        reserve: trusted, labelled images.
        seed: seed for the order of the images and their augmentation.
        epochs: passes over the reserve that unlearn it, at most; 20 in the published code.
        lr: learning rate of the ascent, with momentum 0.9; a tenth from the 11th epoch on, a hundredth from the 21st. 0.01 in the
            published code.
        weight_decay: L2 penalty of the ascent's SGD; 5e-4 in the published code.
        accuracy: accuracy over an epoch at which the ascent stops; 0.2 in the published code.
        mask_epochs: passes over the reserve that train the masks; 20 in the published code.
        mask_lr: learning rate of the masks, whose momentum is 0.9. 0.2 in the published code.
        alpha: factor of the masks' loss; 0.2 in the published code.
        threshold: channels whose mask is at most this lose their weight, not their bias; 0.3 is where the
            authors' log ends, 0.7 where BackdoorBench's sweep starts.
        batch_size: images per step. 128 in the published code, 256 in BackdoorBench.
        augment: augmentations by name, in order, out of `training.augment`; [crop, flip] in the published code.

    Raises:
        ParameterError: weights or masks that are not finite; batches of one image where batch norm needs more.
        UserError: a network without batch norm, or one that is not finite.
    """
    pruned = on_device(deepcopy(model), "rnp").eval()
    batch_norms(pruned, "rnp")
    check_batches(pruned, batch_size, reserve)
    batches = Batches(reserve, batch_size, seed=seed, purpose="rnp", augment=augment)
    recipe = Recipe(
        epochs=epochs,
        lr=lr,
        weight_decay=weight_decay,
        schedule="multistep",
        schedule_per="epoch",
        milestones=(10, 20),
    )
    unlearned = deepcopy(pruned)
    unlearn(unlearned, batches, recipe, accuracy)
    check_purified(unlearned, reserve, "rnp", lr)
    masks = Masks(unlearned, "rnp")
    relearn(masks, batches, Recipe(epochs=mask_epochs, lr=mask_lr, weight_decay=0.0), alpha)
    masks.check("mask_lr", mask_lr)
    masks.prune(pruned, threshold)
    return pruned


def unlearn(network: Classifier, batches: Batches, recipe: Recipe, accuracy: float) -> None:
    """Raise the loss of the reserve's images, in place, until an epoch's accuracy is at most `accuracy`.

    Unlike in `clean_unlearning` that is the accuracy of the steps themselves, as published, and of a given value; the rate falls,
    weights decay, no loss is bounded, and only batch norm works in training mode.
    """
    normalised_by_batch(network)
    optimizer, schedule = Optimizer(recipe, network.parameters()), rates(recipe, len(batches))
    for epoch in progress(range(recipe.epochs), what="rnp, unlearning", unit="epoch", total=recipe.epochs):
        correct = torch.zeros((), device=batches.device)
        for images, labels in batches.epoch(epoch):
            with autocast(images.device):
                logits = network(images)
            optimizer.zero_grad()
            (-F.cross_entropy(logits.float(), labels)).backward()
            optimizer.step(schedule[epoch * len(batches)])
            correct += (logits.detach().argmax(1) == labels).sum()
        # The one look at the device in an epoch.
        if correct.item() <= accuracy * len(batches.data):
            break


def relearn(masks: Masks, batches: Batches, recipe: Recipe, alpha: float) -> None:
    """Lower the loss of the reserve's images by the masks alone, clipped to [0, 1] after each step."""
    optimizer, rate = Optimizer(recipe, [masks.values]), Rate(recipe.lr, recipe.momentum)
    for epoch in progress(range(recipe.epochs), what="rnp, masks", unit="epoch", total=recipe.epochs):
        for images, labels in batches.epoch(epoch):
            optimizer.zero_grad()
            (alpha * F.cross_entropy(masks.logits(images, masks.values), labels)).backward()
            optimizer.step(rate)
            masks.clip()


PURIFIER = Purifier(purify=purify)
