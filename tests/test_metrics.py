"""Metrics on cases done by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unpoison.evaluation.metrics import ROC_GRID, accuracy, detection_metrics, roc_points

# Ranks from the most suspicious: poisoned, clean, poisoned, clean, clean.
SCORES, POISONED = np.array([4, 3, 2, 1, 0], np.float32), np.array([1, 0, 1, 0, 0], bool)


def test_detection_metrics() -> None:
    metrics = detection_metrics(SCORES, POISONED)
    assert metrics["auroc"] == pytest.approx(5 / 6)
    assert metrics["ap"] == pytest.approx((1 + 2 / 3) / 2)
    assert metrics["tpr_at_1fpr"] == metrics["tpr_at_5fpr"] == 0.5


def test_false_positives_at_the_limit_are_within_it() -> None:
    # 100 clean samples, and one poisoned after none, one, five and six of them.
    before = np.array([0, 1, 5, 6])
    poisoned = np.isin(np.arange(104), before + np.arange(4))
    metrics = detection_metrics(np.arange(104, 0, -1).astype(np.float32), poisoned)
    assert (metrics["tpr_at_1fpr"], metrics["tpr_at_5fpr"]) == (0.5, 0.75)


def test_roc_points_are_steps_and_nothing_between_them() -> None:
    tpr = roc_points(SCORES, POISONED)
    assert ROC_GRID[0] == 0
    assert (np.diff(ROC_GRID) > 0).all()
    assert tpr.tolist() == [0.5 if fpr < 1 / 3 else 1.0 for fpr in ROC_GRID]


def test_accuracy_counts_the_largest_logit() -> None:
    logits = torch.tensor([[1.0, 2, 0], [3, 2, 1], [0, 0, 1], [5, 0, 6]])
    assert accuracy(logits, np.array([1, 0, 0, 0])) == 0.5
