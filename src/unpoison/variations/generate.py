"""Variations of a whole data set; those generated before come from the store.

A variation is found by its image's bytes and its sample key, and by what all of them depend on: the prior, the sampler's
settings, the seed and the sampler's code. A change of the attack or its rate therefore generates only the images that
changed.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from ..compute.device import pick_device
from ..core.arrays import Images, IntArray
from ..core.code import digest_of
from ..core.content_store import ContentStore, Entries
from ..core.errors import UserError
from ..data.imageset import ImageSet
from .prior import Prior
from .sampling import BATCH, SamplerSettings, check_strength, vary

# The files that say how an image is drawn, without all that they import: an edit of a progress bar would otherwise generate
# anew what takes days with a large model.
_CODE = ("sampling.py", "schedule.py", "unet.py", "colour.py")


def generate(data: ImageSet, prior: Prior, settings: SamplerSettings, *, seed: int, store: ContentStore) -> Entries:
    """Variations of every sample of `data`, uint8 [num_variations, h, w, c] each, by the sample's index.

    Args:
        data: images to vary; a sample's key is its index.
        prior: diffusion prior, moved to the device.
        settings: settings of the sampler.
        seed: seed for the noise.
        store: store of the images that there are.
    """
    if prior.unet.in_channels != data.channels * prior.unshuffle**2:
        raise UserError(
            f"prior: made for images of {prior.unet.in_channels // prior.unshuffle**2} channels, the data have "
            f"{data.channels}; run train_prior again"
        )
    check_strength(prior, settings)
    code = {name: digest_of(Path(__file__).parent / name) for name in _CODE}
    determined_by = {"prior": prior.digest, "sampler": settings.as_json(), "seed": seed, "code": code}

    def make(positions: IntArray) -> Images:
        # Here and not before: other processes that make some have a device of their own.
        device = pick_device()
        prior.unet.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        batch = data.tensor(positions)
        varied = vary(prior, batch, positions.tolist(), settings, seed=seed, device=device)
        # Channels last, the layout of every image on disk.
        return varied.permute(0, 1, 3, 4, 2).numpy()

    shape = (settings.num_variations, *data.image_size, data.channels)
    return store.entries("variations", determined_by, names_of(data), make, batch=BATCH, shape=shape, dtype=np.uint8)


def names_of(data: ImageSet) -> Images:
    """Names of the samples' variations in the store: SHA-256 of an image's bytes and its index, uint8 [n, 32]."""
    # With the index, by which the noise is drawn: equal images get variations of their own.
    digests = [
        hashlib.sha256(image.tobytes() + int(key).to_bytes(8, "little")).digest()
        for keys in data.chunks()
        for key, image in zip(keys, data.gather(keys), strict=True)
    ]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(len(data), 32)
