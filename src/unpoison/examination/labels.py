"""Labels that a model contradicts though it was trained on them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from ..core.arrays import IntArray

MAJORITY = 0.5


def contradicted(logits: NDArray[np.float32], labels: IntArray) -> IntArray:
    """The class that a model gives more than half in the place of the label; -1 where there is none, int64 [n].

    Labels that were learned by heart are missed. Confident learning (Northcutt et al. 2021) asks for as much as a class has in the
    mean over its samples, which is nearly 1 of a model that has seen the labels; its own place is with models that have not.

    Args:
        logits: logits of the samples, float32 [n, classes].
        labels: their labels, int64 [n], from 0.
    """
    shares = softmax(logits.astype(np.float64), axis=1)
    best = shares.argmax(1)
    found: IntArray = np.where((shares.max(1) > MAJORITY) & (best != labels), best, -1)
    return found
