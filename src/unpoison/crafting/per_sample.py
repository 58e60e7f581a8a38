"""Triggers whose training images are optimised one by one: the change of each is kept, and looked up by its key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..compute.device import pick_device, to_float
from ..compute.inference import batch_size
from ..core.arrays import IntArray
from ..poisoning.trigger import Trigger
from .context import Context

BATCH = 128  # images of 32 px

Noise = NDArray[np.int16]
Perturb = Callable[[IntArray, Tensor], Tensor]
"""(keys [b], their clean images float32 [b, c, h, w] in [0, 1] on the device) -> changed images, the same"""


@dataclass(frozen=True, kw_only=True)
class PerSample(Trigger):
    """Holds the change of every training image that is stamped.

    Attributes:
        keys: int64 [k], sorted: the samples' indices in the training set.
        noise: int16 [k, c, h, w]: changed minus clean image, in units of 1/255.
    """

    per_sample: ClassVar[bool] = True

    keys: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    noise: Noise = field(default_factory=lambda: np.zeros((0, 1, 1, 1), np.int16))

    def changed(self, images: Tensor, keys: IntArray) -> Tensor:
        """The training images `keys` with their noise. Raises ValueError for a sample that was not optimised."""
        missing = np.setdiff1d(keys, self.keys)
        if len(missing):
            raise ValueError(f"training sample {missing[0]} was not optimised: `optimise` makes the trigger for some")
        return images + torch.from_numpy(self.noise[np.searchsorted(self.keys, keys)]).to(images)


def noise_of(
    context: Context,
    kind: str,
    determined_by: dict[str, Any],
    keys: IntArray,
    prepare: Callable[[], Perturb],
) -> Noise:
    """The noise of the training samples `keys`, of which those in the store are not made again.

    Args:
        context: data and store.
        kind, determined_by: as for `ContentStore.entries`.
        keys: int64 [k].
        prepare: gets ready (a network, say) and gives the function that changes images; called only if one is missing.

    Returns:
        int16 [k, c, h, w], of the changed images rounded to 8 bits.
    """
    height, width, channels = context.shape
    if not len(keys):
        return np.zeros((0, channels, height, width), np.int16)
    size = batch_size(context.train.image_size, BATCH)
    perturb = cache(prepare)

    def make(positions: IntArray) -> Noise:
        # Always the same shape, filled with repeats: kernels chosen by the batch's size differ in the last bit, and a
        # sign makes a whole step of that.
        filled = np.resize(keys[positions], size)
        images = context.train.tensor(filled)
        changed = perturb()(filled, to_float(images, pick_device()))
        noise: Noise = (changed.cpu() * 255).round().short().sub(images.short()).numpy()[: len(positions)]
        return noise

    names = np.ascontiguousarray(keys, "<i8").view(np.uint8).reshape(len(keys), 8)
    entries = context.store.entries(kind, determined_by, names, make, batch=size)
    print(f"{kind}: {entries.made} made, {entries.reused} taken from the store", flush=True)
    return entries.gather()
