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
from .device import autocast, batch_size, pick_device, to_float
from .finite import check_rows

BATCH = 256  # images of 32 px


def frozen(model: Classifier, device: torch.device) -> nn.Module:
    """A copy for many passes, images to logits, on the device, in evaluation mode and with fixed weights.

    Batch norm in evaluation mode is a fixed affine map: folded into the convolutions, it gives the same logits faster.
    """
    # Folded on the CPU, so the folded weights are the same whatever the device.
    network: nn.Module = deepcopy(model).cpu().eval()
    if model.traceable:
        from torch.fx.experimental.optimization import fuse

        network = fuse(network)
    network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.requires_grad_(False)


def batches(
    data: ImageSet, at_32: int, *, device: torch.device, what: str, index: IntArray | None = None
) -> Iterator[tuple[IntArray, Tensor]]:
    """Samples batch by batch, with progress.

    Args:
        data: any images.
        at_32: images of 32 px per batch; fewer of larger ones (`batch_size`).
        device: device that the images go to.
        what: name of the work, for the progress bar.
        index: samples to take, int64 [n], by default all.

    Yields:
        Samples int64 [b], and their images float32 [b, c, h, w] in [0, 1] on the device, channels_last.
    """
    index = np.arange(len(data)) if index is None else index
    step = batch_size(data.image_size, at_32)
    starts = range(0, len(index), step)
    for start in progress(starts, what=what, unit="batch", total=len(starts)):
        samples = index[start : start + step]
        yield samples, to_float(data.tensor(samples), device)


def logits_of(model: Classifier, data: ImageSet, *, what: str = "logits") -> Tensor:
    """Logits of all samples, float32 [n, classes], on the CPU. Raises UserError where one is not finite."""
    # The network itself, not a `frozen` copy, which rounds differently: metrics are those of the network as saved.
    device = pick_device()
    # Outside inference mode: weights that are laid out anew in it could never be trained again.
    model.to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    logits = []
    for _, images in batches(data, BATCH, device=device, what=what):
        with torch.inference_mode(), autocast(device):
            logits.append(model(images).float().cpu())
    if not logits:
        return torch.empty(0)
    every = torch.cat(logits)
    check_rows(every, what)
    return every


def passes(model: Classifier, data: ImageSet, *, what: str = "features") -> Iterator[tuple[Rows, Rows]]:
    """One pass over all samples, batch by batch: logits float32 [b, classes] and penultimate features float32 [b, d].

    Raises:
        UserError: logits or features that are not finite.
    """
    device = pick_device()
    model.to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    for index, images in batches(data, BATCH, device=device, what=what):
        with torch.inference_mode(), autocast(device):
            # Head apart from body: the same logits as `model(images)`, with the features at hand.
            features = model.features(images)
            logits = model.head(features)
        check_rows(torch.cat([logits, features], 1).float().cpu(), f"{what} of samples {index[0]} to {index[-1]}")
        # Copied: the features of token networks are a view that would keep the tokens of the whole batch in memory.
        yield logits.float().cpu().numpy(), features.float().cpu().numpy().copy()


def features_of(model: Classifier, data: ImageSet, *, what: str = "features") -> Features:
    """Logits and penultimate features of all samples in memory; the stage `extract` keeps them on disk instead."""
    logits, features = zip(*passes(model, data, what=what), strict=True)
    return Features(np.concatenate(logits), np.concatenate(features))
