"""Write the report of what there is: `reports/index.html` (one file), `reports/summary.md`, lists, cards."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from common import (
    BACKDOORED,
    BASE,
    BIAS,
    CLEAN,
    CURVES,
    FIGURES,
    GRADED,
    METRICS,
    POISONED,
    PURIFIED,
    ROBUST,
    SCORES,
    STUDENT,
    TRAINING,
    TRIGGERED,
    TRUTH,
    VARIATIONS,
    VERDICTS,
    run_stage,
)

import numpy as np

from canary import CALIBRATION
from canary import TRUTH as CANARIES
from examine import PROBLEMS, other_splits
from not_applicable import NO_SET
from parameters import Params, checked, load_params, section
from teacher import made_from_teacher, teacher_of
from unpoison.core.files import new_file, new_folder, sha256_file
from unpoison.core.manifest import is_made_from, made_from_of, reason_absent
from unpoison.data import bias as bias_
from unpoison.data import drawings as drawings_
from unpoison.data import problems as problems_
from unpoison.data import scores as scores_
from unpoison.data import store
from unpoison.data import verdicts as verdicts_
from unpoison.data.bias import load_bias
from unpoison.data.drawings import Drawing, load_drawing
from unpoison.data.imageset import ImageSet
from unpoison.data.problems import load_problems
from unpoison.data.scores import load_scores
from unpoison.data.store import open_poisoned, open_split, read_about, read_sources
from unpoison.data.texts import read_vocabulary
from unpoison.data.verdicts import load_verdict
from unpoison.models import checkpoint
from unpoison.poisoning import triggered as triggered_
from unpoison.poisoning import truth as truth_
from unpoison.poisoning.triggered import read_triggered
from unpoison.poisoning.truth import read_truth
from unpoison.reporting import inputs
from unpoison.reporting.answer import answer_text, kept_and_removed
from unpoison.reporting.audit import read_rates
from unpoison.reporting.cards import cards
from unpoison.reporting.metrics import read_metrics
from unpoison.reporting.pictures import suspects_csv
from unpoison.reporting.problems import problems_csv
from unpoison.reporting.run import Examined, ReportSettings, Run
from unpoison.reporting.sections import report
from unpoison.reporting.suspicion import Round

INDEX, SUMMARY = Path("reports/index.html"), Path("reports/summary.md")
SUSPECTS, LISTED = Path("reports/suspects.csv"), Path("reports/problems.csv")
CARDS = Path("reports/cards")
ANSWER, KEPT, REMOVED = Path("reports/answer.txt"), Path("reports/kept.txt"), Path("reports/removed.txt")
MODELS = BACKDOORED.parent
RATES = Path("bench/results/audit.csv")


def settings(params: Params) -> ReportSettings:
    return ReportSettings(**checked(params, "report", ReportSettings))


def main() -> list[Path]:
    params = load_params()
    data = open_poisoned(BASE, POISONED)
    about, sources = read_about(BASE), read_sources(BASE, "train")
    truth = read_truth(TRUTH, poisoned=data)
    run = Run(
        settings=settings(params),
        data=data,
        about=about,
        sources=sources,
        truth=truth,
        chance=_chance(),
        rates=read_rates(RATES),
        vocabulary=read_vocabulary(BASE),
        **_found(data, truth is not None, teacher_of(params)),
        levels_by=section(params, "detect").get("methods") or [],
        calibration=_calibration(data, section(params, "detect").get("canary") or []),
    )
    page = report(run)
    texts = {INDEX: page.html(), SUMMARY: page.markdown(), SUSPECTS: suspects_csv(run), LISTED: problems_csv(run)}
    texts[KEPT], texts[REMOVED] = kept_and_removed(run)
    texts[ANSWER] = answer_text(run)
    with new_folder(CARDS) as staging:
        for name, text in cards(run).items():
            (staging / name).write_text(text, encoding="utf-8", newline="\n")
        write_together(texts)
    return [*texts, CARDS]


def write_together(texts: Mapping[Path, str]) -> None:
    """Write files that belong together: all are whole under temporary names before the first one takes its place."""
    with ExitStack() as stack:
        for path, text in texts.items():
            stack.enter_context(new_file(path)).write_text(text, encoding="utf-8", newline="\n")


def _chance() -> float:
    """The share of the most frequent class among the test images, 0 of none."""
    labels = open_split(BASE, "test").labels
    return float(np.bincount(labels).max() / len(labels)) if len(labels) else 0.0


def _model(folder: Path) -> dict[str, Any]:
    """The description of a model, as the page takes it."""
    about = checkpoint.read_about(folder)
    inputs.check_made_by(folder / checkpoint.DESCRIPTION, about.made_by)
    return about.model_dump()


def _drawings(present: dict[str, str]) -> dict[str, Drawing]:
    """The figures of this run's models by name; one of a model that was made anew since is left out."""
    found = {}
    for folder in sorted(path.parent for path in FIGURES.glob(f"*/{drawings_.DESCRIPTION}")):
        others = {
            key: digest for key, digest in made_from_of(folder, drawings_.DESCRIPTION).items() if key not in present
        }
        now = {
            key: checkpoint.digest_of(MODELS / key)
            for key in others
            if (MODELS / key / checkpoint.DESCRIPTION).is_file()
        }
        if is_made_from(folder, drawings_.DESCRIPTION, **present) and now == others:
            found[folder.name] = load_drawing(folder, figure=folder.name)
    return found


