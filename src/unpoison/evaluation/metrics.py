"""Metrics, all fractions in [0, 1]. Methods return raw material; this is where it is graded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..core.arrays import IntArray
from ..core.errors import UserError
from ..core.seeding import numpy_rng

ROC_GRID = np.concatenate([[0.0], np.logspace(-3, 0, 61)])
"""False positive rates at which ROC curves are recorded: 0, then 20 per decade from 0.1 % to 100 %."""

LEVELS = np.array([0.025, 0.975])
"""The quantiles that a bootstrap interval ends at."""


def accuracy(logits: Tensor, labels: IntArray) -> float:
    """Share of samples whose largest logit is that of the label.

    It is ACC with the true labels of clean images; on triggered images, ASR with the attacker's labels and RA with the true
    ones (as in BackdoorBench, of samples of other classes than the target only).

    Raises:
        UserError: no sample, or logits that are not finite: the largest of NaN would be class 0.
    """
    check_logits(logits)
    return float((logits.argmax(1).numpy() == labels).mean())


def defence_effectiveness(backdoored: Mapping[str, Any], defended: Mapping[str, Any]) -> dict[str, float]:
    """`der`, the defence effectiveness rating of BackdoorBench (Zhu et al. 2023): 1 where a defence takes all of ASR and nothing
    of ACC, 0.5 where it changes neither, below where it costs more than it gains. Nothing without an ASR.

    [max(0, ASR_b - ASR_d) - max(0, ACC_b - ACC_d) + 1] / 2

    Args:
        backdoored: `acc` and, where there is one, `asr` of the backdoored model.
        defended: those of the model in its place.
    """
    if "asr" not in backdoored or "asr" not in defended:
        return {}
    gain, loss = (max(0.0, backdoored[key] - defended[key]) for key in ("asr", "acc"))
    return {"der": (gain - loss + 1) / 2}


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


class _Ranking(NamedTuple):
    """Counts of samples of equal score, from the most suspicious score to the least.

    Attributes:
        poisoned: number of poisoned samples of each distinct score, int64 [k].
        clean: number of clean ones.
    """

    poisoned: IntArray
    clean: IntArray


def _groups(scores: NDArray[np.float32], poisoned: NDArray[np.bool_]) -> IntArray:
    """The rank of each sample's score among the distinct ones, 0 the most suspicious, int64 [n]."""
    if bad := int((~np.isfinite(scores)).sum()):
        raise UserError(f"scores: {bad} of {len(scores)} are not finite; allowed: finite ones")
    if not 0 < int(poisoned.sum()) < len(poisoned):
        raise UserError(f"poisoned: {int(poisoned.sum())} of {len(poisoned)} samples given, allowed: some and not all")
    distinct, place = np.unique(scores, return_inverse=True)
    rank: IntArray = len(distinct) - 1 - place
    return rank


def _ranking(scores: NDArray[np.float32], poisoned: NDArray[np.bool_]) -> _Ranking:
    groups = _groups(scores, poisoned)
    return _Ranking(*(np.bincount(groups[kind], minlength=groups.max() + 1) for kind in (poisoned, ~poisoned)))


def detection_metrics(scores: NDArray[np.float32], poisoned: NDArray[np.bool_]) -> dict[str, float]:
    """AUROC, average precision, TPR at 1 % and 5 % FPR, and precision at the true count.

    Args:
        scores: score of each sample, [n], higher = more suspicious.
        poisoned: mask of the poisoned samples, [n]; neither kind may be absent.

    Samples of equal score count as found together, whichever comes first: AUROC counts a tie as half, and the other rates
    take all of them or none. Precision at the true count is that of a list as long as there are poisoned samples; where
    its last place falls among equals, what is expected of a draw among them.

    Raises:
        UserError: scores that are not finite, or no sample of one kind.
    """
    return _figures(_ranking(scores, poisoned))


def detection_intervals(
    scores: NDArray[np.float32], poisoned: NDArray[np.bool_], *, draws: int = 1000
) -> dict[str, NDArray[np.float64]]:
    """Bootstrap interval of each figure of `detection_metrics`: its quantiles `LEVELS` over samples drawn with replacement.

    Poisoned and clean samples are drawn apart, as many of either as there are, so that every draw has both.

    Args:
        scores: score of each sample, [n], higher = more suspicious.
        poisoned: mask of the poisoned samples, [n]; neither kind may be absent.
        draws: number of draws.

    Raises:
        UserError: as `detection_metrics`.
    """
    groups, rng = _groups(scores, poisoned), numpy_rng(0, "detection/bootstrap")
    kinds, distinct = (groups[poisoned], groups[~poisoned]), int(groups.max()) + 1
    # A draw needs no sorting: samples of one score are alike, so how often each score came is all there is to know.
    drawn = [
        _figures(
            _Ranking(
                *(np.bincount(kind[rng.integers(len(kind), size=len(kind))], minlength=distinct) for kind in kinds)
            )
        )
        for _ in range(draws)
    ]
    return {name: np.quantile([figures[name] for figures in drawn], LEVELS) for name in drawn[0]}


def roc_points(scores: NDArray[np.float32], poisoned: NDArray[np.bool_]) -> NDArray[np.float64]:
    """True positive rates reached within each false positive rate of `ROC_GRID`, float64 [62]; as `detection_metrics`."""
    return _rates_within(_ranking(scores, poisoned), ROC_GRID)


def _figures(ranking: _Ranking) -> dict[str, float]:
    """The figures of `detection_metrics`."""
    found, false = ranking.poisoned.cumsum(), ranking.clean.cumsum()
    poisoned, clean = int(found[-1]), int(false[-1])
    # AUROC: of all pairs of a poisoned and a clean sample, those where the clean one has the lower score, a tie as half.
    right = ranking.poisoned @ (clean - false + ranking.clean / 2)
    # AP: the precision at each score, weighed by the poisoned samples that come with it. No score, no sample, no weight.
    precision = found / np.maximum(found + false, 1)
    # Precision at the true count: all before the group that holds the last place, and of that group its share.
    place = int(np.searchsorted(found + false, poisoned))
    before = found[place] - ranking.poisoned[place], false[place] - ranking.clean[place]
    share = ranking.poisoned[place] / (ranking.poisoned[place] + ranking.clean[place])
    at_count = (before[0] + share * (poisoned - sum(before))) / poisoned
    tpr_at_1fpr, tpr_at_5fpr = _rates_within(ranking, np.array([0.01, 0.05])).tolist()
    return {
        "auroc": float(right / (poisoned * clean)),
        "ap": float(ranking.poisoned @ precision / poisoned),
        "tpr_at_1fpr": tpr_at_1fpr,
        "tpr_at_5fpr": tpr_at_5fpr,
        "precision_at_count": float(at_count),
    }


def _rates_within(ranking: _Ranking, limits: NDArray[np.float64]) -> NDArray[np.float64]:
    """The highest TPR at a threshold whose FPR does not exceed each limit: nothing is interpolated between thresholds."""
    found, false = (np.concatenate([[0], counts.cumsum()]) for counts in ranking)
    # The tolerance is for rates equal to a limit that rounding puts above it.
    last = np.searchsorted(false / false[-1], limits + 1e-12, side="right") - 1
    rates: NDArray[np.float64] = found[last] / found[-1]
    return rates
