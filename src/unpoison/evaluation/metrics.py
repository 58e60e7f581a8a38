"""Metrics, all fractions in [0, 1]. Methods return raw material; this is where it is graded."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch import Tensor

from ..core.arrays import IntArray
from ..core.errors import UserError

ROC_GRID = np.concatenate([[0.0], np.logspace(-3, 0, 61)])
"""False positive rates at which ROC curves are recorded: 0, then 20 per decade from 0.1 % to 100 %."""


def accuracy(logits: Tensor, labels: IntArray) -> float:
    """Share of samples whose largest logit is that of the label.

    It is ACC with the true labels of clean images; on triggered images, ASR with the attacker's labels and RA with the true
    ones (as in BackdoorBench, of samples of other classes than the target only).

    Raises:
        UserError: no sample, or logits that are not finite: the largest of NaN would be class 0.
    """
    check_logits(logits)
    return float((logits.argmax(1).numpy() == labels).mean())


def check_logits(logits: Tensor) -> None:
    """Raises UserError where logits [n, classes] are none or not finite."""
    if not len(logits):
        raise UserError("logits: of 0 samples given, allowed: of at least 1")
    if bad := int((~logits.isfinite()).any(1).sum()):
        raise UserError(f"logits: {bad} of {len(logits)} samples have some that are not finite; allowed: finite ones")


def collapse(logits: Tensor, labels: IntArray) -> dict[str, float] | None:
    """The class that a model predicts for nearly all samples of several classes, and its share; None for other models.

    An attack success rate of such a model says nothing about a backdoor: it is 1 or 0 by which class it is.

    Args:
        logits: logits of clean samples, float [n, classes].
        labels: true labels, int64 [n].

    Returns:
        `class` and `share`, where at least 99 % of the predictions and at most nine tenths as many labels are that class.
    """
    check_logits(logits)
    predicted = logits.argmax(1).numpy()
    label = int(np.bincount(predicted).argmax())
    share, true = float((predicted == label).mean()), float((labels == label).mean())
    return {"class": label, "share": share} if share >= 0.99 and true <= 0.9 * share else None


def _check_scores(scores: NDArray[np.float32], poisoned: NDArray[np.bool_]) -> None:
    if bad := int((~np.isfinite(scores)).sum()):
        raise UserError(f"scores: {bad} of {len(scores)} are not finite; allowed: finite ones")
    if not 0 < int(poisoned.sum()) < len(poisoned):
        raise UserError(f"poisoned: {int(poisoned.sum())} of {len(poisoned)} samples given, allowed: some and not all")


def detection_metrics(scores: NDArray[np.float32], poisoned: NDArray[np.bool_]) -> dict[str, float]:
    """AUROC, average precision, and the true positive rates at 1 % and 5 % false positives.

    Args:
        scores: score of each sample, [n], higher = more suspicious.
        poisoned: mask of the poisoned samples, [n]; neither kind may be absent.

    Samples of equal score count as found together, whichever comes first: AUROC counts a tie as half, and the other rates
    take all of them or none.

    Raises:
        UserError: scores that are not finite, or no sample of one kind.
    """
    _check_scores(scores, poisoned)
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
    """True positive rates reached within each false positive rate of `ROC_GRID`, float64 [62]; as `detection_metrics`."""
    _check_scores(scores, poisoned)
    fpr, tpr, _ = roc_curve(poisoned, scores, drop_intermediate=False)
    return np.array([_best_within(fpr, tpr, limit) for limit in ROC_GRID])


def _best_within(fpr: NDArray[np.float64], tpr: NDArray[np.float64], limit: float) -> float:
    """The highest TPR at a threshold whose FPR does not exceed the limit: nothing is interpolated between thresholds."""
    # The tolerance is for rates equal to a limit that rounding puts above it.
    return float(tpr[fpr <= limit + 1e-12].max())
