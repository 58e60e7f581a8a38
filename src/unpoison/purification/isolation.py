"""What purifiers by a detector's scores share: the two ends of the ranking, and a pass that learns or unlearns one of them."""

from __future__ import annotations

import numpy as np

from ..compute.device import autocast
from ..core.errors import ParameterError
from ..data.imageset import ImageSet
from ..models.classifier import Classifier
from ..training.checks import takes_batch_of_one
from ..training.loop import cross_entropy
from ..training.optimizer import Optimizer
from ..training.recipe import Rate
from .ascent import bounded
from .batches import Batches
from .purifier import Scored


def isolate(scored: Scored, clean_share: float, poison_share: float) -> tuple[ImageSet, ImageSet]:
    """The samples that look clean and those that look poisoned: the lowest and the highest scores.

    Of n samples these are int(n * share), whatever the scores: among equal ones the first samples rank lower.

    Args:
        scored: n samples with their scores.
        clean_share, poison_share: shares of the samples.

    Raises:
        ParameterError: a share of no sample, or shares that overlap.
    """
    count = len(scored.values)
    for key, share in (("clean_share", clean_share), ("poison_share", poison_share)):
        if not int(count * share):
            raise ParameterError(f"{key}: {share} given, allowed: at least {1 / count:.2g}, one of the {count} samples")
    clean, poison = int(count * clean_share), int(count * poison_share)
    if clean + poison > count:
        raise ParameterError(
            f"poison_share: {poison_share} given, allowed: at most {1 - clean_share:g}, what clean_share leaves"
        )
    order = np.argsort(scored.values, kind="stable")
    return scored.data.subset(order[:clean]), scored.data.subset(order[count - poison :])


def check_share(model: Classifier, scored: Scored, key: str, share: float) -> None:
    """Raises ParameterError, with the key of a share, where it is of one sample and leaves batch norm a single value."""
    count = len(scored.values)
    if int(count * share) == 1 and not takes_batch_of_one(model, scored.data):
        raise ParameterError(
            f"{key}: {share} given, allowed for this network: at least {2 / count:.2g}, two of the {count} samples, as batch "
            "norm would average over a single value"
        )


def run_epoch(
    network: Classifier,
    batches: Batches,
    epoch: int,
    optimizer: Optimizer,
    lr: float,
    *,
    ascend: bool = False,
    bound: float | None = None,
) -> None:
    """A pass over a set in training mode that lowers its cross entropy, or raises it.

    Args:
        network: the network, on the device; changed in place.
        batches: the set.
        epoch: number of the epoch, from 0, for its augmentation.
        optimizer: SGD, which keeps its momentum from pass to pass.
        lr: learning rate of all steps.
        ascend: whether the cross entropy is raised.
        bound: a sample's cross entropy from which on it is not raised any more; None for no bound.
    """
    network.train()
    rate = Rate(lr, optimizer.recipe.momentum)
    for images, labels in batches.epoch(epoch):
        with autocast(batches.device):
            _, losses = cross_entropy(network, images, labels)
        optimizer.zero_grad()
        (-bounded(losses, bound).mean() if ascend else losses.mean()).backward()
        optimizer.step(rate)
