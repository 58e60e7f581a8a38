"""Metrics on cases done by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from unpoison.core.errors import UserError
from unpoison.data.ranks import order, ranks
from unpoison.evaluation.metrics import ROC_GRID, accuracy, collapse, detection_intervals, detection_metrics, roc_points

# Ranks from the most suspicious: poisoned, clean, poisoned, clean, clean.
SCORES, POISONED = np.array([4, 3, 2, 1, 0], np.float32), np.array([1, 0, 1, 0, 0], bool)


def test_detection_metrics() -> None:
    metrics = detection_metrics(SCORES, POISONED)
    assert metrics["auroc"] == pytest.approx(5 / 6)
    assert metrics["ap"] == pytest.approx((1 + 2 / 3) / 2)
    assert metrics["tpr_at_1fpr"] == metrics["tpr_at_5fpr"] == 0.5
    # Of the two most suspicious one is poisoned.
    assert metrics["precision_at_count"] == 0.5


def test_precision_at_the_true_count_shares_a_tie() -> None:
    # Three poisoned: one place for the first sample, two of the four for those of the tie, half of which are poisoned.
    scores, poisoned = np.array([3, 2, 2, 2, 2, 1], np.float32), np.array([1, 1, 1, 0, 0, 0], bool)
    assert detection_metrics(scores, poisoned)["precision_at_count"] == pytest.approx((1 + 2 * 0.5) / 3)


@pytest.mark.parametrize("levels", [3, 1000])
def test_areas_are_those_of_scikit_learn(levels: int) -> None:
    rng = np.random.default_rng(0)
    poisoned = rng.random(300) < 0.2
    scores = np.round((rng.normal(size=300) + poisoned) * levels / 6).astype(np.float32)
    metrics = detection_metrics(scores, poisoned)
    assert metrics["auroc"] == pytest.approx(roc_auc_score(poisoned, scores))
    assert metrics["ap"] == pytest.approx(average_precision_score(poisoned, scores))


def test_intervals_hold_the_figure_and_narrow_with_the_number_of_samples() -> None:
    rng, widths = np.random.default_rng(0), []
    for count in (200, 20_000):
        poisoned = np.arange(count) % 5 == 0
        scores = (rng.normal(size=count) + poisoned).astype(np.float32)
        figures, intervals = detection_metrics(scores, poisoned), detection_intervals(scores, poisoned, draws=200)
        assert all(low <= figures[name] <= high for name, (low, high) in intervals.items())
        widths.append(np.ptp(intervals["auroc"]))
    # By the root of a hundred; and as wide as theory has it: the deviation of AUROC is about 0.045 for 40 and 160 samples.
    assert 5 < widths[0] / widths[1] < 20
    assert 0.1 < widths[0] < 0.25
    assert all((interval == 1).all() for interval in detection_intervals(SCORES, SCORES > 1).values())


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


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_has_no_metric(value: float) -> None:
    logits = torch.tensor([[1.0, 2], [value, 1]])
    for metric in (accuracy, collapse):
        with pytest.raises(UserError, match=r"^logits: 1 of 2 samples have some that are not finite"):
            metric(logits, np.array([1, 0]))
    scores = SCORES.copy()
    scores[2] = value
    for graded in (detection_metrics, detection_intervals, roc_points):
        with pytest.raises(UserError, match=r"^scores: 1 of 5 are not finite"):
            graded(scores, POISONED)


def test_what_is_not_defined_is_refused() -> None:
    with pytest.raises(UserError, match=r"^logits: of 0 samples given"):
        accuracy(torch.empty(0), np.zeros(0, np.int64))
    for poisoned in (np.zeros(5, bool), np.ones(5, bool)):
        for graded in (detection_metrics, roc_points):
            with pytest.raises(
                UserError, match=f"^poisoned: {poisoned.sum()} of 5 samples given, allowed: some and not all"
            ):
                graded(SCORES, poisoned)


def test_collapse_is_one_class_for_samples_of_several() -> None:
    labels = np.arange(200) % 4
    one = torch.eye(4)[torch.full((200,), 2)]
    assert collapse(one, labels) == {"class": 2, "share": 1.0}
    one[0] = torch.eye(4)[1]
    assert collapse(one, labels) == {"class": 2, "share": 0.995}
    one[:3] = torch.eye(4)[1]
    assert collapse(one, labels) is None
    assert collapse(torch.eye(4)[torch.from_numpy(labels)], labels) is None
    # All right, and all of one class: no collapse.
    assert collapse(torch.eye(4)[torch.full((200,), 2)], np.full(200, 2)) is None


def test_ties_are_ties_in_every_order() -> None:
    scores, poisoned = np.array([3, 2, 2, 2, 1], np.float32), np.array([1, 1, 0, 0, 0], bool)
    for turn in (np.arange(5), np.arange(5)[::-1], np.array([2, 1, 4, 3, 0])):
        metrics = detection_metrics(scores[turn], poisoned[turn])
        # Of six pairs four are right and two tied.
        assert metrics["auroc"] == pytest.approx((4 + 2 / 2) / 6)
        # The tie is taken whole, with its two clean samples, or not at all.
        assert metrics["tpr_at_5fpr"] == 0.5
        assert roc_points(scores[turn], poisoned[turn]).tolist() == [0.5 if x < 2 / 3 else 1.0 for x in ROC_GRID]
        first, last = ranks(scores[turn])
        assert first.tolist() == np.array([1, 2, 2, 2, 5])[turn].tolist()
        assert last.tolist() == np.array([1, 4, 4, 4, 5])[turn].tolist()


def test_a_list_of_ties_prefers_no_number() -> None:
    tied = order(np.zeros(1000, np.float32))
    assert sorted(tied) == list(range(1000))
    # Of the first hundred as many come from either half as chance would have it.
    assert 30 < (tied[:100] < 500).sum() < 70
    assert (order(np.zeros(1000)) == tied).all()
    scores = np.arange(1000) % 7
    falling = scores[order(scores)]
    assert (np.diff(falling) <= 0).all()
