"""SAU (Wei et al., "Shared Adversarial Unlearning: Backdoor Mitigation by Unlearning Shared Adversarial Examples", NeurIPS 2023).

The backdoored network errs on triggered images, so they are adversarial examples of it; and as long as the purified network has
the backdoor, of both, with the same wrong class. Section 4 of the paper: find perturbations that lead both networks to one and
the same wrong class, and train the purified one to say anything else there.

Published code: https://github.com/SCLBD/BackdoorBench/blob/3f4b1a9/defense/sau.py and config/defense/sau/config.yaml. It undoes the
normalisation before it adds a perturbation, so the published 0.2 and its steps are of images in [0, 1], as here, and it clips
nothing, as here. Batch norm keeps its statistics. The divergence of the two networks' outputs is computed from logarithms, where
the published code bounds probabilities by 1e-8, and the two logarithms of the loss, equal but for rounding, are one here. An
attack goes on to its last step where the published one ends with the last image that is shared: such images do not move either way.
"""

from __future__ import annotations

import math
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor

from ..compute.device import autocast
from ..core.hyperparameters import Count, Epochs, NonNegative, Positive
from ..core.progress import progress
from ..data.imageset import ImageSet
from ..models.classifier import Classifier
from ..training.optimizer import Optimizer
from ..training.recipe import AugmentationName, Rate, Recipe
from .batches import Batches, check_purified, on_device
from .purifier import Purifier

LOG_2 = math.log(2)


def purify(
    model: Classifier,
    reserve: ImageSet,
    *,
    seed: int = 0,
    epochs: Epochs = 100,
    batch_size: Count = 256,
    lr: Positive = 1e-4,
    bound: Positive = 0.2,
    step: Positive = 0.2,
    steps: Count = 5,
    beta_1: NonNegative = 0.01,
    beta_2: NonNegative = 1.0,
    lambda_1: NonNegative = 1.0,
    lambda_2: NonNegative = 0.0,
    lambda_3: NonNegative = 1.0,
    augment: list[AugmentationName] | tuple[AugmentationName, ...] = (),
) -> Classifier:
    """Unlearn the adversarial examples that the model shares with what it was; a new model is returned.

    Args:
        model: the backdoored classifier, left as it was.
        reserve: trusted, labelled images.
        seed: seed for the order of the images and their augmentation.
        epochs: passes over the trusted reserve, each of whose batches is attacked and trained on once.
        batch_size: images per step.
        lr: learning rate of Adam.
        bound: largest change of a pixel, of images in [0, 1].
        step: length of a step of the attack in each pixel, of images in [0, 1].
        steps: steps of the attack.
        beta_1: weight of the attack's loss that leads each network to a wrong class.
        beta_2: weight of the attack's loss that leads both to the same.
        lambda_1: weight of the cross entropy of the images as they are.
        lambda_2: weight of the cross entropy of the perturbed images.
        lambda_3: weight of the loss that unlearns the class to which the perturbation leads the backdoored network.
        augment: augmentations by name, in order, out of `training.augment`.
    """
    network = on_device(deepcopy(model), "sau").eval()
    optimizer = Optimizer(Recipe(optimizer="adam", lr=lr, weight_decay=0.0), network.parameters())
    batches = Batches(reserve, batch_size, seed=seed, purpose="sau", augment=augment)
    # Not folded by `frozen`: at first the two networks are the same to the last bit, and do not diverge.
    reference = deepcopy(network).requires_grad_(False)
    for epoch in progress(range(epochs), what="sau", unit="epoch", total=epochs):
        for images, labels in batches.epoch(epoch):
            with torch.no_grad(), autocast(batches.device):
                before, before_reference = network(images).argmax(1), reference(images).argmax(1)
            delta = torch.full_like(images, bound)
            for _ in range(steps):
                delta.requires_grad_()
                with autocast(batches.device):
                    outputs, outputs_reference = network(images + delta), reference(images + delta)
                loss = attack_loss(
                    outputs, outputs_reference, labels, before, before_reference, beta_1=beta_1, beta_2=beta_2
                )
                (slope,) = torch.autograd.grad(loss, delta)
                delta = delta.detach().sub_(slope.sign_(), alpha=step).clamp_(-bound, bound)
            perturbed = images + delta
            with torch.no_grad(), autocast(batches.device):
                wrong = reference(perturbed).argmax(1)
            fooled = (wrong != labels) & (wrong != before_reference)
            with autocast(batches.device):
                logits, outputs = network(torch.cat([images, perturbed])).chunk(2)
            loss = lambda_1 * F.cross_entropy(logits.float(), labels)
            loss = loss + lambda_2 * F.cross_entropy(outputs.float(), labels)
            loss = loss + lambda_3 * shared_loss(outputs, wrong, fooled)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step(Rate(lr, 0.9))
    optimizer.zero_grad()
    check_purified(network, reserve, "sau", lr)
    return network


def attack_loss(
    logits: Tensor,
    reference: Tensor,
    labels: Tensor,
    before: Tensor,
    before_reference: Tensor,
    *,
    beta_1: float,
    beta_2: float,
) -> Tensor:
    """What the perturbations minimise, a sum over images, of which each has its own.

    It is -beta_1 / 2 times the cross entropy of each network that still predicts what it did without the perturbation, plus
    beta_2 times the Jensen-Shannon divergence of both networks' outputs, unless both have changed their mind and agree.

    Args:
        logits: the purified network's on perturbed images, [b, classes].
        reference: the backdoored network's, [b, classes].
        labels: true classes, int64 [b].
        before: what the purified network predicts without perturbation, int64 [b].
        before_reference: what the backdoored network predicts, int64 [b].
        beta_1: weight of the cross entropies.
        beta_2: weight of the divergence.
    """
    after, after_reference = logits.argmax(1), reference.argmax(1)
    kept, kept_reference = after == before, after_reference == before_reference
    shared = ~kept & ~kept_reference & (after == after_reference)
    ours, theirs = logits.float().log_softmax(1), reference.float().log_softmax(1)
    entropies = F.nll_loss(ours, labels, reduction="none") * kept
    entropies = entropies + F.nll_loss(theirs, labels, reduction="none") * kept_reference
    middle = torch.logaddexp(ours, theirs) - LOG_2
    # KL divergences from the middle, whose means are the Jensen-Shannon divergence.
    divergence = (ours.exp() * (ours - middle) + theirs.exp() * (theirs - middle)).sum(1) / 2
    return (beta_2 * divergence * ~shared - beta_1 / 2 * entropies).sum()


def shared_loss(logits: Tensor, wrong: Tensor, fooled: Tensor) -> Tensor:
    """-log(1 - p) of the probability p of the class to which a perturbation leads the backdoored network.

    Args:
        logits: the purified network's on perturbed images, [b, classes].
        wrong: the backdoored network's predictions for them, int64 [b].
        fooled: whether the backdoored network is wrong there, and only there, bool [b].

    Returns:
        The sum over the images with `fooled`, divided by b, so that few of them weigh little. Bounds as published: below
        p = 0.001 there is no slope, and the loss of an image is 13.8 at most.
    """
    chosen = F.one_hot(wrong, logits.shape[1]).bool()
    # The others' sum, not 1 - p, which is 0 for the confident in float32.
    others = logits.float().softmax(1).masked_fill(chosen, 0.0).sum(1).clamp(max=0.999)
    return -((others + 1e-6).log() * fooled).sum() / len(logits)


PURIFIER = Purifier(purify=purify)