def _examined(data: ImageSet) -> Examined:
    """The problems that `examine` found, with the images that they are of."""
    others = other_splits()
    splits = {"train": len(data), **{name: len(images) for name, images in others.items()}}
    problems = load_problems(PROBLEMS, splits=splits, classes=len(data.classes))
    sources = [name for split in splits for name in read_sources(BASE, split)]
    return Examined(problems, data.followed_by(*others.values()), sources, splits)


def _calibration(data: ImageSet, rounds: list[int]) -> list[Round]:
    """What the detectors say of canaries, of those rounds whose canaries were planted in this set."""
    found = []
    for folder in (CALIBRATION / str(number) for number in rounds):
        if is_made_from(folder / CANARIES, truth_.DESCRIPTION, poisoned=data.digest):
            truth = read_truth(folder / CANARIES, classes=len(data.classes))
            scored = sorted(path.parent for path in folder.glob(f"*/{scores_.DESCRIPTION}"))
            assert truth is not None  # planted here, and so known
            found.append(Round(truth, {path.name: load_scores(path, count=len(data)) for path in scored}))
    return found


def _found(data: ImageSet, attacked: bool, teacher: Path) -> dict[str, Any]:
    """The parts of a run that are on disk and belong to this poisoned set, by their names in `Run`."""
    found: dict[str, Any] = {}
    poisoned = data.digest
    if is_made_from(BIAS, bias_.DESCRIPTION, base=sha256_file(BASE / store.MANIFEST)):
        found["attributes"] = load_bias(BIAS, image_shape=data.base.shape[1:])
    if is_made_from(TRIGGERED, triggered_.DESCRIPTION, poisoned=poisoned):
        found["triggered"] = read_triggered(TRIGGERED, BASE)
    if is_made_from(VARIATIONS, store.MANIFEST, poisoned=poisoned):
        found["variations"] = open_split(VARIATIONS, "train")
        found["sampler"] = inputs.sampler_of(VARIATIONS / store.MANIFEST, found["variations"], data)
    if not is_made_from(BACKDOORED, checkpoint.DESCRIPTION, poisoned=poisoned):
        return found
    present = {"poisoned": poisoned, "backdoored": checkpoint.digest_of(BACKDOORED)}
    if is_made_from(PROBLEMS, problems_.DESCRIPTION, **present):
        found["examined"] = _examined(data)
    found["model"] = _model(BACKDOORED)
    found["losses"] = inputs.read_losses(TRAINING / "losses" / "losses.npy", data)
    curves, trained = {"backdoored": TRAINING / "backdoored.csv"}, dict[str, Path]()
    if is_made_from(CLEAN, checkpoint.DESCRIPTION, base=sha256_file(BASE / store.MANIFEST)):
        curves["clean"] = TRAINING / "clean.csv"
    if is_made_from(STUDENT, checkpoint.DESCRIPTION, **made_from_teacher(teacher, poisoned)):
        curves["student"], trained["student"] = TRAINING / "student.csv", STUDENT
        found["teacher"] = "" if teacher == BACKDOORED else str(teacher)
    for path in sorted((TRAINING / "robust").glob("*.csv")):
        if is_made_from(ROBUST / path.stem, checkpoint.DESCRIPTION, poisoned=poisoned):
            curves[f"robust: {path.stem}"], trained[f"robust: {path.stem}"] = path, ROBUST / path.stem
    purified = {f"purified: {folder.name}": folder for folder in sorted(PURIFIED.glob("*"))}
    purified = {
        name: folder
        for name, folder in purified.items()
        if is_made_from(folder, checkpoint.DESCRIPTION, backdoored=present["backdoored"])
    }
    found["defended"] = {name: _model(folder) for name, folder in (trained | purified).items()}
    found["curves"] = {
        name: inputs.read_curve(path, ["epoch", "accuracy"], shares=["accuracy"])
        for name, path in curves.items()
        if path.is_file()
    }
    found["scores"] = {}
    found["not_applicable"] = [folder.name for folder in sorted(SCORES.glob("*")) if reason_absent(folder) == NO_SET]
    for folder in sorted(SCORES.glob("*")):
        if is_made_from(folder, scores_.DESCRIPTION, **present):
            found["scores"][folder.name] = load_scores(folder, method=folder.name, count=len(data))
            inputs.check_masks(folder, found["scores"][folder.name], data)
    found["verdicts"] = {}
    for folder in sorted(VERDICTS.glob("*")):
        if is_made_from(folder, verdicts_.DESCRIPTION, **present):
            verdict = load_verdict(folder, method=folder.name, classes=len(data.classes))
            inputs.check_patches(folder, verdict, data)
            found["verdicts"][folder.name] = verdict
    found["drawings"] = _drawings(present)
    if is_made_from(GRADED.parent, GRADED.name, **present):
        found["metrics"] = read_metrics(METRICS, len(data.classes), attacked=attacked)
        found["roc"] = inputs.read_roc(CURVES / "roc.csv")
        found["intervals"] = inputs.read_intervals(CURVES / "intervals.csv")
        found["line"] = inputs.read_line(CURVES / "connectivity.csv")
        found["rounds"] = inputs.read_rounds(CURVES / "rounds.csv")
    return found


if __name__ == "__main__":
    run_stage("report", main)
