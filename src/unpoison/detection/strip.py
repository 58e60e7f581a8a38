"""STRIP (Gao et al., "STRIP: A Defence Against Trojan Attacks on Deep Neural Networks", ACSAC 2019).

Superimpose other images: a trigger keeps its grip, so the prediction for a poisoned image stays certain.

Published code of a port, which draws the overlays from the suspect set itself:
https://github.com/HanxunH/CognitiveDistillation/blob/6aba6f9/detection/strip.py
"""

from __future__ import annotations

import numpy as np
import torch

from ..compute.device import autocast, pick_device, to_float
from ..compute.inference import batches, frozen
from ..core.errors import ParameterError
from ..core.hyperparameters import Count, Positive
from ..core.seeding import numpy_rng
from ..data.features import Features
from ..data.imageset import ImageSet
from ..data.scores import Scores
from ..models.classifier import Classifier
from .detector import Detector, check_finite

PASS = 512  # mixed images of 32 px per forward pass


@torch.inference_mode()
def score(
    model: Classifier,
    data: ImageSet,
    reserve: ImageSet,
    features: Features,
    *,
    seed: int = 0,
    overlays: Count = 100,
    weight: Positive = 1.0,
) -> Scores:
    """Minus the mean entropy (nats) of the predictions on clamp(x + weight * overlay, 0, 1): a low entropy is suspicious.

    Args:
        model: the suspect classifier, left as it was.
        data: the suspect training set.
        reserve: trusted images, from which the overlays are drawn, as in the paper.
        features: not used.
        seed: seed for the choice of overlays, the same ones for all samples.
        overlays: number of overlays, at most the size of the trusted reserve. 100 in the paper.
        weight: weight of the overlay in the sum. 1 in public implementations.
    """
    if overlays > len(reserve):
        raise ParameterError(f"overlays: {overlays} given, allowed: 1 to {len(reserve)}, the trusted reserve")
    device = pick_device()
    network = frozen(model, device)
    # One set of overlays for all samples, on the device throughout: samples then differ by themselves, not by their draw.
    drawn = numpy_rng(seed, "strip/overlays").choice(len(reserve), overlays, replace=False)
    others = to_float(reserve.tensor(drawn), device) * weight
    entropy = np.empty(len(data), np.float32)
    # A forward pass takes about `PASS` mixed images, as many of each sample as there are overlays.
    for index, images in batches(data, max(1, PASS // overlays), device=device, what="strip"):
        # [b, 1, ...] with [1, overlays, ...]: every pair by broadcasting, then one long batch.
        mixed = (images[:, None] + others[None]).clamp_(0, 1).flatten(0, 1)
        with autocast(device):
            logits = network(mixed.contiguous(memory_format=torch.channels_last))
        # log_softmax keeps p * log p finite where a probability underflows; the published code gives NaN there.
        log_p = logits.float().log_softmax(1)
        mixed_entropy = -(log_p.exp() * log_p).sum(1)
        entropy[index] = mixed_entropy.view(len(index), overlays).mean(1).cpu().numpy()
    check_finite("strip", entropy, "predictions")
    return Scores(-entropy, forward_passes=overlays)


def _needs_trusted(*, overlays: int = 100, weight: float = 1.0) -> int:
    return overlays


DETECTOR = Detector(score=score, needs_trusted=_needs_trusted)
