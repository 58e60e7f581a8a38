"""IBD-PSC (Hou et al., "IBD-PSC: Input-level Backdoor Detection via Parameter-oriented Scaling Consistency", ICML 2024).

Amplify batch norm in the last layers: the model stays sure of a poisoned image and forgets a clean one.

Published code, which amplifies one layer more in each model than equation 4 says, as is done here:
https://github.com/THUYimingLi/BackdoorBox (core/defenses/IBD_PSC.py)
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import torch
from torch import nn

from ..compute.device import autocast, pick_device
from ..compute.finite import check_finite
from ..compute.inference import batches, frozen
from ..core.arrays import Mask, Pixels
from ..core.errors import ParameterError
from ..core.hyperparameters import Count, Fraction, Positive
from ..data.imageset import ImageSet
from ..data.scores import Scores
from ..models.classifier import Classifier
from .detector import Detector, Suspect

BATCH = 256  # images of 32 px
LEAST = 20
"""Fewest trusted images that an error is measured on."""
SCALES = (1.5, 2.0, 3.0, 5.0, 8.0)
"""Factors that are tried, the published one first."""


def score(
    suspect: Suspect,
    *,
    seed: int = 0,
    models: Count = 5,
    scale: Positive | None = None,
    error: Fraction = 0.6,
    threshold: Fraction = 0.9,
) -> Scores:
    """Mean probability, over amplified models, of the label that the model as it is gives to a sample.

    Args:
        seed: not used; nothing is drawn.
        models: number of amplified models, each with one layer more than the one before.
        scale: factor of the weights and biases of amplified batch norms; null: 1.5, as published, or where that does not
            confuse the model enough, the first of 2, 3, 5 and 8 that does, which is this project's.
        error: share of wrong trusted images above which enough layers are amplified: from there on the models count. Where
            no factor comes to it, all layers are amplified by the one that confuses most, and there is no rule.
        threshold: score from which the rule flags.
    """
    if len(suspect.reserve) < LEAST:
        raise ParameterError(
            f"ibd_psc: {len(suspect.reserve)} images given, allowed: at least {LEAST} in the trusted reserve"
        )
    device = pick_device()
    layers, tried = len(_norms(suspect.model)), {}
    for chosen in (scale,) if scale else SCALES:
        start, tried[chosen] = first_layers(suspect, chosen, error, device)
        if start is not None:
            break
    else:
        chosen, start = max(tried, key=lambda factor: tried[factor]), layers
    # A network that ends before has fewer models than asked for, the last one amplified throughout.
    counts = range(start + 1, min(start + models, layers) + 1) or range(layers, layers + 1)
    labels, total = suspect.predicted, np.zeros(len(suspect.data), np.float32)
    for count in counts:
        network = frozen(amplified(suspect.model, count, chosen), device)
        total += _probabilities(network, suspect.data, device)[np.arange(len(labels)), labels]
    values = (total / len(counts)).astype(np.float32)
    rule = (
        f"a mean probability of {threshold:g} or more over models with {counts[0]} to {counts[-1]} layers amplified by "
        f"{chosen:g}"
    )
    flagged: Mask | None = values >= threshold
    if tried[chosen] <= error:
        rule = (
            f"none: amplifying all {layers} layers by {chosen:g} makes {tried[chosen]:.0%} of the trusted images wrong"
        )
        flagged = None
    return Scores(values, forward_passes=len(counts), flagged=flagged, rule=rule)


def first_layers(suspect: Suspect, scale: float, error: float, device: torch.device) -> tuple[int | None, float]:
    """The fewest amplified layers, counted from the last, with which more than `error` of the trusted images are wrong.

    Returns:
        Their number, None where even all of them are not enough; and the share of wrong images with them.

    Raises:
        ParameterError: a network without batch norm.
    """
    layers = len(_norms(suspect.model))
    if not layers:
        name = suspect.model.description["name"]
        raise ParameterError(f"ibd_psc: network {name} without batch norm given, allowed: networks with it")
    # One copy whose layers are amplified one after the other, from the last: a folded copy for each would take longer.
    network = deepcopy(suspect.model).to(device).eval()
    norms = _norms(network)
    for count, norm in enumerate(reversed(norms), 1):
        _amplify(norm, scale)
        wrong = _probabilities(network, suspect.reserve, device).argmax(1) != suspect.reserve.labels
        if wrong.mean() > error:
            return count, float(wrong.mean())
    return None, float(wrong.mean())


def amplified(model: Classifier, count: int, scale: float) -> Classifier:
    """A copy with weights and biases of the last `count` batch norms multiplied, in the order in which modules are built."""
    copy = deepcopy(model)
    norms = _norms(copy)
    for norm in norms[len(norms) - count :]:
        _amplify(norm, scale)
    return copy


def _norms(model: Classifier) -> list[nn.BatchNorm2d]:
    """The batch norms with weights of their own."""
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d) and module.affine]


@torch.no_grad()
def _amplify(norm: nn.BatchNorm2d, scale: float) -> None:
    norm.weight.mul_(scale)
    norm.bias.mul_(scale)


@torch.inference_mode()
def _probabilities(network: nn.Module, data: ImageSet, device: torch.device) -> Pixels:
    """Probabilities of all images, float32 [n, classes]."""
    rows = []
    for _, images in batches(data, BATCH, device=device, what="ibd_psc"):
        with autocast(device):
            logits = network(images).float()
        rows.append(logits.softmax(1).cpu().numpy())
        check_finite("ibd_psc", rows[-1], "predictions")
    return np.concatenate(rows)


def _needs_trusted(**own: object) -> int:
    return LEAST


DETECTOR = Detector(score=score, needs_trusted=_needs_trusted, single_inputs=True)
