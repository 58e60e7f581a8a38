"""Spectral Signatures (Tran et al., "Spectral Signatures in Backdoor Attacks", NeurIPS 2018, algorithm 1).

The features of a poisoned class spread most along the direction that tells poison from clean samples.

Published code of a port, with the features as they are (`centre: none`), whose scores then become robust z-scores over
all classes together, which is not done here:
https://github.com/HanxunH/CognitiveDistillation/blob/6aba6f9/analysis/spectral_signatures.py
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from ..compute.finite import check_finite
from ..core.errors import ParameterError
from ..core.hyperparameters import Fraction
from ..data.ranks import order
from ..data.scores import Assumption, Scores
from .detector import Detector, Suspect

Centre = Literal["class", "reserve", "none"]

# A share p of poison draws the class's mean p of the way towards it, so clean samples project by p and poison by 1 - p:
# at a quarter, half of the gap is gone. A trusted mean stays where it is.
ASSUMPTIONS: dict[Centre, Assumption | None] = {
    "class": Assumption("takes poison for a small outlying part of a class", least_share=0.25),
    "reserve": None,
    "none": None,
}


def score(
    suspect: Suspect,
    *,
    seed: int = 0,
    centre: Centre = "reserve",
    removed: Fraction = 0.15,
) -> Scores:
    """Squared projection of a sample's features, less a centre, on its class's top right singular vector.

    Args:
        seed: not used; nothing is drawn.
        centre: what projections are measured from: the mean of the `class`, as in the paper; that of the class's images in
            the trusted `reserve`, which poison does not move (of a class without such images, its own); `none`, and then the
            projection is absolute, not squared, which the authors' code and its ports compute.
        removed: share of each class, of the largest scores, that the rule flags, rounded down. The authors' code takes 0.15,
            1.5 times the largest share of poison that it expects.

    Poison that is half of a class moves the class's mean half way towards itself, and both halves project alike.
    """
    if centre == "reserve" and not len(suspect.reserve):
        raise ParameterError("centre: 'reserve' given, allowed without trusted images: class, none")
    data, values = suspect.data, np.zeros(len(suspect.data), np.float32)
    flagged = np.zeros(len(data), bool)
    for label in np.unique(data.labels):
        members = np.flatnonzero(data.labels == label)
        # In float64: the Gram matrix squares the features, and its leading eigenvector must not drown in rounding.
        rows = suspect.features.penultimate[members].astype(np.float64)
        check_finite("ss", rows, f"features (label {data.classes[label]})")
        spread = rows - rows.mean(0)
        # The top right singular vector is the leading eigenvector of the d x d Gram matrix, which is much cheaper than a
        # decomposition of all n rows; `eigh` sorts eigenvalues upwards, so it is the last one.
        direction = np.linalg.eigh(spread.T @ spread)[1][:, -1]
        # The direction comes from features centred on their class in every variant; its sign is arbitrary.
        trusted = np.flatnonzero(suspect.reserve.labels == label)
        if centre == "none":
            values[members] = np.abs(rows @ direction)
        elif centre == "reserve" and len(trusted):
            clean = suspect.reserve_features.penultimate[trusted].astype(np.float64).mean(0)
            values[members] = ((rows - clean) @ direction) ** 2
        else:
            values[members] = (spread @ direction) ** 2
        flagged[order(values[members], members)[: int(removed * len(members))]] = True
    rule = f"the {removed:.0%} of each class with the largest scores"
    return Scores(values, forward_passes=1, assumption=ASSUMPTIONS[centre], flagged=flagged, rule=rule)


def _needs_trusted(*, centre: Centre = "reserve", removed: float = 0.15) -> int:
    return 1 if centre == "reserve" else 0


DETECTOR = Detector(score=score, needs_trusted=_needs_trusted, texts=True)
