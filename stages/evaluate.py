"""Grade models and scores: the one stage, with the report, that reads the ground truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from common import BACKDOORED, BASE, CURVES, METRICS, PURIFIED, SCORES, STUDENT, TRUTH, load_params, run_stage, section
from unpoison import models
from unpoison.compute.inference import logits_of
from unpoison.core.files import new_folder, write_json
from unpoison.data.imageset import ImageSet
from unpoison.data.scores import load_scores
from unpoison.data.store import open_split
from unpoison.evaluation.metrics import ROC_GRID, accuracy, detection_metrics, roc_points
from unpoison.evaluation.stealth import Stealth
from unpoison.poisoning.truth import Part, Truth, read_truth


def main() -> list[Path]:
    params = load_params()
    test, truth = open_split(BASE, "test"), read_truth(TRUTH)

    def grade(folder: Path) -> dict[str, Any]:
        return model_metrics(models.load(folder), test, truth)

    metrics: dict[str, Any] = {} if truth is None else {"attack": attack_metrics(test, truth)}
    metrics |= {"backdoored": grade(BACKDOORED), "student": grade(STUDENT)}
    metrics["purified"] = {method: grade(PURIFIED / method) for method in section(params, "purify")["methods"]}
    curves = {"fpr": ROC_GRID}
    # Without poison, or without knowing it, there is nothing to grade a detector by.
    if truth is not None and truth.mask.any():
        metrics["detection"] = {}
        for method in section(params, "detect")["methods"]:
            values = load_scores(SCORES / method).values
            metrics["detection"][method] = detection_metrics(values, truth.mask)
            curves[method] = roc_points(values, truth.mask)
    write_json(METRICS, _rounded(metrics))
    with new_folder(CURVES) as staging:
        pd.DataFrame(curves).round(6).to_csv(staging / "roc.csv", index=False)
    return [METRICS, CURVES]


def model_metrics(model: models.Classifier, test: ImageSet, truth: Truth | None) -> dict[str, Any]:
    """ACC on the test split; and, where the attack is known, ACC without the target classes, ASR and RA.

    ASR and RA are of all triggered test images that the policy attacks; of several triggers together, and of each. They
    are absent where no test image can carry the trigger, as for a semantic one that is rare.
    """
    clean = logits_of(model, test)
    metrics: dict[str, Any] = {"acc": accuracy(clean, test.labels)}
    if truth is None:
        return metrics
    targets = [part.policy.target for part in truth.parts if part.policy.label_policy != "all2all"]
    others = ~np.isin(test.labels, targets)
    if others.any():
        metrics["acc_without_target"] = accuracy(clean[torch.from_numpy(others)], test.labels[others])
    counts: dict[str, Any] = {}
    for name, part in _named_parts(truth):
        hits = np.zeros(3)
        for some in truth.triggered(test, part):
            logits = logits_of(model, ImageSet(some.images, some.true, test.classes))
            each = (accuracy(logits, labels) for labels in (some.wanted, some.true))
            hits += np.array([*each, 1]) * len(some.true)
        counts[name] = hits
    asr, ra, count = np.sum(list(counts.values()), axis=0)
    if count:
        metrics |= {"asr": asr / count, "ra": ra / count}
    if len(counts) > 1:
        metrics["asr_of"] = {name: hits[0] / hits[2] for name, hits in counts.items() if hits[2]}
    return metrics


def attack_metrics(test: ImageSet, truth: Truth) -> dict[str, Any]:
    """Shares of the training set, the number of images behind ASR, and how visible each trigger is on them."""
    metrics: dict[str, Any] = {"poisoned": truth.mask.mean(), "cover": truth.cover.mean(), "tested": 0, "trigger": {}}
    for name, part in _named_parts(truth):
        measured = Stealth()
        for some in truth.triggered(test, part):
            measured.add(some.clean, some.images)
            metrics["tested"] += len(some.images)
        metrics["trigger"][name] = measured.result() if measured.count else {}
    return metrics


def _named_parts(truth: Truth) -> list[tuple[str, Part]]:
    """The attack's triggers by name; of several, numbered."""
    if len(truth.parts) == 1:
        return [(truth.attack, truth.parts[0])]
    return [(f"{number}_{part.attack}", part) for number, part in enumerate(truth.parts)]


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return round(float(value), 6)


if __name__ == "__main__":
    run_stage("evaluate", main)
