"""Forward passes over whole sets, in evaluation mode and without gradients."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor, nn

from ..core.progress import progress
from ..data.imageset import ImageSet, IntArray
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


@torch.inference_mode()
def logits_of(model: Classifier, data: ImageSet, *, what: str = "logits") -> Tensor:
    """Logits float32 [n, classes] on the CPU."""
    return _map(model, data, np.arange(len(data)), model.forward, what)


@torch.inference_mode()
def features_of(model: Classifier, data: ImageSet, index: IntArray | None = None, *, what: str = "features") -> Tensor:
    """Penultimate features float32 [len(index), d] on the CPU, of all samples by default: for a large set, too many."""
    return _map(model, data, np.arange(len(data)) if index is None else index, model.features, what)


def _map(model: Classifier, data: ImageSet, index: IntArray, function: Callable[[Tensor], Tensor], what: str) -> Tensor:
    device = pick_device()
    model.to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    found, step = torch.empty(0), batch_size(data.image_size, BATCH)
    starts = range(0, len(index), step)
    for start in progress(starts, what=what, unit="batch", total=len(starts)):
        images = to_float(data.tensor(index[start : start + step]), device)
        with autocast(device):
            each = function(images).float().cpu()
        # Copied, not kept: features can be a view of a whole batch's tokens.
        found = found if start else torch.empty(len(index), each.shape[1])
        found[start : start + step] = each
    return found
