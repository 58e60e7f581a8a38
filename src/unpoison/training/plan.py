"""Batches of a training: their order, their augmentation, and where their images are read from.

The images are one uint8 tensor on the device where they fit in a quarter of its memory; otherwise they are read from disk batch
by batch, one batch ahead. `loop` trains by these, and so do purifiers whose steps are of another kind.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from ..compute.device import to_float
from ..compute.distributed import World
from ..core.errors import ParameterError, UserError
from ..data.imageset import ImageSet
from .augment import Batch, apply, draw
from .hand import Hand
from .recipe import Recipe


def split(order: Tensor, size: int, *, drop_last: bool = False, least: int = 2) -> list[Tensor]:
    """Batches of `size`; a last one below `least` joins the one before, as batch norm needs something to average over."""
    batches = list(order.split(size))
    if drop_last and len(batches[-1]) < size:
        batches.pop()
    elif len(batches) > 1 and len(batches[-1]) < least:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


class Plan:
    """Order and augmentation of every epoch, drawn on the CPU and moved in one go, and the images of each batch.

    Attributes:
        labels: labels on the device, int64 [n].
        sizes: samples in each batch of an epoch, once one has begun of that one.
        steps_per_epoch: batches in an epoch.
    """

    def __init__(
        self,
        data: ImageSet,
        recipe: Recipe,
        here: World,
        device: torch.device,
        generator: torch.Generator,
        hand: Hand,
    ) -> None:
        self.data, self.recipe, self.here, self.device, self.generator = data, recipe, here, device, generator
        self.labels, self.hand = torch.from_numpy(data.labels).to(device), hand
        self.resident = _resident(data, device) if data.base.nbytes < _memory(device) // 4 else None
        self.sizes = [len(batch) for batch in self._batches(torch.arange(hand.length(len(data))))]
        self.steps_per_epoch = len(self.sizes)
        if not self.steps_per_epoch:
            raise ParameterError(
                f"batch_size: {recipe.batch_size} given, allowed with drop_last: 1 to {len(data)} images"
            )
        # Two samples per process are the least that batch norm can average over.
        least = min(recipe.batch_size, len(data))
        if here.size > max(1, least // 2):
            raise UserError(
                f"{here.size} processes given, allowed for batches of {least} images: 1 to {least // 2 or 1}"
            )

    def epoch(self, epoch: int) -> tuple[Tensor, Iterator[tuple[Tensor, Tensor, Tensor, int]]]:
        """The samples in order; and per batch this process's samples, images and labels, and the whole batch's size."""
        batches = self.hand.batches(epoch, len(self.data), self.generator, self._batches)
        self.sizes = [len(batch) for batch in batches]
        names, size = self.recipe.augment, self.data.image_size
        # Drawn for whole batches, so the numbers do not depend on how many processes share them; what this process needs of
        # an epoch's numbers then goes to the device as one tensor per augmentation.
        drawn = [draw(names, Batch(index, epoch, size, self.generator)) for index in batches]
        shares = [self.here.share(index) for index in batches]
        numbers = [torch.cat([self.here.share(rows[i]) for rows in drawn]).to(self.device) for i in range(len(names))]
        return torch.cat(batches), self._load(epoch, batches, shares, numbers)

    def first_bad(self, losses: Tensor) -> int:
        """The first step of an epoch whose losses, in the order of training, or their sum so far are not finite."""
        bad = (~losses.double().cumsum(0).isfinite()).nonzero()
        place = int(bad[0]) if len(bad) else len(losses) - 1
        return int(np.searchsorted(np.cumsum(self.sizes), place, side="right"))

    def left_out(self, order: Tensor) -> Tensor:
        """Mask of the samples that are not in `order`, bool [n]."""
        missing = torch.ones(len(self.data), dtype=torch.bool)
        missing[order] = False
        return missing.to(self.device)

    def _batches(self, order: Tensor) -> list[Tensor]:
        return split(order, self.recipe.batch_size, drop_last=self.recipe.drop_last, least=2 * self.here.size)

    def _load(
        self, epoch: int, batches: list[Tensor], shares: list[Tensor], numbers: list[Tensor]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, int]]:
        # An epoch's samples and numbers lie on the device as a whole; `split` cuts them into batches without a copy.
        indices = torch.cat(shares).to(self.device)
        sizes = [len(share) for share in shares]
        parts = zip(indices.split(sizes), *(rows.split(sizes) for rows in numbers), strict=True)
        hand, names = self.hand, self.recipe.augment
        for batch, loaded, (samples, *drawn) in zip(batches, self._images(shares, indices, sizes), parts, strict=True):
            images, labels = to_float(loaded, self.device), self.labels[samples]
            # An attacker who poisons files stamps before the augmentation; one who controls the loop may stamp after it.
            if not hand.after_augmentation:
                images, labels = hand.stamp(images, labels, samples, epoch)
            images = apply(images, names, drawn)
            if hand.after_augmentation:
                images, labels = hand.stamp(images, labels, samples, epoch)
            yield samples, images, labels, len(batch)

    def _images(self, shares: list[Tensor], indices: Tensor, sizes: list[int]) -> Iterator[Tensor]:
        """Images of each share, uint8 [b, c, h, w]; from disk, the next ones are read while these are trained on."""
        if self.resident is not None:
            yield from (self.resident[samples] for samples in indices.split(sizes))
            return
        # One thread, so at most two batches are in memory and the disk is read in the order of the batches.
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(self.data.tensor, shares[0].numpy())
            for following in [*shares[1:], None]:
                images = ahead.result()
                if following is not None:
                    ahead = reader.submit(self.data.tensor, following.numpy())
                yield images


def _resident(data: ImageSet, device: torch.device) -> Tensor:
    """All images on the device, uint8 [n, c, h, w], copied in chunks so that the host never holds a second copy."""
    base, plain = data.base, data.overlay is None or not len(data.overlay.index)
    if device.type == "cpu" and plain and isinstance(base, np.ndarray) and base.flags.writeable:
        # In the host's memory already. What is mapped from disk read-only is no tensor.
        return torch.from_numpy(base).permute(0, 3, 1, 2)
    # Filled as [n, h, w, c], the layout on disk, and only viewed as [n, c, h, w].
    height, width, channels = data.base.shape[1:]
    images = torch.empty(len(data), height, width, channels, dtype=torch.uint8, device=device)
    for index in data.chunks():
        images[index[0] : index[-1] + 1] = torch.from_numpy(data.gather(index))
    return images.permute(0, 3, 1, 2)


def _memory(device: torch.device) -> int:
    """Memory that a resident data set is measured against, in bytes: the GPU's free memory, or 4 GiB of the host's."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 4 << 30
