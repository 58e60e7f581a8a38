"""What purifiers by a detector's scores share: a pass that learns or unlearns one end of the ranking."""

from __future__ import annotations

from ..compute.device import autocast
from ..core.errors import ParameterError
from ..data.scores import Scored
from ..models.classifier import Classifier
from ..training.bounds import bounded
from ..training.checks import takes_batch_of_one
from ..training.loop import cross_entropy
from ..training.optimizer import Optimizer
from ..training.recipe import Rate
from .batches import Batches


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
