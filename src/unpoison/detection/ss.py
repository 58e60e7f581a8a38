"""Spectral Signatures (Tran et al., "Spectral Signatures in Backdoor Attacks", NeurIPS 2018, algorithm 1)."""

from __future__ import annotations

import numpy as np

from ..data.features import Features
from ..data.imageset import ImageSet
from ..data.scores import Assumption, Scores
from ..models.classifier import Classifier
from .detector import Detector

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
        data: the suspect training set; its labels say the class.
        reserve: not used.
        features: of the suspect classifier.
        seed: not used; nothing is drawn.
        centred: the paper's score. `false` gives the absolute projection of the features as they are, which the
            authors' code and the ports of it compute.

    Poison that is half of a class moves the class's mean half way towards itself, and both halves project alike.
    """
    values = np.zeros(len(data), np.float32)
    for label in np.unique(data.labels):
        members = np.flatnonzero(data.labels == label)
        rows = features.penultimate[members].astype(np.float64)
        spread = rows - rows.mean(0)
        # The top right singular vector is the leading eigenvector of the d x d Gram matrix, which is much cheaper.
        direction = np.linalg.eigh(spread.T @ spread)[1][:, -1]
        values[members] = (spread @ direction) ** 2 if centred else np.abs(rows @ direction)
    return Scores(values, forward_passes=1, assumption=ASSUMPTION)


DETECTOR = Detector(score=score)
