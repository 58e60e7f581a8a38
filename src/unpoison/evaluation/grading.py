"""Grading: models and scores compared with the ground truth and the triggered test images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..compute.inference import logits_of
from ..core.arrays import Mask
from ..core.errors import UserError
from ..data.imageset import ImageSet
from ..data.scores import Scores
from ..data.texts import is_text
from ..data.verdicts import Verdict
from ..models.classifier import Classifier
from ..poisoning.triggered import Triggered
from ..poisoning.truth import Truth
from .metrics import LEVELS, ROC_GRID, accuracy, collapse, detection_intervals, detection_metrics, roc_points
from .stealth import Stealth


def model_metrics(
    model: Classifier, test: ImageSet, truth: Truth | None, triggered: Mapping[str, Triggered]
) -> dict[str, Any]:
    """ACC on the test split; and, where the attack is known, ACC without the target classes, ASR and RA.

    ASR and RA are taken over all triggered test images that the policy attacks: over all triggers, and over each where
    there are several. Of attacks that stamp cover samples otherwise (`Trigger.crosses`) there is `cross_acc`, the share of
    the same images, stamped so, that get their true label. ASR and RA are absent where no test image can carry the
    trigger, as with a rare semantic one. A model that predicts one class for nearly all clean test images has `collapsed`,
    with the `class` and its `share` of them.

    Args:
        model: the model to grade.
        test: the clean test split.
        truth: the ground truth; None for data of unknown origin.
        triggered: triggered test images by the trigger's name.

    Without a test split there is nothing to measure, and no figure.
    """
    if not len(test):
        return {}
    clean = logits_of(model, test)
    metrics: dict[str, Any] = {"acc": accuracy(clean, test.labels)}
    if collapsed := collapse(clean, test.labels):
        metrics["collapsed"] = collapsed
    if truth is None:
        return metrics
    # D-BR's ACC, without the target classes, whose images ASR does not count. Where no class is the target, none is left out.
    targets = [part.policy.target for part in truth.parts if part.policy.has_target]
    others = ~np.isin(test.labels, targets)
    if others.any():
        metrics["acc_without_target"] = accuracy(clean[torch.from_numpy(others)], test.labels[others])
    # Counts, not rates, per trigger: rates over several triggers weigh every image alike, however many each has.
    counts = {name: _hits(model, images) for name, images in triggered.items()}
    asr, ra, count = np.sum(list(counts.values()), axis=0)
    if count:
        metrics |= {"asr": asr / count, "ra": ra / count}
    if len(counts) > 1:
        metrics["asr_of"] = {name: hits[0] / hits[2] for name, hits in counts.items() if hits[2]}
    # Chunks weigh by their size, as above.
    right = [
        (accuracy(logits_of(model, crossed), crossed.labels) * len(crossed), len(crossed))
        for images in triggered.values()
        for crossed in images.crossed_chunks()
    ]
    if right:
        metrics["cross_acc"] = sum(hits for hits, _ in right) / sum(count for _, count in right)
    return metrics


def _hits(model: Classifier, triggered: Triggered) -> np.ndarray:
    """Numbers of triggered images with the attacker's label, with their true one, and in all: float64 [3]."""
    hits, seen = np.zeros(3), 0
    # Chunk by chunk: triggered images of a large test split need not fit in memory. The two logit comparisons share a pass.
    for _, images, received in triggered.chunks():
        logits, true = logits_of(model, received), triggered.true[seen : seen + len(images)]
        shares = [accuracy(logits, labels) for labels in (received.labels, true)]
        hits += np.array([*shares, 1]) * len(images)
        seen += len(images)
    return hits


def attack_metrics(truth: Truth, triggered: Mapping[str, Triggered]) -> dict[str, Any]:
    """Shares of poison and cover in the training set, the number of images behind ASR, and each trigger's visibility in images.

    `surrogate` is 1 where the set that data-level methods were given stands in for one that there is not.
    """
    metrics: dict[str, Any] = {"poisoned": truth.mask.mean(), "cover": truth.cover.mean(), "tested": 0, "trigger": {}}
    if truth.received == "surrogate":
        metrics["surrogate"] = 1
    for name, images in triggered.items():
        measured = Stealth()
        # Distances of pixels say nothing of texts, whose bytes are numbers of words.
        for clean, stamped, _ in () if is_text(images.test) else images.chunks():
            measured.add(clean, stamped)
        metrics["tested"] += len(images)
        metrics["trigger"][name] = measured.result() if measured.count else {}
    return metrics


