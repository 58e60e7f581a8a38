"""STRIP (Gao et al., "STRIP: A Defence Against Trojan Attacks on Deep Neural Networks", ACSAC 2019).

Superimpose other images: a trigger keeps its grip, so the prediction of a poisoned image stays certain.
"""

from __future__ import annotations

import numpy as np
import torch

from ..compute.device import autocast, pick_device, to_float
from ..compute.inference import batch_size, frozen
from ..core.errors import UserError
from ..core.hyperparameters import Count, Positive
from ..core.progress import progress
from ..core.seeding import numpy_rng
from ..data.imageset import ImageSet
from ..data.scores import Scores
from ..models.classifier import Classifier

PASS = 512  # mixed images of 32 px per forward pass


@torch.inference_mode()
def score(
    model: Classifier,
    data: ImageSet,
    reserve: ImageSet,
    *,
    seed: int = 0,
    overlays: Count = 100,
    weight: Positive = 1.0,
) -> Scores:
    """Minus the mean entropy (nats) of the predictions on clamp(x + weight * overlay, 0, 1): a low entropy is suspicious.

    Args:
        model: the suspect classifier.
        data: the suspect training set.
        reserve: trusted images; the overlays are drawn from it, as in the paper (clean holdout).
        seed: of the overlays, drawn once, the same for all samples.
        overlays: how many (100 in the paper); no more than the reserve has.
        weight: of the overlay (1 in the public implementations).
    """
    if overlays > len(reserve):
        raise UserError(f"detect.strip.overlays: {overlays} given, allowed: 1 to {len(reserve)}, the trusted reserve")
    device = pick_device()
    network = frozen(model, device)
    drawn = numpy_rng(seed, "strip/overlays").choice(len(reserve), overlays, replace=False)
    others = to_float(reserve.tensor(drawn), device) * weight
    chunk = max(1, batch_size(data.image_size, PASS) // overlays)
    entropy = np.empty(len(data), np.float32)
    starts = range(0, len(data), chunk)
    for start in progress(starts, what="strip", unit="batch", total=len(starts)):
        index = np.arange(start, min(start + chunk, len(data)))
        images = to_float(data.tensor(index), device)
        mixed = (images[:, None] + others[None]).clamp_(0, 1).flatten(0, 1)
        with autocast(device):
            logits = network(mixed.contiguous(memory_format=torch.channels_last))
        # log_softmax keeps p * log p finite where a probability underflows, which the public code turns into NaN.
        log_p = logits.float().log_softmax(1)
        each = -(log_p.exp() * log_p).sum(1)
        entropy[index] = each.view(len(index), overlays).mean(1).cpu().numpy()
    return Scores(-entropy, forward_passes=overlays)
