"""Forward passes over whole sets, in evaluation mode and without gradients."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor, nn

from ..core.arrays import IntArray
from ..core.progress import progress
from ..data.features import Features, Rows
from ..data.imageset import ImageSet
from ..models.classifier import Classifier
from .device import autocast, pick_device, to_float

BATCH = 256  # images of 32 px


def batch_size(image_size: tuple[int, int], at_32: int) -> int:
    """Images per forward pass: `at_32` up to 32 px, and no more pixels than that for larger ones."""
    return max(1, min(at_32, at_32 * 32 * 32 // (image_size[0] * image_size[1])))


def frozen(model: Classifier, device: torch.device) -> nn.Module:
    """A copy for many passes: images to logits, in evaluation mode, on the device, without gradients of its weights.

    Batch norm in evaluation mode is a fixed affine map: folded into the convolutions, the same logits faster.
    """
    network: nn.Module = deepcopy(model).cpu().eval()
    if model.traceable:
        from torch.fx.experimental.optimization import fuse

        network = fuse(network)
    network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.requires_grad_(False)


def batches(
    data: ImageSet, at_32: int, *, device: torch.device, what: str, index: IntArray | None = None
) -> Iterator[tuple[IntArray, Tensor]]:
    """The samples `index` (all by default) batch by batch, with progress.

    Args:
        data: any images.
        at_32: images of 32 px per batch; fewer of larger ones (`batch_size`).
        device: where the images go.
        what: the name of the work.

    Yields:
        The samples int64 [b], and their images float32 [b, c, h, w] in [0, 1] on the device, channels_last.
    """
    index = np.arange(len(data)) if index is None else index
    step = batch_size(data.image_size, at_32)
    starts = range(0, len(index), step)
    for start in progress(starts, what=what, unit="batch", total=len(starts)):
        samples = index[start : start + step]
        yield samples, to_float(data.tensor(samples), device)


@torch.inference_mode()
def logits_of(model: Classifier, data: ImageSet, *, what: str = "logits") -> Tensor:
    """Logits float32 [n, classes] on the CPU."""
    device = pick_device()
    model.to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    logits = []
    for _, images in batches(data, BATCH, device=device, what=what):
        with autocast(device):
            logits.append(model(images).float().cpu())
    return torch.cat(logits) if logits else torch.empty(0)


def passes(model: Classifier, data: ImageSet, *, what: str = "features") -> Iterator[tuple[Rows, Rows]]:
    """One pass over all samples, batch by batch: logits float32 [b, classes] and penultimate features [b, d]."""
    device = pick_device()
    model.to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    for _, images in batches(data, BATCH, device=device, what=what):
        with torch.inference_mode(), autocast(device):
            features = model.features(images)
            logits = model.head(features)
        # Copied: the features of some networks are a view of a whole batch's tokens.
        yield logits.float().cpu().numpy(), features.float().cpu().numpy().copy()


def features_of(model: Classifier, data: ImageSet, *, what: str = "features") -> Features:
    """Logits and penultimate features of all samples, in memory; the stage `extract` keeps them on disk instead."""
    logits, features = zip(*passes(model, data, what=what), strict=True)
    return Features(np.concatenate(logits), np.concatenate(features))
