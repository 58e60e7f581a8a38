"""Metrics, all fractions in [0, 1]. Methods return raw material; this is where it is graded."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch import Tensor

from ..core.arrays import IntArray

ROC_GRID = np.concatenate([[0.0], np.logspace(-3, 0, 61)])
"""False positive rates at which ROC curves are written down."""


def accuracy(logits: Tensor, labels: IntArray) -> float:
    """Share of samples whose largest logit is at the label.

    ACC with true labels on clean images; ASR with the attacker's labels, and RA with the true ones, on triggered images
    (BackdoorBench: only samples of another class than the target).
    """
    return float((logits.argmax(1).numpy() == labels).mean())


def detection_metrics(scores: NDArray[np.float32], poisoned: NDArray[np.bool_]) -> dict[str, float]:
    """AUROC, average precision, and the true positive rates at 1 % and 5 % false positives.

    Args:
        scores: [n], higher = more suspicious.
        poisoned: [n]; both kinds must be there.
    """
    fpr, tpr, _ = roc_curve(poisoned, scores, drop_intermediate=False)
    return {
        "auroc": float(roc_auc_score(poisoned, scores)),
        "ap": float(average_precision_score(poisoned, scores)),
        "tpr_at_1fpr": _best_within(fpr, tpr, 0.01),
        "tpr_at_5fpr": _best_within(fpr, tpr, 0.05),
    }


def roc_points(scores: NDArray[np.float32], poisoned: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The true positive rate reached within each false positive rate of `ROC_GRID`."""
    fpr, tpr, _ = roc_curve(poisoned, scores, drop_intermediate=False)
    return np.array([_best_within(fpr, tpr, limit) for limit in ROC_GRID])


def _best_within(fpr: NDArray[np.float64], tpr: NDArray[np.float64], limit: float) -> float:
    """The highest TPR at a threshold whose FPR does not exceed the limit: nothing is interpolated between thresholds."""
    return float(tpr[fpr <= limit + 1e-12].max())
