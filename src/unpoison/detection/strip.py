"""STRIP (Gao et al., "STRIP: A Defence Against Trojan Attacks on Deep Neural Networks", ACSAC 2019).

Superimpose other images: a trigger keeps its grip, so the prediction for a poisoned image stays certain.

Published code of a port, which draws the overlays from the suspect set itself:
https://github.com/HanxunH/CognitiveDistillation/blob/6aba6f9/detection/strip.py
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Annotated

import numpy as np
import torch
from annotated_types import Gt, Lt
from torch import Tensor, nn

from ..compute.device import autocast, pick_device, to_float
from ..compute.finite import check_finite
from ..compute.inference import batches
from ..core.arrays import Pixels
from ..core.errors import ParameterError
from ..core.hyperparameters import Count, Positive
from ..core.seeding import numpy_rng
from ..data.imageset import ImageSet
from ..data.scores import Scores
from .detector import Detector, Suspect
from .passes import frozen_for

PASS = 512  # mixed images of 32 px per forward pass
TRUSTED = 200
"""Most trusted images that set the threshold."""
Rate = Annotated[float, Gt(0), Lt(1)]


@torch.inference_mode()
def score(
    suspect: Suspect,
    *,
    seed: int = 0,
    overlays: Count = 100,
    weight: Positive = 1.0,
    frr: Rate = 0.01,
) -> Scores:
    """Minus the mean entropy (nats) of the predictions on clamp(x + weight * overlay, 0, 1): a low entropy is suspicious.

    Args:
        seed: seed for the choice of overlays, the same ones for all samples.
        overlays: number of overlays, at most the size of the trusted reserve. 100 in the paper.
        weight: weight of the overlay in the sum. 1 in public implementations.
        frr: false rejection rate of the rule: the share of clean images that it may flag. 0.01 in the paper.

    The rule (section 4 of the paper): entropies of trusted images are taken as normal, and what lies below that share of
    them is flagged. The trusted images are those that are no overlays, `TRUSTED` at most.
    """
    data, reserve = suspect.data, suspect.reserve
    if overlays > len(reserve):
        raise ParameterError(f"overlays: {overlays} given, allowed: 1 to {len(reserve)}, the trusted reserve")
    device = pick_device()
    network = frozen_for(suspect.model, data, device)
    # One set of overlays for all samples, on the device throughout: samples then differ by themselves, not by their draw.
    drawn = numpy_rng(seed, "strip/overlays").choice(len(reserve), overlays, replace=False)
    others = to_float(reserve.tensor(drawn), device) * weight
    entropy = _entropies(network, data, others, device)
    # Images that are overlays themselves would be mixed with themselves: they set no threshold.
    free = numpy_rng(seed, "strip/trusted").permutation(np.setdiff1d(np.arange(len(reserve)), drawn))
    rest = reserve.subset(np.sort(free[:TRUSTED]))
    flagged, rule = None, "none: every trusted image is an overlay, fewer than two are left for a threshold"
    if len(rest) > 1:
        trusted = _entropies(network, rest, others, device)
        flagged = entropy < NormalDist(float(trusted.mean()), max(float(trusted.std()), 1e-6)).inv_cdf(frr)
        rule = f"entropy below that of {frr:.0%} of trusted images, {len(rest)} of which were measured"
    return Scores(-entropy, forward_passes=overlays, flagged=flagged, rule=rule)


def _entropies(network: nn.Module, data: ImageSet, others: Tensor, device: torch.device) -> Pixels:
    """Mean entropy of each image's mixtures with the weighted overlays [k, c, h, w], float32 [n]."""
    overlays = len(others)
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
    return entropy


def _needs_trusted(*, overlays: int = 100, weight: float = 1.0, frr: float = 0.01) -> int:
    return overlays


DETECTOR = Detector(score=score, needs_trusted=_needs_trusted, single_inputs=True)
