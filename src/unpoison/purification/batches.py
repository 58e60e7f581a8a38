"""Batches for purifiers whose step is not that of `training.loop.fit`: masks, inner attacks, ascent, several models at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..compute.device import pick_device
from ..compute.distributed import World
from ..compute.finite import check_network
from ..core.errors import ParameterError
from ..core.seeding import torch_rng
from ..data.imageset import ImageSet
from ..models.classifier import Classifier
from ..training.checks import check_batch_of_one, fact_of_divergence
from ..training.hand import Hand
from ..training.plan import Plan
from ..training.recipe import AugmentationName, Recipe


class Batches:
    """A labelled set in batches that are drawn anew in each epoch, read as `training.loop.fit` reads its own.

    Every process has all of a batch, however many there are.

    Args:
        data: n labelled images.
        size: images per batch; a last one of a single image joins the one before, as batch norm needs two.
        seed: seed for the order and the augmentation.
        purpose: name of the use ("anp"), for its random draws.
        augment: augmentations by name, in order, out of `training.augment`.
    """

    def __init__(
        self, data: ImageSet, size: int, *, seed: int, purpose: str, augment: Sequence[AugmentationName] = ()
    ) -> None:
        self.device, self.data = pick_device(), data
        recipe = Recipe(batch_size=size, augment=tuple(augment))
        self.plan = Plan(data, recipe, World(), self.device, torch_rng(seed, f"purify/{purpose}"), Hand())
        self.sizes = self.plan.sizes

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.sizes)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images float32 [b, c, h, w] in [0, 1], channels_last, and labels int64 [b], all of the set once."""
        _, batches = self.plan.epoch(epoch)
        for _, images, labels, _ in batches:
            yield images, labels

    def forever(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of epoch after epoch, for loops that count steps."""
        epoch = 0
        while True:
            yield from self.epoch(epoch)
            epoch += 1


def check_batches(model: Classifier, batch_size: int, *sets: ImageSet) -> None:
    """Raises ParameterError where a batch of one image out of the sets leaves batch norm a single value to average over."""
    for data in sets:
        if min(batch_size, len(data)) == 1:
            check_batch_of_one(model, data, Recipe(batch_size=batch_size))


def on_device(model: Classifier, what: str) -> Classifier:
    """A model for loops of one's own, moved to the device, channels_last. Raises UserError where it is not finite."""
    check_network(model, what)
    moved: Classifier = model.to(device=pick_device(), memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def check_purified(model: Classifier, data: ImageSet, what: str, lr: float, *, key: str = "lr") -> None:
    """Put a model into evaluation mode after a loop of one's own, and look whether it came to something.

    Args:
        model: the model, on the device.
        data: images, some of which are passed.
        what: name of the purifier.
        lr: learning rate of the loop.
        key: name of the parameter that it is.

    Raises:
        ParameterError: weights, statistics or logits that are not finite, with the key.
    """
    if fact := fact_of_divergence(model.eval(), data):
        raise ParameterError(
            f"{key}: {lr} given, with which {what} diverged: {fact}; allowed: a lower one, and other weights of the loss where "
            "it has any"
        )
