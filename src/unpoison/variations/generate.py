"""Variations of a whole data set; those generated before come from the store.

A variation is found by its image's bytes and its sample key, and by what all of them depend on: the method and its parameters, the
model, the seed, the sampler's code, libraries and precision. A change of the attack or its rate therefore generates only the images
that changed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..compute.device import pick_device
from ..core.arrays import Images, IntArray
from ..core.code import digest_of
from ..core.content_store import ContentStore, Entries
from ..core.errors import UserError
from ..data.imageset import ImageSet
from . import VARIATIONS
from .pipelines import Pipeline
from .prior import Prior
from .sampling import BATCH, Settings, check_strength, vary

# The files that say how an image is drawn, without all that they import: an edit of a progress bar would otherwise generate
# anew what takes days with a large model.
_CODE = ("sampling.py", "denoising.py", "colour.py", "../core/seeding.py", "../compute/device.py")
_OF_PRIOR = ("schedule.py", "unet.py", "prior.py", "similarity.py")
_OF_PIPELINE = ("pipelines.py",)
# Other versions of these may draw other images.
_LIBRARIES = ("torch", "diffusers")
_OF_PIPELINE_LIBRARIES = ("transformers",)


def generate(
    data: ImageSet,
    name: str,
    model: Prior | Pipeline,
    settings: Settings,
    parameters: Mapping[str, Any],
    *,
    seed: int,
    store: ContentStore,
) -> Entries:
    """Variations of every sample of `data`, uint8 [num_variations, h, w, c] each, by the sample's index.

    Args:
        data: images to vary; a sample's key is its index.
        name: the method's, out of `VARIATIONS`.
        model: what the method works with: a prior, moved to the device, or a pipeline, loaded there.
        settings: settings of all methods.
        parameters: the method's own.
        seed: seed for the noise.
        store: store of the images that there are.
    """
    method, files, libraries = VARIATIONS[name], [*_CODE, f"{name}.py"], [*_LIBRARIES]
    if isinstance(model, Prior):
        if model.unet.in_channels != data.channels * model.unshuffle**2:
            raise UserError(
                f"prior: made for images of {model.unet.in_channels // model.unshuffle**2} channels, the data have "
                f"{data.channels}; run train_prior again"
            )
        check_strength(model.max_strength, parameters)
        files += _OF_PRIOR
    else:
        files += _OF_PIPELINE
        libraries += _OF_PIPELINE_LIBRARIES
    determined_by = {
        "method": name,
        "model": model.digest,
        "settings": settings.as_json(),
        # Where a model lies is not what it is.
        "parameters": {key: value for key, value in parameters.items() if key not in ("model", "revision")},
        "seed": seed,
        "code": {file: digest_of(Path(__file__).parent / file) for file in files},
        "libraries": {library: version(library) for library in libraries},
        # As it was asked for: workers elsewhere find their own devices.
        "precision": os.environ.get("UNPOISON_PRECISION", "auto"),
    }

    def make(positions: IntArray) -> Images:
        # Here and not before: other processes that make some have a device of their own.
        device = pick_device()
        if isinstance(model, Prior):
            model.unet.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        keys = positions.tolist()
        varied = vary(method, model, data.tensor(positions), keys, settings, parameters, seed=seed, device=device)
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
