"""Write the report of what there is: `reports/index.html` (one file), `reports/summary.md`, `reports/suspects.csv`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from common import (
    BACKDOORED,
    BASE,
    CURVES,
    GRADED,
    METRICS,
    POISONED,
    ROBUST,
    SCORES,
    STUDENT,
    TRAINING,
    TRIGGERED,
    TRUTH,
    VARIATIONS,
    run_stage,
)
from parameters import Params, checked, load_params
from unpoison.core.files import is_made_from, load_array, new_file, read_json
from unpoison.data import scores as scores_
from unpoison.data import store
from unpoison.data.scores import load_scores
from unpoison.data.store import open_poisoned, open_split, read_about, read_sources
from unpoison.models import checkpoint
from unpoison.poisoning import triggered as triggered_
from unpoison.poisoning.triggered import read_triggered
from unpoison.poisoning.truth import read_truth
from unpoison.reporting.pictures import suspects_table
from unpoison.reporting.run import ReportSettings, Run
from unpoison.reporting.sections import report

INDEX, SUMMARY, SUSPECTS = Path("reports/index.html"), Path("reports/summary.md"), Path("reports/suspects.csv")


def settings(params: Params) -> ReportSettings:
    return ReportSettings(**checked(params, "report", ReportSettings))


def main() -> list[Path]:
    params = load_params()
    data = open_poisoned(BASE, POISONED)
    run = Run(
        settings=settings(params),
        data=data,
        about=read_about(BASE),
        sources=read_sources(BASE, "train"),
        truth=read_truth(TRUTH),
        **_found(data.digest),
    )
    page = report(run)
    for path, text in ((INDEX, page.html()), (SUMMARY, page.markdown())):
        with new_file(path) as staging:
            staging.write_text(text, encoding="utf-8")
    with new_file(SUSPECTS) as staging:
        suspects_table(run).to_csv(staging, index=False, float_format="%.6g")
    return [INDEX, SUMMARY, SUSPECTS]


def _found(poisoned: str) -> dict[str, Any]:
    """The parts of a run that are on disk and belong to the poisoned set of this digest, by their names in `Run`."""
    found: dict[str, Any] = {}
    if is_made_from(TRIGGERED, triggered_.DESCRIPTION, poisoned=poisoned):
        found["triggered"] = read_triggered(TRIGGERED, BASE)
    if is_made_from(VARIATIONS, store.MANIFEST, poisoned=poisoned):
        found["variations"], found["sampler"] = open_split(VARIATIONS, "train"), read_about(VARIATIONS)["sampler"]
    if not is_made_from(BACKDOORED, checkpoint.DESCRIPTION, poisoned=poisoned):
        return found
    present = {"poisoned": poisoned, "backdoored": checkpoint.digest_of(BACKDOORED)}
    found["model"] = read_json(BACKDOORED / checkpoint.DESCRIPTION)
    found["losses"] = load_array(TRAINING / "losses" / "losses.npy")
    curves = {"backdoored": TRAINING / "backdoored.csv"}
    if is_made_from(STUDENT, checkpoint.DESCRIPTION, backdoored=present["backdoored"]):
        curves["student"] = TRAINING / "student.csv"
    for path in sorted((TRAINING / "robust").glob("*.csv")):
        if is_made_from(ROBUST / path.stem, checkpoint.DESCRIPTION, poisoned=poisoned):
            curves[f"robust: {path.stem}"] = path
    found["curves"] = {name: pd.read_csv(path) for name, path in curves.items() if path.is_file()}
    found["scores"] = {
        folder.name: load_scores(folder)
        for folder in sorted(SCORES.glob("*"))
        if is_made_from(folder, scores_.DESCRIPTION, **present)
    }
    if is_made_from(GRADED.parent, GRADED.name, **present):
        found["metrics"], found["roc"] = read_json(METRICS), pd.read_csv(CURVES / "roc.csv")
    return found


if __name__ == "__main__":
    run_stage("report", main)
