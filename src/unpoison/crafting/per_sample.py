"""Triggers whose training images are optimised one by one: every image's change is kept and looked up by its key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..compute.device import batch_size, pick_device, to_float
from ..core.arrays import IntArray
from ..poisoning.trigger import Trigger
from .context import Context

BATCH = 128
"""Images of 32 pixels that are optimised together; larger images are fewer."""

Noise = NDArray[np.int16]
Perturb = Callable[[IntArray, Tensor], Tensor]
"""From keys [b] and their clean images, float32 [b, c, h, w] in [0, 1] on the device, to the changed images, likewise."""


@dataclass(frozen=True, kw_only=True)
class PerSample(Trigger):
    """A trigger with a change of its own for every training image that is stamped.

    Attributes:
        keys: indices of the samples in the training set, sorted, int64 [k].
        noise: changed minus clean image in units of 1/255, int16 [k, c, h, w].
    """

    per_sample: ClassVar[bool] = True

    keys: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    noise: Noise = field(default_factory=lambda: np.zeros((0, 1, 1, 1), np.int16))

    def changed(self, images: Tensor, keys: IntArray) -> Tensor:
        """The training images `keys` with their noise. Raises ValueError for a sample that was not optimised."""
        # `searchsorted` gives a place for every key; for one that is not there it would be another image's noise.
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
    """The noise of the training samples `keys`: read from the store where it is there, made otherwise.

    Args:
        context: data and store of the attacker.
        kind, determined_by: as for `ContentStore.entries`.
        keys: int64 [k].
        prepare: function that makes ready (trains a network, say) and returns the function that changes images; called
            only if an image's noise is missing.

    Returns:
        Noise of the changed images rounded to 8 bits, int16 [k, c, h, w].
    """
    height, width, channels = context.shape
    if not len(keys):
        return np.zeros((0, channels, height, width), np.int16)
    size = batch_size(context.train.image_size, BATCH)
    # Cached, so that the first missing batch prepares and all others use the same network.
    perturb = cache(prepare)

    def make(positions: IntArray) -> Noise:
        # Always the same shape, filled with repeats: kernels chosen by the batch's size differ in the last bit, and a
        # sign makes a whole step of that.
        filled = np.resize(keys[positions], size)
        images = context.train.tensor(filled)
        changed = perturb()(filled, to_float(images, pick_device()))
        # Whole levels: the poisoned image is 8 bits, and the sum of image and noise must be exactly the changed image.
        noise: Noise = (changed.cpu() * 255).round().short().sub(images.short()).numpy()[: len(positions)]
        return noise

    # An entry's name is its key's eight bytes: the data set is in `determined_by`, and the key says which image.
    names = np.ascontiguousarray(keys, "<i8").view(np.uint8).reshape(len(keys), 8)
    entries = context.store.entries(
        kind, determined_by, names, make, batch=size, shape=(channels, height, width), dtype=np.int16
    )
    print(f"{kind}: {entries.made} made, {entries.reused} taken from the store", flush=True)
    return entries.gather()
