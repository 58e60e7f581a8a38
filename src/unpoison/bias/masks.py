"""Bias by Cognitive Distillation: the mean of the masks that keep one attribute's logit.

Huang et al. ("Distilling Cognitive Backdoor Patterns within an Image", ICLR 2023) put their masks to a second use: what a mask
keeps is what the model goes by, so that the masks of many images that have an attribute show, averaged, where it looks for it. A
place that no object stays at, as a mark in a corner, is a spurious one. How they score bias is not published, nor is the code of
that analysis: what is here is the mean mask, and of it the largest value, its place, and how far it stands out.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ..compute.device import pick_device
from ..compute.finite import check_finite
from ..compute.inference import batches, logits_of
from ..core.arrays import IntArray
from ..core.errors import ParameterError
from ..core.seeding import numpy_rng, torch_rng
from ..data.bias import AttributeMask
from ..data.imageset import ImageSet
from ..detection.cd import BATCH, distill, random_colours
from ..detection.passes import frozen_for
from ..models.classifier import Classifier
from .heads import OneHead, measured

Masks = NDArray[np.float32]


def attribute_masks(
    model: Classifier,
    data: ImageSet,
    names: tuple[str, ...],
    values: IntArray,
    *,
    shares: NDArray[np.float64],
    seed: int,
    images: int,
    steps: int,
    lr: float,
    gamma: float,
    beta: float,
) -> list[AttributeMask]:
    """For each attribute how well its head knows it, and the mean mask of images that have it and that the head knows.

    Args:
        model: network with an output for each attribute.
        data: images that it was not trained on, n of them.
        names: names of the attributes.
        values: 0 or 1, int64 [n, attributes].
        shares: share of the training samples that have each attribute, float64 [attributes].
        seed: seed of the images and of the colours.
        images: most images of an attribute.
        steps, lr, gamma, beta: as for `detection.cd.distill`.

    Raises:
        ParameterError: no image at all.
        UserError: logits or masks that are not finite.
    """
    if not len(data):
        raise ParameterError("reserve: 0 images given, allowed with bias.attributes: at least 1")
    logits = logits_of(model, data, what="bias: logits").numpy()
    found = []
    for head, name in enumerate(names):
        has, given = values[:, head], logits[:, head]
        # What keeps the logit of an image in which the attribute is not seen would say nothing of where it is seen.
        known = np.flatnonzero((has == 1) & (given > 0))
        chosen = np.sort(numpy_rng(seed, "bias/images", name).permutation(known)[:images])
        mask, mean = np.zeros(data.image_size, np.float32), np.zeros(data.base.shape[1:], np.uint8)
        if len(chosen):
            masks = masks_of(model, data, chosen, head, name, seed=seed, steps=steps, lr=lr, gamma=gamma, beta=beta)
            mask = masks.mean(0, dtype=np.float64).astype(np.float32)
            mean = np.rint(data.gather(chosen).mean(0)).astype(np.uint8)
        right = measured(given, has)
        found.append(
            AttributeMask(
                name, float(shares[head]), right.accuracy, right.balanced, int(has.sum()), len(chosen), mask, mean
            )
        )
    return found


def masks_of(
    model: Classifier,
    data: ImageSet,
    index: IntArray,
    head: int,
    name: str,
    *,
    seed: int,
    steps: int,
    lr: float,
    gamma: float,
    beta: float,
) -> Masks:
    """The masks that keep one attribute's logit, float32 [len(index), h, w] in (0, 1). Raises UserError where one is not finite."""
    device = pick_device()
    # To `frozen_for` a head is a classifier like any other.
    network = frozen_for(OneHead(model, head), data, device)  # type: ignore[arg-type]
    masks = []
    for samples, images in batches(data, BATCH, device=device, what=f"bias: {name}", index=index):
        colours = random_colours(
            steps, len(images), data.channels, torch_rng(seed, "bias/colours", name, int(samples[0]))
        )
        masks.append(distill(network, images, colours, lr=lr, gamma=gamma, beta=beta).masks[:, 0].cpu())
    every: Masks = torch.cat(masks).numpy()
    check_finite(f"bias: {name}", every, "masks")
    return every
