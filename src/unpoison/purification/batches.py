"""Batches for purifiers whose step is not that of `training.loop.fit`: masks, inner attacks, ascent, several models at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..compute.device import autocast, batch_size, pick_device, to_float
from ..compute.finite import check_network, not_finite
from ..core.errors import ParameterError
from ..core.seeding import torch_rng
from ..data.imageset import ImageSet
from ..models.classifier import Classifier
from ..training.augment import Batch, apply, draw


class Batches:
    """A small labelled set on the device, uint8, in batches that are drawn anew in each epoch.

    Args:
        data: n labelled images, which fit in memory.
        size: images per batch; a last one of a single image joins the one before, as batch norm needs two.
        seed: seed for the order and the augmentation.
        purpose: name of the use ("anp"), for its random draws.
        augment: augmentations by name, in order, out of `training.augment`.
    """

    def __init__(self, data: ImageSet, size: int, *, seed: int, purpose: str, augment: Sequence[str] = ()) -> None:
        self.device = pick_device()
        self.images = data.tensor().to(self.device)
        self.labels = torch.from_numpy(data.labels).to(self.device)
        self.size, self.augment, self.image_size = size, augment, data.image_size
        self.generator = torch_rng(seed, f"purify/{purpose}")

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._split(torch.arange(len(self.labels))))

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images float32 [b, c, h, w] in [0, 1], channels_last, and labels int64 [b], all of the set once."""
        for index in self._split(torch.randperm(len(self.labels), generator=self.generator)):
            # Drawn on the CPU: a GPU sees the same numbers.
            drawn = draw(self.augment, Batch(index, epoch, self.image_size, self.generator))
            index = index.to(self.device)
            images = to_float(self.images[index], self.device)
            yield apply(images, self.augment, [rows.to(self.device) for rows in drawn]), self.labels[index]

    def forever(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of epoch after epoch, for loops that count steps."""
        epoch = 0
        while True:
            yield from self.epoch(epoch)
            epoch += 1

    def _split(self, order: Tensor) -> list[Tensor]:
        parts = list(order.split(self.size))
        if len(parts) > 1 and len(parts[-1]) == 1:
            parts[-2:] = [torch.cat(parts[-2:])]
        return parts


def on_device(model: Classifier, what: str) -> Classifier:
    """A model for loops of one's own, moved to the device, channels_last. Raises UserError where it is not finite."""
    check_network(model, what)
    moved: Classifier = model.to(device=pick_device(), memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


@torch.no_grad()
def check_purified(model: Classifier, data: ImageSet, what: str, lr: float, *, key: str = "lr") -> None:
    """Put a model into evaluation mode after a loop of one's own, and look whether it came to something.

    Args:
        model: the model, on the device.
        data: images, some of which are passed: a step can end at finite weights that are too large for any logits.
        what: name of the purifier.
        lr: learning rate of the loop.
        key: name of the parameter that it is.

    Raises:
        ParameterError: weights, statistics or logits that are not finite, with the key.
    """
    model.eval()
    bad = not_finite(model)
    fact = f"{len(bad)} of {len(model.state_dict())} tensors are not finite ({bad[0]})" if bad else ""
    if not bad:
        images = data.tensor(np.arange(min(len(data), batch_size(data.image_size, 64))))
        device = next(model.parameters()).device
        with autocast(device):
            if not model(to_float(images, device)).isfinite().all():
                fact = "its logits are not finite"
    if fact:
        raise ParameterError(
            f"{key}: {lr} given, with which {what} diverged: {fact}; allowed: a lower one, and other weights of the loss where "
            "it has any"
        )
