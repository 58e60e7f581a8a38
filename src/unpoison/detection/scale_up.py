"""SCALE-UP (Guo et al., "SCALE-UP: An Efficient Black-box Input-level Backdoor Detection via Analyzing Scaled Prediction
Consistency", ICLR 2023).

Multiply the pixels: a poisoned image keeps its label while it is scaled up, a clean one does not.

Published code: the authors' loop takes the factors 1 to 11 and so counts the image itself; a port takes the odd ones from 3:
https://github.com/JunfengGo/SCALE-UP
https://github.com/THUYimingLi/BackdoorBox (core/defenses/SCALE_UP.py)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import nn

from ..compute.device import autocast, pick_device
from ..compute.finite import check_finite
from ..compute.inference import batches, frozen
from ..core.arrays import IntArray, Pixels
from ..core.errors import ParameterError
from ..core.hyperparameters import Positive
from ..data.imageset import ImageSet
from ..data.scores import Scores
from .detector import Detector, Suspect

BATCH = 256  # images of 32 px
Standardise = Literal["none", "all", "class"]


def score(
    suspect: Suspect,
    *,
    seed: int = 0,
    factors: list[Positive] | tuple[Positive, ...] = (3.0, 5.0, 7.0, 9.0, 11.0),
    standardise: Standardise = "none",
    threshold: Positive = 0.5,
) -> Scores:
    """Share of the copies clip(factor * x, 0, 1) that get the label which the model gives to x itself.

    Args:
        seed: not used; nothing is drawn.
        factors: what the pixels are multiplied by, at least one number.
        standardise: whether a share is measured from the mean of trusted images, whose copies are to get their true label,
            in their standard deviations: of the images of that label (`class`, the paper's data-limited variant; of a label
            with fewer than two, of all), of `all`, as in public implementations, or not at all (`none`, data-free).
        threshold: score from which the rule flags; 0.5 in public implementations.
    """
    if not factors:
        raise ParameterError("factors: [] given, allowed: at least one number")
    if standardise != "none" and len(suspect.reserve) < 2:
        raise ParameterError(f"standardise: {standardise!r} given, allowed with fewer than 2 trusted images: none")
    device = pick_device()
    network, labels = frozen(suspect.model, device), suspect.predicted
    values = _consistency(network, suspect.data, labels, factors, device)
    if standardise != "none":
        given = suspect.reserve.labels
        trusted = _consistency(network, suspect.reserve, given, factors, device)
        for label in np.unique(labels):
            alike = trusted[given == label] if standardise == "class" else trusted
            alike = alike if len(alike) > 1 else trusted
            # Where all have one share the deviation is 0: one copy of one image is the least that could have been seen.
            deviation = max(alike.std(ddof=1), 1 / len(factors) / len(alike))
            values[labels == label] = (values[labels == label] - alike.mean()) / deviation
    rule = f"a {'share' if standardise == 'none' else 'standardised share'} of {threshold:g} or more"
    return Scores(values, forward_passes=len(factors), flagged=values >= threshold, rule=rule)


@torch.inference_mode()
def _consistency(
    network: nn.Module, data: ImageSet, labels: IntArray, factors: Sequence[float], device: torch.device
) -> Pixels:
    """Share of each image's copies that get its label, float32 [n]."""
    shares = np.empty(len(data), np.float32)
    for index, images in batches(data, BATCH, device=device, what="scale_up"):
        kept = np.zeros(len(index))
        for factor in factors:
            with autocast(device):
                logits = network((images * factor).clamp_(0, 1)).float().cpu().numpy()
            check_finite("scale_up", logits, "predictions")
            kept += logits.argmax(1) == labels[index]
        shares[index] = kept / len(factors)
    return shares


def _needs_trusted(*, standardise: Standardise = "none", **others: object) -> int:
    return 0 if standardise == "none" else 2


DETECTOR = Detector(score=score, needs_trusted=_needs_trusted, single_inputs=True)
