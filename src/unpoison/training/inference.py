"""Forward passes over whole sets, in evaluation mode and without gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..data.imageset import ImageSet
from ..models.classifier import Classifier
from .device import autocast, pick_device, to_float
from .progress import progress

BATCH = 256


@torch.inference_mode()
def logits_of(model: Classifier, data: ImageSet, *, what: str = "logits") -> Tensor:
    """Logits float32 [n, classes] on the CPU."""
    return _map(model, data, model.forward, what)


@torch.inference_mode()
def features_of(model: Classifier, data: ImageSet, *, what: str = "features") -> Tensor:
    """Penultimate features float32 [n, d] on the CPU."""
    return _map(model, data, model.features, what)


def _map(model: Classifier, data: ImageSet, function: Callable[[Tensor], Tensor], what: str) -> Tensor:
    device = pick_device()
    model.to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    parts = []
    starts = range(0, len(data), BATCH)
    for start in progress(starts, what=what, unit="batch", total=len(starts)):
        images = to_float(data.tensor(np.arange(start, min(start + BATCH, len(data)))), device)
        with autocast(device):
            parts.append(function(images).float().cpu())
    return torch.cat(parts)
