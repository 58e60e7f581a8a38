"""Grade models and scores: the one stage, with the report, that reads the ground truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from common import BACKDOORED, BASE, CURVES, METRICS, PURIFIED, SCORES, STUDENT, TRUTH, load_params, run_stage, section
from unpoison import models
from unpoison.attacks.truth import Truth, read_truth
from unpoison.data.files import new_folder, write_json
from unpoison.data.imageset import ImageSet
from unpoison.data.scores import load_scores
from unpoison.data.store import open_split
from unpoison.evaluation.metrics import ROC_GRID, accuracy, detection_metrics, roc_points
from unpoison.training.inference import logits_of


def main() -> list[Path]:
    params = load_params()
    test, truth = open_split(BASE, "test"), read_truth(TRUTH)

    def grade(folder: Path) -> dict[str, float]:
        return model_metrics(models.load(folder), test, truth)

    metrics: dict[str, Any] = {"backdoored": grade(BACKDOORED), "student": grade(STUDENT)}
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


def model_metrics(model: models.Classifier, test: ImageSet, truth: Truth | None) -> dict[str, float]:
    """ACC on the test split; and, where the attack is known, ASR and RA on its triggered images of attacked classes."""
    metrics = {"acc": accuracy(logits_of(model, test), test.labels)}
    if truth is not None:
        keys = np.flatnonzero(truth.policy.attacked(test.labels))
        logits, attackers, true = [], [], []
        for some in test.chunks(keys):
            images, wanted, labels = truth.triggered(test, some)
            logits.append(logits_of(model, ImageSet(images, labels, test.classes)))
            attackers.append(wanted)
            true.append(labels)
        asr, ra = (accuracy(torch.cat(logits), np.concatenate(each)) for each in (attackers, true))
        metrics |= {"asr": asr, "ra": ra}
    return metrics


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return round(value, 6)


if __name__ == "__main__":
    run_stage("evaluate", main)