def detector_metrics(
    scores: Mapping[str, Scores], poisoned: Mask | None
) -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]:
    """Metrics by detector; ROC curves as a table with `fpr` and a column per detector; and the figures' intervals.

    A detector is compared with the truth on the samples that it scored. Of a part of the set, its metrics say how many these
    are, `scored`, and how many of them are poisoned, `scored_poisoned`. Where it has a rule of its own, `flagged` is the
    number of samples that it flags, `flagged_tpr` and `flagged_fpr` the shares of the poisoned and of the clean ones that it
    flags. `passes_per_sample` is what its scores cost.

    The intervals are those of `detection_intervals`: `level`, the two quantiles, and a column `DETECTOR.FIGURE` for each.

    Args:
        scores: scores of the training set by detector.
        poisoned: mask of the poisoned samples, None where it is not known. Without poison to find among the samples scored,
            or without a clean one to tell it from, there is nothing to grade a detector by, and neither result names it.
    """
    metrics: dict[str, Any] = {}
    curves, intervals = {"fpr": ROC_GRID}, {"level": LEVELS}
    if poisoned is None:
        return metrics, pd.DataFrame(curves), pd.DataFrame(intervals)
    for name, scored in scores.items():
        among = poisoned if scored.index is None else poisoned[scored.index]
        if not among.any() or among.all():
            continue
        metrics[name] = detection_metrics(scored.values, among) | {"passes_per_sample": scored.forward_passes}
        curves[name] = roc_points(scored.values, among)
        if scored.index is not None:
            metrics[name] |= {"scored": len(among), "scored_poisoned": among.sum()}
        if (flagged := scored.flagged) is not None:
            metrics[name] |= {"flagged": flagged.sum(), "flagged_tpr": flagged[among].mean()}
            metrics[name]["flagged_fpr"] = flagged[~among].mean()
        ends = detection_intervals(scored.values, among)
        intervals |= {f"{name}.{figure}": interval for figure, interval in ends.items()}
    return metrics, pd.DataFrame(curves), pd.DataFrame(intervals)


def inspector_metrics(verdicts: Mapping[str, Verdict], truth: Truth | None) -> dict[str, dict[str, float]]:
    """Metrics of verdicts on the backdoored model by inspector.

    `flagged` is the number of classes that it flags, `anomaly` the largest index, `passes` the images that it passed through the
    network. Where the attack is known, `false_alarms` is the number of flagged classes that are no target, and `hit` the share of
    targets that are flagged: 0 or 1 of an attack with one target. With all2all every class is a target, with calculator every
    result, with complex each that a poisoned sample was given. A set without poison has none, and so no `hit`.

    Args:
        verdicts: verdicts by inspector.
        truth: the ground truth; None for data of unknown origin.
    """
    metrics = {}
    for name, verdict in verdicts.items():
        metrics[name] = {"flagged": verdict.flagged.sum(), "anomaly": verdict.anomaly.max()}
        metrics[name]["passes"] = verdict.forward_passes
        if truth is None:
            continue
        targets = np.zeros(len(verdict.flagged), bool)
        for number, part in enumerate(truth.parts):
            if (own := truth.mask & (truth.part == number)).any():
                given = None if truth.given is None else truth.given[own]
                targets[part.policy.targets(len(targets), given)] = True
        metrics[name]["false_alarms"] = (verdict.flagged & ~targets).sum()
        if targets.any():
            metrics[name]["hit"] = verdict.flagged[targets].mean()
    return metrics


def rounded(value: Any, name: str = "metrics") -> Any:
    """Nested metrics with their figures to six places, as they are written to disk. Raises UserError for one not finite."""
    if isinstance(value, Mapping):
        return {key: rounded(item, f"{name}.{key}") for key, item in value.items()}
    if not math.isfinite(value):
        raise UserError(f"{name}: {value} measured, allowed: a finite figure")
    return round(float(value), 6)
