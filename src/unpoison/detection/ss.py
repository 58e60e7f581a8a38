"""Spectral Signatures (Tran et al., "Spectral Signatures in Backdoor Attacks", NeurIPS 2018, algorithm 1).

The features of a poisoned class spread most along the direction that tells poison from clean samples.

Published code of a port, with the features as they are (`centred: false`), whose scores then become robust z-scores over
all classes together, which is not done here:
https://github.com/HanxunH/CognitiveDistillation/blob/6aba6f9/analysis/spectral_signatures.py
"""

from __future__ import annotations

import numpy as np

from ..data.features import Features
from ..data.imageset import ImageSet
from ..data.scores import Assumption, Scores
from ..models.classifier import Classifier
from .detector import Detector, check_finite

# A share p of poison draws the class's mean p of the way towards it, so clean samples project by p and poison by 1 - p:
# at a quarter, half of the gap is gone.
ASSUMPTION = Assumption("takes poison for a small outlying part of a class", least_share=0.25)


def score(
    model: Classifier,
    data: ImageSet,
    reserve: ImageSet,
    features: Features,
    *,
    seed: int = 0,
    centred: bool = True,
) -> Scores:
    """Squared projection of a sample's centred features on its class's top right singular vector.

    Args:
        model: not used.
        data: the suspect training set; its labels are the classes.
        reserve: not used.
        features: the suspect classifier's features of `data`.
        seed: not used; nothing is drawn.
        centred: whether features are centred and projections squared, as in the paper. `false` gives the absolute
            projection of the features as they are, which the authors' code and its ports compute.

    Poison that is half of a class moves the class's mean half way towards itself, and both halves project alike.
    """
    values = np.zeros(len(data), np.float32)
    for label in np.unique(data.labels):
        members = np.flatnonzero(data.labels == label)
        # In float64: the Gram matrix squares the features, and its leading eigenvector must not drown in rounding.
        rows = features.penultimate[members].astype(np.float64)
        check_finite("ss", rows, f"features (label {data.classes[label]})")
        spread = rows - rows.mean(0)
        # The top right singular vector is the leading eigenvector of the d x d Gram matrix, which is much cheaper than a
        # decomposition of all n rows; `eigh` sorts eigenvalues upwards, so it is the last one.
        direction = np.linalg.eigh(spread.T @ spread)[1][:, -1]
        # The direction comes from centred features in either variant; the sign of an eigenvector is arbitrary.
        values[members] = (spread @ direction) ** 2 if centred else np.abs(rows @ direction)
    return Scores(values, forward_passes=1, assumption=ASSUMPTION)


DETECTOR = Detector(score=score)
