"""Grade models and scores: beside `stress` and the report the only stage that reads the truth. What a run lacks is left out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from common import (
    BACKDOORED,
    BASE,
    CLEAN,
    CURVES,
    GRADED,
    INPUT_SCORES,
    METRICS,
    PURIFIED,
    ROBUST,
    SCORES,
    STRESS,
    STUDENT,
    TRIGGERED,
    TRUTH,
    VERDICTS,
    run_stage,
)

import numpy as np
import pandas as pd

import stress_settings
from detect import settings
from kept_rounds import ROUNDS
from not_applicable import NO_SET
from parameters import Params, load_params, methods_of
from purifying import purified_of
from robust_methods import robust_of
from teacher import made_from_teacher, teacher_of
from unpoison import models
from unpoison.core.errors import UserError, file_of
from unpoison.core.files import new_folder, write_json
from unpoison.core.hyperparameters import Whole
from unpoison.core.manifest import is_made_from, made_from_of, reason_absent, typed
from unpoison.data import scores as scores_
from unpoison.data import stress as stress_
from unpoison.data import verdicts as verdicts_
from unpoison.data.imageset import ImageSet
from unpoison.data.scores import load_scores
from unpoison.data.store import open_split
from unpoison.data.stress import Stressed, load_stressed
from unpoison.data.verdicts import load_verdict
from unpoison.detection import DETECTORS
from unpoison.detection.fusion import fused
from unpoison.evaluation.grading import attack_metrics, detector_metrics, inspector_metrics, model_metrics, rounded
from unpoison.evaluation.metrics import defence_effectiveness
from unpoison.federation import kept as kept_
from unpoison.federation.kept import load_round, read_rounds
from unpoison.poisoning import triggered as triggered_
from unpoison.poisoning import truth as truth_
from unpoison.poisoning.triggered import Triggered, read_triggered
from unpoison.poisoning.truth import Truth, read_truth


def main() -> list[Path]:
    params = load_params()
    present = made_from_of(TRUTH, truth_.DESCRIPTION)
    for folder, name in ((BACKDOORED, models.DESCRIPTION), (TRIGGERED, triggered_.DESCRIPTION)):
        if not is_made_from(folder, name, **present):
            raise UserError(f"{folder}: not made from the present {TRUTH.parent}/poisoned; run the stage that makes it")
    # A trigger that was trained beside one victim says nothing about another.
    victim = made_from_of(TRIGGERED, triggered_.DESCRIPTION).get("backdoored")
    if victim not in (None, models.digest_of(BACKDOORED)):
        raise UserError(
            f"{TRIGGERED}: its triggers were not trained beside the present {BACKDOORED}; run the stage that makes it"
        )
    test = open_split(BASE, "test")
    truth = read_truth(TRUTH, classes=len(test.classes))
    triggered = read_triggered(TRIGGERED, BASE)
    if list(triggered) != ([] if truth is None else truth.names):
        raise UserError(f"{TRIGGERED}: not of the triggers that {TRUTH} knows; run the stage that makes it")
    present["backdoored"] = models.digest_of(BACKDOORED)

    def grade(folder: Path) -> dict[str, Any]:
        model = models.load(folder, test)
        try:
            graded = model_metrics(model, test, truth, triggered)
        except UserError as error:
            raise UserError(f"{folder}: {error}") from None
        if collapsed := graded.get("collapsed"):
            print(
                f"evaluate: {folder} predicts {test.classes[collapsed['class']]} for {collapsed['share']:.1%} of the clean "
                "test images: a collapse, of which ASR and RA say nothing",
                flush=True,
            )
        return graded

    metrics: dict[str, Any] = {} if truth is None else {"attack": attack_metrics(truth, triggered)}
    metrics["backdoored"] = grade(BACKDOORED)

    def grade_in_its_place(folder: Path) -> dict[str, Any]:
        graded = grade(folder)
        return graded | defence_effectiveness(metrics["backdoored"], graded)

    if _is_there(CLEAN, models.DESCRIPTION, base=test.digest):
        metrics["clean"] = grade(CLEAN)
    if _is_there(STUDENT, models.DESCRIPTION, **made_from_teacher(teacher_of(params), present["poisoned"])):
        metrics["student"] = grade_in_its_place(STUDENT)
    for family, folders in _families(params, present).items():
        if folders:
            metrics[family] = {name: grade_in_its_place(folder) for name, folder in folders.items()}
    for name, values in metrics.get("purified", {}).items():
        values.update(_passes(PURIFIED / name))
    for name, values in metrics.get("robust", {}).items():
        values.update(_found(ROBUST / name))
    stressed = _stressed(params, list(metrics.get("purified", ())), present)
    for name, tests in stressed.items():
        metrics["purified"][name].update(tests.figures)
    detectors = {name: SCORES / name for name in methods_of(params, "detect", DETECTORS)}
    count = None if truth is None else len(truth.mask)
    there = {n: f for n, f in detectors.items() if _is_there(f, scores_.DESCRIPTION, **present)}
    scores = {name: load_scores(folder, method=name, count=count) for name, folder in there.items()}
    if (together := fused(scores)) is not None:
        scores["fusion"] = together
    graded, curves, intervals = detector_metrics(scores, None if truth is None else truth.mask)
    if graded:
        metrics["detection"] = graded
    graded, ends = _inputs(params, test, triggered, present)
    if graded:
        metrics["inputs"] = graded
    intervals = intervals.join(ends.drop(columns="level").add_prefix("inputs."))
    folders = {name: VERDICTS / name for name in settings(params).models}
    there = {n: f for n, f in folders.items() if _is_there(f, verdicts_.DESCRIPTION, **present)}
    if there:
        verdicts = {name: load_verdict(f, method=name, classes=len(test.classes)) for name, f in there.items()}
        metrics["models"] = inspector_metrics(verdicts, truth)
    write_json(METRICS, rounded(metrics))
    with new_folder(CURVES) as staging:
        curves.round(6).to_csv(staging / "roc.csv", index=False)
        intervals.round(6).to_csv(staging / "intervals.csv", index=False)
        _lines(stressed).round(6).to_csv(staging / "connectivity.csv", index=False)
        _rounds(test, truth, triggered, present).round(6).to_csv(staging / "rounds.csv", index=False)
    # The metrics hold figures only; a file beside them records the artefacts that they were measured on.
    write_json(GRADED, {"made_from": present})
    return [METRICS, CURVES, GRADED]


def _inputs(
    params: Params, test: ImageSet, triggered: dict[str, Triggered], present: dict[str, str]
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Metrics of the detectors of test inputs, by detector, and their intervals: triggered images are among clean ones."""
    folders = {name: INPUT_SCORES / name for name in settings(params).inputs}
    there = {n: f for n, f in folders.items() if _is_there(f, scores_.DESCRIPTION, **present)}
    triggered_images = np.arange(len(test) + sum(map(len, triggered.values()))) >= len(test)
    scores = {name: load_scores(folder, method=name, count=len(triggered_images)) for name, folder in there.items()}
    graded, _, intervals = detector_metrics(scores, triggered_images)
    return graded, intervals


