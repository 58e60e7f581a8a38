"""Clean unlearning, which several purifiers begin with: what a network still says when it knows no trusted image any more.

Nothing of a backdoor is asked for in it, so that the backdoor outlasts the rest. The network is raw material and thrown away.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch.nn import functional as F

from ..compute.device import autocast
from ..core.progress import progress
from ..data.imageset import ImageSet
from ..models.classifier import Classifier
from ..training.bounds import bounded
from ..training.optimizer import Optimizer
from ..training.recipe import Rate, Recipe
from .ascent import accuracy_on
from .batches import Batches, check_purified, on_device


def unlearned(
    model: Classifier,
    batches: Batches,
    reserve: ImageSet,
    *,
    what: str,
    epochs: int,
    lr: float,
    momentum: float,
    bound: float | None,
) -> Classifier:
    """A copy whose cross entropy on trusted images is raised by SGD until it is right about no more than chance allows.

    Chance is the accuracy of a constant: a share of 1 / classes, or that of the most frequent class where it is more. It is
    looked at after each epoch, in evaluation mode and without augmentation. Momentum carries on beyond the bound.

    Args:
        model: the classifier, left as it was.
        batches: batches of the trusted images to unlearn.
        reserve: the same images, to measure the accuracy on.
        what: name of the method.
        epochs: passes at most.
        lr: learning rate.
        momentum: momentum of SGD.
        bound: loss of a sample beyond which it is not raised further; None for no bound. A sample that the network is right
            about has a loss of log(classes) at most.

    Raises:
        ParameterError: an ascent that is not finite, with the key `unlearn_lr`.
    """
    network = on_device(deepcopy(model), what).train()
    optimizer = Optimizer(Recipe(weight_decay=0.0), network.parameters())
    chance = chance_of(reserve, network.head.out_features)
    for epoch in progress(range(epochs), what=f"{what}, unlearning", unit="epoch", total=epochs):
        rising = torch.zeros((), dtype=torch.bool, device=batches.device)
        for images, labels in batches.epoch(epoch):
            with autocast(batches.device):
                logits = network(images)
            optimizer.zero_grad()
            losses = F.cross_entropy(logits.float(), labels, reduction="none")
            (-bounded(losses, bound).mean()).backward()
            optimizer.step(Rate(lr, momentum))
            rising |= torch.ones_like(rising) if bound is None else (losses < bound).any()
        # Where every loss is beyond the bound nothing would change any more.
        if not rising.item() or accuracy_on(network, reserve) <= chance:
            break
    optimizer.zero_grad()
    check_purified(network, reserve, f"the ascent of {what}", lr, key="unlearn_lr")
    return network


def chance_of(reserve: ImageSet, classes: int) -> float:
    """The accuracy on labelled images that a network which always says the same class can have, at most."""
    counts = torch.bincount(torch.from_numpy(reserve.labels), minlength=classes)
    return max(1 / classes, counts.max().item() / len(reserve))
