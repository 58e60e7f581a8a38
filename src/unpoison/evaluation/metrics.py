"""Metrics, all fractions in [0, 1]. Methods return raw material; this is where it is graded."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch import Tensor

from ..core.arrays import IntArray

ROC_GRID = np.concatenate([[0.0], np.logspace(-3, 0, 61)])
"""False positive rates at which ROC curves are recorded: 0, then 20 per decade from 0.1 % to 100 %."""


def accuracy(logits: Tensor, labels: IntArray) -> float:
    """Share of samples whose largest logit is that of the label.

    It is ACC with the true labels of clean images; on triggered images, ASR with the attacker's labels and RA with the true
    ones (as in BackdoorBench, of samples of other classes than the target only).
    """
    return float((logits.argmax(1).numpy() == labels).mean())


def detection_metrics(scores: NDArray[np.float32], poisoned: NDArray[np.bool_]) -> dict[str, float]:
    """AUROC, average precision, and the true positive rates at 1 % and 5 % false positives.

    Args:
        scores: score of each sample, [n], higher = more suspicious.
        poisoned: mask of the poisoned samples, [n]; neither kind may be absent.
    """
    # Every threshold is kept: with the default, those on a straight piece of the curve are dropped, and the best one within
    # a limit may be among them.
    fpr, tpr, _ = roc_curve(poisoned, scores, drop_intermediate=False)
    return {
        "auroc": float(roc_auc_score(poisoned, scores)),
        "ap": float(average_precision_score(poisoned, scores)),
        "tpr_at_1fpr": _best_within(fpr, tpr, 0.01),
        "tpr_at_5fpr": _best_within(fpr, tpr, 0.05),
    }


def roc_points(scores: NDArray[np.float32], poisoned: NDArray[np.bool_]) -> NDArray[np.float64]:
    """True positive rates reached within each false positive rate of `ROC_GRID`, float64 [62]."""
    fpr, tpr, _ = roc_curve(poisoned, scores, drop_intermediate=False)
    return np.array([_best_within(fpr, tpr, limit) for limit in ROC_GRID])


def _best_within(fpr: NDArray[np.float64], tpr: NDArray[np.float64], limit: float) -> float:
    """The highest TPR at a threshold whose FPR does not exceed the limit: nothing is interpolated between thresholds."""
    # The tolerance is for rates equal to a limit that rounding puts above it.
    return float(tpr[fpr <= limit + 1e-12].max())