def _passes(folder: Path) -> dict[str, int]:
    """`passes`, the images that a purifier passed forward and backward, where its model says so."""
    passes = models.read_about(folder).made_by.get("passes")
    if not isinstance(passes, dict) or "backward" not in passes:
        return {}
    with file_of(folder / models.DESCRIPTION):
        return {"passes": typed("made_by.passes.backward", passes["backward"], Whole)}


def _found(folder: Path) -> dict[str, dict[str, float]]:
    """`found`, figures of what a robust training came upon, where its model says any."""
    found = models.read_about(folder).made_by.get("found")
    with file_of(folder / models.DESCRIPTION):
        return {} if found is None else {"found": typed("made_by.found", found, dict[str, float])}


def _stressed(params: Params, purified: list[str], present: dict[str, str]) -> dict[str, Stressed]:
    """The stress tests of those of the purified models that were tested, by method."""
    found = {}
    for name in stress_settings.settings(params).methods:
        folder, inputs = STRESS / name, dict(present)
        if name in purified:
            inputs["purified"] = models.digest_of(PURIFIED / name)
            if _is_there(folder, stress_.DESCRIPTION, **inputs):
                found[name] = load_stressed(folder, method=name)
    return found


def _lines(stressed: dict[str, Stressed]) -> pd.DataFrame:
    """ACC and ASR between each tested model and the backdoored one: `t`, and `METHOD.acc` and `METHOD.asr` for each."""
    places: list[float] = []
    columns: dict[str, list[float]] = {}
    for name, tests in stressed.items():
        places = places or tests.line.t
        if tests.line.t != places:
            raise UserError(
                f"{STRESS / name}: {len(tests.line.t)} places on the line, allowed: those of the other models, "
                f"{len(places)}; run the stage again"
            )
        columns[f"{name}.acc"] = tests.line.acc
        if tests.line.asr:
            columns[f"{name}.asr"] = tests.line.asr
    return pd.DataFrame({"t": places, **columns})


def _rounds(
    test: ImageSet, truth: Truth | None, triggered: dict[str, Triggered], present: dict[str, str]
) -> pd.DataFrame:
    """`round`, `acc` and `asr` of the victim after each round that is kept; no row where no federation trained him."""
    rows: list[dict[str, float]] = []
    if (ROUNDS / kept_.DESCRIPTION).is_file() and (numbers := read_rounds(ROUNDS)):
        for number in numbers if _is_there(ROUNDS, kept_.DESCRIPTION, **present) else []:
            # A network each time, as what is folded for a forward pass is kept with it.
            model = models.load(BACKDOORED, test)
            load_round(ROUNDS, number, model)
            graded = model_metrics(model, test, truth, triggered)
            rows.append({"round": number, **{key: graded[key] for key in ("acc", "asr") if key in graded}})
    return pd.DataFrame(rows, columns=list(rows[0]) if rows else ["round", "acc", "asr"])


def _families(params: Params, present: dict[str, str]) -> dict[str, dict[str, Path]]:
    """Folders of the models that belong to this run, by family, as it is named in the metrics, and by method."""
    purified = {name: PURIFIED / name for name in purified_of(params)}
    robust = {name: ROBUST / name for name in robust_of(params)}
    of_model, of_data = {"backdoored": present["backdoored"]}, {"poisoned": present["poisoned"]}
    return {
        "purified": {n: f for n, f in purified.items() if _is_there(f, models.DESCRIPTION, **of_model)},
        "robust": {n: f for n, f in robust.items() if _is_there(f, models.DESCRIPTION, **of_data)},
    }


def _is_there(folder: Path, name: str, **inputs: str) -> bool:
    """Whether an artefact is there and belongs to this run; prints a line where it belongs to another."""
    there = is_made_from(folder, name, **inputs)
    if not there and (because := reason_absent(folder)) == NO_SET:
        print(f"evaluate: {folder}: {because}", flush=True)
    elif not there and (folder / name).is_file():
        print(f"evaluate: {folder} is of another run, left out", flush=True)
    return there


if __name__ == "__main__":
    run_stage("evaluate", main)
