"""STRIP for texts (Gao et al., "Design and Evaluation of a Multi-Domain Trojan Detection Method on Deep Neural Networks", 2019).

As STRIP mixes images: words of a text are replaced with words of trusted ones, and a trigger that is left keeps the prediction
certain.

Differs from the paper (STRIP-ViTA): there the most telling words of the other texts (by TF-IDF) take the place of words
drawn anew for each copy; here it is the word at the same place of the other text, at places that are drawn once for all texts, so
that a text's score does not depend on the others beside it.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Annotated

import numpy as np
import torch
from annotated_types import Gt, Le, Lt
from numpy.typing import NDArray
from torch import nn

from ..compute.device import autocast, pick_device, to_float
from ..compute.finite import check_finite
from ..compute.inference import frozen
from ..core.arrays import IntArray, Mask
from ..core.errors import ParameterError
from ..core.hyperparameters import Count
from ..core.progress import progress
from ..core.seeding import numpy_rng
from ..data.scores import Scores
from ..data.texts import PAD, as_images, ids_of, lengths
from .detector import Detector, Suspect

PASS = 512  # mixed texts per forward pass
TRUSTED = 200
"""Most trusted texts that set the threshold."""
Rate = Annotated[float, Gt(0), Lt(1)]
Share = Annotated[float, Gt(0), Le(1)]
Entropies = NDArray[np.float32]


def score(suspect: Suspect, *, seed: int = 0, overlays: Count = 20, share: Share = 0.5, frr: Rate = 0.01) -> Scores:
    """Minus the mean entropy (nats) of the predictions on a text with words of trusted texts in it: a low entropy is suspicious.

    Args:
        seed: seed for the choice of the trusted texts and of the places.
        overlays: number of trusted texts, at most the size of the reserve. 20: this project's own.
        share: share of the places that are replaced, drawn for each of the trusted texts. 0.5: this project's own.
        frr: false rejection rate of the rule: the share of clean texts that it may flag. 0.01 in STRIP's paper.

    The rule is STRIP's: entropies of trusted texts that are no overlays, `TRUSTED` at most, are taken as normal.
    """
    data, reserve = suspect.data, suspect.reserve
    if overlays > len(reserve):
        raise ParameterError(f"overlays: {overlays} given, allowed: 1 to {len(reserve)}, the trusted reserve")
    device = pick_device()
    network = frozen(suspect.model, device)
    trusted = ids_of(reserve.gather(np.arange(len(reserve))))
    drawn = numpy_rng(seed, "strip_text/overlays").choice(len(reserve), overlays, replace=False)
    places = numpy_rng(seed, "strip_text/places").random((overlays, trusted.shape[1])) < share
    entropy = np.empty(len(data), np.float32)
    step = max(1, PASS // overlays)
    for start in progress(range(0, len(data), step), what="strip_text", unit="batch", total=-(-len(data) // step)):
        index = np.arange(start, min(start + step, len(data)))
        entropy[index] = _entropies(network, ids_of(data.gather(index)), trusted[drawn], places, device)
    free = numpy_rng(seed, "strip_text/trusted").permutation(np.setdiff1d(np.arange(len(reserve)), drawn))
    rest = np.sort(free[:TRUSTED])
    flagged, rule = None, "none: every trusted text is an overlay, fewer than two are left for a threshold"
    if len(rest) > 1:
        parts = [
            _entropies(network, trusted[rest[at : at + step]], trusted[drawn], places, device)
            for at in range(0, len(rest), step)
        ]
        known = np.concatenate(parts)
        flagged = entropy < NormalDist(float(known.mean()), max(float(known.std()), 1e-6)).inv_cdf(frr)
        rule = f"entropy below that of {frr:.0%} of trusted texts, {len(rest)} of which were measured"
    return Scores(-entropy, forward_passes=overlays, flagged=flagged, rule=rule)


def mixed(texts: IntArray, others: IntArray, places: Mask) -> IntArray:
    """Every text with words of every other one in their place, int64 [n, k, length].

    Args:
        texts: ids, int64 [n, length].
        others: ids of the other texts, int64 [k, length]; those shorter than a place are gone through again. One without a word
            changes nothing.
        places: places that are replaced, for each of the others, bool [k, length]; only those that have a word are.
    """
    count = lengths(others)[:, None]
    at = np.arange(others.shape[1]) % count.clip(min=1)
    around = np.take_along_axis(others, at, 1)
    chosen = (places & (count > 0))[None] & (texts != PAD)[:, None]
    found: IntArray = np.where(chosen, around[None], texts[:, None])
    return found


@torch.inference_mode()
def _entropies(network: nn.Module, texts: IntArray, others: IntArray, places: Mask, device: torch.device) -> Entropies:
    """Mean entropy of the predictions on each text's mixtures, float32 [n]."""
    copies = mixed(texts, others, places).reshape(-1, texts.shape[1])
    images = to_float(torch.from_numpy(as_images(copies)).permute(0, 3, 1, 2), device)
    with autocast(device):
        logits = network(images)
    log_p = logits.float().log_softmax(1)
    entropy: Entropies = -(log_p.exp() * log_p).sum(1).view(len(texts), len(others)).mean(1).cpu().numpy()
    check_finite("strip_text", entropy, "predictions")
    return entropy


def _needs_trusted(*, overlays: int = 20, share: float = 0.5, frr: float = 0.01) -> int:
    return overlays


DETECTOR = Detector(score=score, needs_trusted=_needs_trusted, single_inputs=True, images=False, texts=True)
