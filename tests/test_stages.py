"""The stages in this process on a tiny project: bad input, switched-off branches, other attacks, artefacts of another run."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import code_file, run_stage

import numpy as np
import pytest
import torch

import inspect_model
import poison
import purify
import purify_by
import report
import stress
import visualise
from by_artefact import read_scored
from detect import read_suspect
from parameters import load_params
from tiny import ENVIRONMENT, ROOT, TINY, copy_project, digests, run, run_any, run_stages, write_params
from unpoison import models
from unpoison.core.content_store import ContentStore
from unpoison.core.errors import UserError
from unpoison.core.files import read_json, sha256_file, write_json
from unpoison.data.scores import load_scores
from unpoison.data.store import open_poisoned, open_split
from unpoison.data.stress import load_stressed
from unpoison.data.verdicts import load_verdict
from unpoison.detection import DETECTORS
from unpoison.detection.sample import draw_sample
from unpoison.evaluation.metrics import detection_metrics
from unpoison.robust import abl, losses
from unpoison.training import loop
from unpoison.training.loop import History


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the artefacts of one tiny run, all stages in this process."""
    folder = tmp_path_factory.mktemp("stages") / "run"
    folder.mkdir()
    write_params(folder, TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_stages()
    return folder


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, and the working directory."""
    folder = copy_project(made, tmp_path / "copy")
    monkeypatch.chdir(folder)
    return folder


def metrics_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "reports/metrics.json").read_text()))


def test_run_again_gives_the_same_bytes(project: Path) -> None:
    before = digests(project)
    shutil.rmtree(project / ".unpoison")
    run_stages()
    assert digests(project) == before


def test_stages_say_what_they_made_from_what(project: Path) -> None:
    poisoned = read_json(project / "data/truth/truth.json")["made_from"]
    backdoored = read_json(project / "models/backdoored/model.json")
    assert backdoored["made_from"] == poisoned
    assert backdoored["made_by"]["recipe"]["epochs"] == 2
    weights = backdoored["files"]["model.safetensors"]
    of_both = ["data/scores/cd/scores.json", "data/features/training/features.json", "data/graded.json"]
    for name in (*of_both, "data/verdicts/neural_cleanse/verdict.json"):
        assert read_json(project / name)["made_from"] == {**poisoned, "backdoored": weights}
    assert read_json(project / "models/student/model.json")["made_from"]["backdoored"] == weights
    given = load_params(project)["params/purifiers.yaml"]["fst"]
    assert "alpha" in given
    assert read_json(project / "models/purified/fst/model.json")["made_by"]["parameters"] == given


def test_a_lower_rate_generates_what_changed(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_params(project, {**TINY, "attack.poison_rate": 0.02})
    run_stages("poison", "generate_variations")
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("generate_variations:"))
    # Fourteen of eighteen poisoned samples are clean again; four stay as they were.
    assert line.startswith("generate_variations: 14 of 200 images generated")
    assert "186 (93.0%) from the store" in line


def test_artefacts_of_another_run_are_not_graded(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_params(project, {**TINY, "attack.poison_rate": 0.05})
    run_stages("poison")
    with pytest.raises(UserError, match=r"models/backdoored: not made from the present data/poisoned"):
        run_stages("evaluate")
    run_stages("report")
    page = (project / "reports/index.html").read_text()
    assert "No model of this run was graded" in page
    assert "Most suspicious samples" not in page
    run_stages("train_backdoored", "stamp_test", "evaluate", "report")
    said = capsys.readouterr().out
    for folder in ("models/student", "models/purified/fst", "data/scores/cd", "data/verdicts/neural_cleanse"):
        assert f"evaluate: {folder} is of another run, left out" in said
    assert set(metrics_of(project)) == {"attack", "backdoored"}
    assert "student" not in (project / "reports/summary.md").read_text()


def test_after_detection_alone_the_report_shows_detection(project: Path) -> None:
    # What a clone has after `dvc exp run detect`: no triggered test, no purified model, metrics of the committed run.
    for name in (
        "models/student",
        "models/purified",
        "models/prior",
        "data/variations",
        "data/triggered",
        "data/graded.json",
    ):
        path = project / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    run_stages("report")
    page = (project / "reports/index.html").read_text()
    assert "Most suspicious samples" in page
    assert "No model of this run was graded" in page
    assert "variation" not in page.split("The same images")[1].split("Scores")[0]
    run_stages("stamp_test", "evaluate", "report")
    metrics = metrics_of(project)
    assert set(metrics) == {"attack", "backdoored", "detection", "inputs", "models"}
    columns = (project / "reports/curves/intervals.csv").read_text().splitlines()[0].split(",")
    figures = [f"{name}.auroc" for name in metrics["detection"]] + [
        f"inputs.{name}.auroc" for name in metrics["inputs"]
    ]
    assert set(figures) <= set(columns)


def test_a_prior_of_the_suspect_set(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for images in ("data/base/reserve", "data/poisoned"):
        write_params(project, {**TINY, "prior.images": images})
        run_stages("check_params", "train_prior", "generate_variations", "report")
        # Of other images it is another prior, and no variation of the one before is taken for its own.
        assert "0 (0.0%) from the store" in capsys.readouterr().out
        digests = {
            "reserve": sha256_file(Path("data/base/manifest.json")),
            "poisoned": open_poisoned(Path("data/base"), Path("data/poisoned")).digest,
        }
        name = Path(images).name
        assert read_json(project / "models/prior/model.json")["made_from"] == {name: digests[name]}
        warned = "The prior was trained on the suspect set" in Path("reports/summary.md").read_text()
        assert warned == (images == "data/poisoned")
    # It belongs to that set alone, and to these images.
    write_params(project, {**TINY, "prior.images": "data/base/public"})
    with pytest.raises(UserError, match=r"models/prior/model\.json: made from another public"):
        run_stages("generate_variations")
    write_params(project, {**TINY, "prior.images": "data/poisoned", "attack.poison_rate": 0.2})
    run_stages("check_params", "poison")
    with pytest.raises(UserError, match=r"models/prior/model\.json: made from another poisoned"):
        run_stages("generate_variations")
    write_params(project, {**TINY, "prior.images": "data/base/test"})
    with pytest.raises(
        UserError,
        match=r"prior\.images: 'data/base/test' given, allowed: data/base/public, data/base/reserve, data/poisoned$",
    ):
        run_stages("check_params")


def test_detectors_may_score_a_sample(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_params(project, {**TINY, "detect.sample": 60})
    run_stages("check_params", "detect@cd", "evaluate", "report")
    assert "detect@cd: 60 of 200 samples, 5 forward passes each" in capsys.readouterr().out
    data, scores = (
        open_poisoned(Path("data/base"), Path("data/poisoned")),
        load_scores(Path("data/scores/cd"), count=200),
    )
    index = draw_sample(data.labels, 60, seed=0)
    assert scores.index is not None
    assert scores.index.tolist() == index.tolist()
    # The detector is that of any other run, on the sample as a set of its own.
    arguments = read_json(project / "data/scores/cd/scores.json")["parameters"]
    alone = DETECTORS["cd"].score(read_suspect(ContentStore(None)).subset(index), seed=0, **arguments)
    assert scores.values.tobytes() == alone.values.tobytes()
    assert scores.aux["index"].tolist() == index[alone.aux["index"]].tolist()
    poisoned = np.load("data/truth/mask.npy")[index]
    graded = metrics_of(project)["detection"]["cd"]
    assert (graded["scored"], graded["scored_poisoned"]) == (60, poisoned.sum())
    assert graded["auroc"] == pytest.approx(detection_metrics(alone.values, poisoned)["auroc"], abs=1e-6)
    assert (
        f"of 60 scored samples (of 200), {poisoned.sum()} of them poisoned"
        in (project / "reports/summary.md").read_text()
    )
    assert len((project / "reports/suspects.csv").read_text().splitlines()) == 61
    # More than `check_params` can know to be too many for a folder, say.
    write_params(project, {**TINY, "detect.sample": 201})
    for stage in ("check_params", "detect@cd"):
        with pytest.raises(
            UserError, match=r"^params\.yaml: detect\.sample: 201 given, allowed: at most 200, the train"
        ):
            run_stages(stage)
    assert len(load_scores(Path("data/scores/cd")).values) == 60


def test_a_model_is_inspected(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = {"params/detectors.yaml:mm_bd.images": 1, "params/detectors.yaml:mm_bd.steps": 2}
    write_params(project, {**TINY, **own, "detect.models": ["mm_bd", "neural_cleanse"]})
    run_stages("check_params", "inspect_model@mm_bd", "evaluate", "report")
    said = capsys.readouterr().out
    verdict = load_verdict(Path("data/verdicts/mm_bd"), method="mm_bd", classes=10)
    flagged = np.flatnonzero(verdict.flagged)
    assert f"inspect_model@mm_bd: 40 passes; flagged: {flagged[0] if len(flagged) else 'no class'}\n" in said
    graded = metrics_of(project)["models"]
    assert graded["mm_bd"] == {
        "anomaly": pytest.approx(verdict.anomaly.max(), abs=1e-5),
        "passes": 40,
        "flagged": len(flagged),
        "hit": int(0 in flagged),
        "false_alarms": len(set(flagged) - {0}),
    }
    assert set(graded) == {"mm_bd", "neural_cleanse"}
    assert "| mm_bd |" in (project / "reports/summary.md").read_text().replace("\\", "")
    with pytest.raises(UserError, match=r"^params\.yaml: detect\.models: 'cd' given, allowed: neural_cleanse, mm_bd$"):
        inspect_model.main("cd")


BY: dict[str, Any] = {
    "purify.by": {"dbr": "scores/cd", "nc_unlearn": "verdicts/neural_cleanse"},
    "params/purifiers.yaml:dbr.epochs": 1,
    "params/purifiers.yaml:nc_unlearn.epochs": 1,
}


def test_robust_methods(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {"robust.methods": ["abl"], "robust.by": {"filter_retrain": "scores/cd"}}
    chosen["robust.model"] = {"name": "compact", "width": 8}
    own = {
        f"params/robust.yaml:abl.{key}": value for key, value in {"isolation_epochs": 1, "unlearn_epochs": 1}.items()
    }
    write_params(project, {**TINY, **chosen, **own, "params/robust.yaml:filter_retrain.removed": 0.1})
    run_stages("check_params", "train_robust_by@filter_retrain")
    # Killed in its second training of three, whose first is not done again.
    fit, trained = loop.fit, list[str]()

    def killed(*arguments: Any, what: str, **keywords: Any) -> History:
        trained.append(what)
        history = fit(*arguments, what=what, **keywords)
        if what == "abl/training":
            raise KeyboardInterrupt
        return history

    for module in (abl, losses):
        monkeypatch.setattr(module, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        run_stages("train_robust@abl")
    for module in (abl, losses):
        monkeypatch.setattr(module, "fit", fit)
    run_stages("train_robust@abl", "evaluate", "report")
    assert trained == ["abl/isolation", "abl/training"]
    assert not (project / ".unpoison/train_robust_abl").exists(), "checkpoints are removed at the end"
    assert set(metrics_of(project)["robust"]) == {"abl", "filter_retrain"}
    summary = (project / "reports/summary.md").read_text()
    assert "| robust: filter_retrain |" in summary
    assert "| network of robust: abl | name compact, width 8" in summary
    # The student's is the victim's, which the page names as that of the run.
    assert "network of student" not in summary
    about = {name: read_json(project / f"models/robust/{name}/model.json") for name in ("abl", "filter_retrain")}
    assert [model["network"]["name"] for model in about.values()] == ["compact", "compact"]
    received = about["abl"]["made_from"]
    assert about["filter_retrain"]["made_from"] == {
        **received,
        "scores": sha256_file(project / "data/scores/cd/scores.json"),
    }
    assert about["filter_retrain"]["made_by"]["stage"] == "train_robust_by@filter_retrain"
    # What a method says that it found is graded with its model.
    about["abl"]["made_by"]["found"] = {"suspects": 0.25}
    write_json(project / "models/robust/abl/model.json", about["abl"])
    run_stages("evaluate")
    assert metrics_of(project)["robust"]["abl"]["found"] == {"suspects": 0.25}
    about["abl"]["made_by"]["found"] = {"suspects": "many"}
    write_json(project / "models/robust/abl/model.json", about["abl"])
    with pytest.raises(UserError, match=r"^models/robust/abl/model.json: made_by.found: .*'many'"):
        run_stages("evaluate")


def test_a_student_of_another_network_and_another_teacher(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    victim = read_json(project / "models/student/model.json")["made_from"]
    write_params(project, {**TINY, "distill.model": {"name": "compact", "width": 8}})
    run_stages("distill_student")
    about = read_json(project / "models/student/model.json")
    assert (about["network"]["name"], about["made_from"]) == ("compact", victim)
    # A teacher from elsewhere is of images of another size; its student is for those of the run.
    classes = open_split(Path("data/base"), "train").classes
    description = project / "teacher/model.json"

    def save(classes: tuple[str, ...]) -> None:
        teacher = models.build("compact", num_classes=10, image_size=40, width=8)
        models.save(teacher, description.parent, classes=classes, made_by={})

    save(classes)
    write_params(project, {**TINY, "distill.teacher": "teacher"})
    run_stages("distill_student", "evaluate")
    about = read_json(project / "models/student/model.json")
    assert about["network"]["name"] == "compact"
    assert about["network"]["image_size"] == [32, 32]
    assert about["made_from"] == {
        "variations": victim["variations"],
        "public": sha256_file(Path("data/base/manifest.json")),
        **read_json(project / "data/truth/truth.json")["made_from"],
        "teacher": sha256_file(description),
    }
    assert "student" in metrics_of(project)
    received = open_poisoned(Path("data/base"), Path("data/poisoned"))
    run_stages("report")
    summary = (project / "reports/summary.md").read_text()
    assert "| teacher of student | teacher |" in summary
    assert "| network of student | name compact, width 8" in summary
    assert "student" in report._found(received, True, Path("teacher"))["curves"]
    assert "student" not in report._found(received, True, Path("models/backdoored"))["curves"]
    # Another teacher in the same folder: the student that lies there is not his.
    save(classes[::-1])
    run_stages("evaluate")
    assert "evaluate: models/student is of another run, left out" in capsys.readouterr().out
    before = digests(project)
    with pytest.raises(UserError, match=r"^teacher/model\.json: a model for the classes '9', '8', .*, the data have"):
        run_stages("distill_student")
    assert digests(project) == before


def test_purifiers_that_build_on_scores_or_a_verdict(project: Path) -> None:
    write_params(project, {**TINY, **BY})
    run_stages("check_params", "purify_by@dbr", "purify_by@nc_unlearn", "evaluate", "report")
    assert list(metrics_of(project)["purified"]) == ["dbr", "fst", "nc_unlearn"]
    assert "| purified: nc_unlearn |" in (project / "reports/summary.md").read_text()
    about = {name: read_json(project / f"models/purified/{name}/model.json") for name in ("fst", "dbr", "nc_unlearn")}
    both = about["fst"]["made_from"]
    assert about["dbr"]["made_from"] == {**both, "scores": sha256_file(project / "data/scores/cd/scores.json")}
    verdict = project / "data/verdicts/neural_cleanse/verdict.json"
    assert about["nc_unlearn"]["made_from"] == {**both, "verdicts": sha256_file(verdict)}
    # 5 % and 20 % of the 200 samples, forward and back; the reserve before and after the epoch, and for its divergence.
    assert about["dbr"]["made_by"]["stage"] == "purify_by@dbr"
    assert about["dbr"]["made_by"]["passes"] == {"forward": 10 + 40 + 3 * 60, "backward": 10 + 40}
    # Of a sample of 60 with their own scores.
    write_params(project, {**TINY, **BY, "detect.sample": 60})
    run_stages("check_params", "detect@cd", "purify_by@dbr")
    sampled = read_json(project / "models/purified/dbr/model.json")
    assert sampled["made_by"]["passes"] == {"forward": 3 + 12 + 3 * 60, "backward": 3 + 12}
    scored, every = (
        read_scored(Path("data/scores/cd")),
        open_poisoned(Path("data/base"), Path("data/poisoned")),
    )
    index = draw_sample(every.labels, 60, seed=0)
    assert (scored.data.gather(np.arange(60)) == every.gather(index)).all()
    assert scored.data.labels.tolist() == every.labels[index].tolist()


@pytest.mark.parametrize(
    ("method", "by", "line"),
    [
        ("ft", {}, r"^params\.yaml: purify\.by: 'ft' given, allowed: dbr, unlearn, nc_unlearn$"),
        ("dbr", {}, r"^params\.yaml: purify\.by\.dbr: missing, allowed: scores/NAME$"),
        ("dbr", {"dbr": "scores/ac"}, r"^data/scores/ac/scores\.json: "),
        ("nc_unlearn", {"nc_unlearn": "verdicts/mm_bd"}, r"^data/verdicts/mm_bd/verdict\.json: "),
        ("dbr", {"dbr": "scores/cd"}, r"^data/scores/cd/scores\.json: made from another poisoned .*run the stage"),
    ],
)
def test_what_a_purifier_cannot_build_on(project: Path, method: str, by: dict[str, str], line: str) -> None:
    write_params(project, {**TINY, "purify.by": by})
    path = project / "data/scores/cd/scores.json"
    about = read_json(path)
    write_json(path, {**about, "made_from": {**about["made_from"], "poisoned": 64 * "0"}})
    before = digests(project)
    with pytest.raises(UserError, match=line):
        purify_by.main(method)
    assert digests(project) == before


def test_a_method_that_builds_on_scores_is_no_method_of_the_reserve(project: Path) -> None:
    with pytest.raises(UserError, match=r"^params\.yaml: purify\.methods: 'dbr' given, allowed: ft, lp, "):
        purify.main("dbr")


def test_figures_of_the_models(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = {"params/figures.yaml:activation.images": 20, "visualise.models": ["student", "purified/fst"]}
    write_params(project, {**TINY, **own, "visualise.figures": ["confusion", "activation"]})
    run_stages("check_params", "visualise@confusion", "visualise@activation", "report")
    said = capsys.readouterr().out
    assert "visualise@confusion: 6 pictures of backdoored, student, purified: fst; Test images by true label" in said
    about = read_json(project / "reports/figures/activation/figure.json")
    assert about["parameters"] == {"images": 20, "layer": "map"}
    assert set(about["made_from"]) == {"poisoned", "backdoored", "student", "purified/fst"}
    # Accuracy and ASR of the matrix are those that were graded.
    table = (project / "reports/figures/confusion/purified_fst.csv").read_text().splitlines()[1:]
    cells = [line.replace('"', "").split(",") for line in table]
    totals = {kind: sum(int(n) for images, *_, n in cells if images == kind) for kind in ("clean", "triggered")}
    right = sum(int(n) for images, true, predicted, n in cells if images == "clean" and true == predicted)
    target = sum(int(n) for images, _, predicted, n in cells if images == "triggered" and predicted == "0")
    fst = metrics_of(project)["purified"]["fst"]
    assert right / totals["clean"] == pytest.approx(fst["acc"], abs=1e-6)
    assert target / totals["triggered"] == pytest.approx(fst["asr"], abs=1e-6)
    page = (project / "reports/index.html").read_text()
    assert page.split("What the models do")[1].count("<img") == 7
    # A figure of a model that was made anew since is not shown, nor one of another victim.
    write_params(project, {**TINY, **own, "params/purifiers.yaml:fst.alpha": 0.5})
    run_stages("purify@fst", "report")
    assert "What the models do" not in (project / "reports/index.html").read_text()


def test_figures_of_models_that_are_not_there(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_params(project, {**TINY, "control": True, "visualise.models": ["clean"], "visualise.figures": ["neurons"]})
    # Switched off when it was last run, which the figure says.
    run_stages("visualise@neurons")
    assert "pictures of backdoored; " in (said := capsys.readouterr().out)
    assert "Without clean: control: false." in said
    write_params(project, {**TINY, "visualise.models": ["purified/fst"], "visualise.figures": ["neurons"]})
    path = project / "models/purified/fst/model.json"
    about = read_json(path)
    write_json(path, {**about, "made_from": {**about["made_from"], "backdoored": 64 * "0"}})
    with pytest.raises(UserError, match=r"^models/purified/fst/model\.json: made from another backdoored"):
        visualise.main("neurons")
    with pytest.raises(UserError, match=r"^params\.yaml: visualise\.figures: 'nonsense' given, allowed: embedding, "):
        visualise.main("nonsense")
    write_params(project, {**TINY, "visualise.models": ["purified"]})
    with pytest.raises(UserError, match=r"visualise\.models: 'purified' given, allowed: clean, student, purified/NAME"):
        visualise.main("neurons")


def test_figures_of_data_of_unknown_origin(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_params(project, {**TINY, "attack.name": "none", "visualise.figures": ["frequency", "neurons"]})
    run_stages(
        "check_params", "poison", "train_backdoored", "stamp_test", "visualise@frequency", "visualise@neurons", "report"
    )
    line = "The figure frequency is left out: it needs a trigger, and none is known."
    assert f"visualise@frequency: 0 pictures of backdoored; {line}" in capsys.readouterr().out
    page = (project / "reports/index.html").read_text().split("What the models do")[1]
    assert line in page
    assert page.count("<img") == 1
    assert not list((project / "reports/figures/frequency").glob("*.png"))


def test_a_purified_model_is_tested(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read_json(project / "models/clean/absent.json")["because"] == "control: false"
    assert (project / "reports/training/clean.csv").read_text() == "epoch,loss,accuracy,lr\n"
    assert (project / "reports/curves/connectivity.csv").read_text() == "t\n"
    before = metrics_of(project)
    assert "clean" not in before
    more = {"stress.methods": ["fst"], "stress.points": 3, "stress.epochs": 1}
    write_params(project, {**TINY, **more, "stress.reactivation": True, "stress.query_epochs": 1, "stress.images": 20})
    run_stages("check_params", "train_clean", "stress@fst", "evaluate", "report")
    tests, metrics = load_stressed(Path("data/stress/fst"), method="fst"), metrics_of(project)
    assert "stress@fst: retuned_acc" in capsys.readouterr().out
    assert set(tests.figures) == {
        *(f"retuned_{name}" for name in ("acc", "asr", "ra", "asr_clean")),
        *(f"reactivated_{name}" for name in ("asr", "asr_clean", "untriggered", "untriggered_clean")),
    }
    own = {name: pytest.approx(value, abs=1e-6) for name, value in tests.figures.items()}
    assert metrics["purified"]["fst"] == {**before["purified"]["fst"], **own}
    fst, backdoored = metrics["purified"]["fst"], metrics["backdoored"]
    rating = (max(0, backdoored["asr"] - fst["asr"]) - max(0, backdoored["acc"] - fst["acc"]) + 1) / 2
    assert fst["der"] == pytest.approx(rating, abs=1e-5)
    assert fst["passes"] == 60
    assert "asr" in metrics["clean"]
    lines = (project / "reports/curves/connectivity.csv").read_text().splitlines()
    assert lines[0] == "t,fst.acc,fst.asr"
    ends = [[float(cell) for cell in lines[row].split(",")] for row in (1, 3)]
    assert ends == [[t, values["acc"], values["asr"]] for t, values in ((0, fst), (1, backdoored))]
    summary = (project / "reports/summary.md").read_text()
    assert "| DER | retuned ASR | reactivated ASR |" in summary
    with pytest.raises(UserError, match=r"^params\.yaml: stress\.methods: 'ft' given, allowed: fst$"):
        stress.main("ft")
    # Tests of another purified model are not shown.
    write_params(project, {**TINY, **more, "params/purifiers.yaml:fst.alpha": 0.9})
    run_stages("purify@fst", "evaluate")
    assert "evaluate: data/stress/fst is of another run, left out" in capsys.readouterr().out
    assert "retuned_asr" not in metrics_of(project)["purified"]["fst"]
    # Without reactivation no clean model is asked for.
    shutil.rmtree(project / "models/clean")
    run_stages("stress@fst", "evaluate")
    assert "reactivated_asr" not in metrics_of(project)["purified"]["fst"]
    assert "retuned_asr" in metrics_of(project)["purified"]["fst"]
    # No sample is poisoned: there is nothing to attack with.
    write_params(project, {**TINY, **more, "attack.poison_rate": 0.0, "variations.enabled": False})
    run_stages("check_params", "poison", "train_backdoored", "stamp_test", "purify@fst")
    with pytest.raises(
        UserError, match=r"^params\.yaml: stress\.methods: 'fst' given, allowed for a training set without .*: \[\]$"
    ):
        run_stages("stress@fst")


def test_the_control_of_an_attack(project: Path) -> None:
    before = (project / "models/backdoored/model.safetensors").read_bytes()
    write_params(project, {**TINY, "control": True})
    run_stages("check_params", "train_clean", "evaluate", "report")
    assert read_json(project / "models/clean/model.json")["made_by"]["recipe"]["epochs"] == 2
    assert (project / "models/clean/model.safetensors").read_bytes() != before
    # ASR of a network that saw no trigger is that of the trigger itself.
    control = metrics_of(project)["clean"]
    assert set(control) >= {"acc", "asr", "ra"}
    assert "der" not in control
    line = f"Its ASR, {control['asr']:.3f}, is what the trigger does without a backdoor"
    assert line in (project / "reports/summary.md").read_text()
    # Another attack has the same one.
    path = project / "data/checked/without/control.json"
    before = path.read_bytes()
    write_params(project, {**TINY, "control": True, "attack.name": "blended", "attack.poison_rate": 0.05})
    run_stages("check_params")
    assert path.read_bytes() == before
    path.write_text('{"because": 3}')
    with pytest.raises(UserError, match=r"^data/checked/without/control\.json: because: 3 given; "):
        run_stages("train_clean")


def test_branches_that_are_off_are_left_out(project: Path) -> None:
    off = {"purify.methods": [], "detect.methods": [], "detect.inputs": [], "detect.models": []}
    write_params(project, {**TINY, **off, "variations.enabled": False})
    shutil.rmtree(project / "data/scores")
    (project / "data/scores").mkdir()
    run_stages()
    assert set(metrics_of(project)) == {"attack", "backdoored"}
    assert read_json(project / "models/student/absent.json")["because"] == "variations.enabled: false"
    assert (project / "reports/training/student.csv").read_text() == "epoch,loss,accuracy,lr\n"
    assert (project / "reports/suspects.csv").read_text().startswith('"sample","label"\n')
    for title in ("Detection", "Scores", "Most suspicious samples"):
        assert title not in (project / "reports/index.html").read_text()


def test_attack_none_needs_no_truth(project: Path) -> None:
    write_params(project, {**TINY, "attack.name": "none", "control": True})
    run_stages()
    assert set(metrics_of(project)["backdoored"]) == {"acc"}
    # Of a set of unknown origin no clean one is known.
    assert read_json(project / "models/clean/absent.json")["because"] == "attack.name: none"
    assert "detection" not in metrics_of(project)
    page = (project / "reports/index.html").read_text()
    assert "unknown origin" in page
    assert "Most suspicious samples" in page
    # A verdict needs no truth; whether it is right is not said.
    assert set(metrics_of(project)["models"]["neural_cleanse"]) == {"flagged", "anomaly", "passes"}
    assert "Models inspected" in page
    assert "ROC," not in page
    assert "The trigger at the test" not in page


def test_a_parameter_of_the_test_trains_nothing_again(project: Path) -> None:
    write_params(project, {**TINY, "attack.name": "sig"})
    run_stages("check_params", "poison", "stamp_test")
    before = digests(project)
    write_params(project, {**TINY, "attack.name": "sig", "params/attacks.yaml:sig.test_delta": 60.0})
    run_stages("check_params", "poison", "stamp_test")
    changed = {name for name, digest in digests(project).items() if before.get(name) != digest}
    assert changed
    # What `train_backdoored` depends on stays byte for byte.
    assert not [
        name for name in changed if name.startswith(("data/poisoned", "data/attacker/training", "data/checked"))
    ]
    assert [name for name in changed if name.startswith("data/triggered")]


def test_triggers_stamped_in_training(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (project / "models/backdoored/model.safetensors").read_bytes()
    write_params(project, {**TINY, "attack.random_poisoning": True, "attack.poison_first": False})
    run_stages("check_params", "poison", "train_backdoored", "stamp_test", "evaluate", "report")
    assert "a snapshot: triggers are stamped in training" in capsys.readouterr().out
    assert (project / "models/backdoored/model.safetensors").read_bytes() != before
    assert "in one draw: triggers are stamped in training" in (project / "reports/summary.md").read_text()


def test_an_attacker_who_trains_the_victim(project: Path) -> None:
    write_params(project, {**TINY, "attack.name": "wanet", "variations.enabled": False})
    run_stages("check_params", "poison", "train_backdoored", "stamp_test", "evaluate", "report")
    truth = read_json(project / "data/truth/truth.json")
    assert truth["controlled"]
    assert truth["counts"]["cover"] == 2 * truth["counts"]["poisoned"]
    # His trigger was final before the training, and the artefact of trained ones is that of any other attack.
    trained = read_json(project / "data/attacker/trained/attacker.json")
    assert (trained["triggers"], trained["made_from"]) == ([], {})
    assert read_json(project / "data/attacker/training/attacker.json")["parts"]
    assert not list((project / ".unpoison").glob("backdoored/*")), "checkpoints are removed at the end"
    graded = metrics_of(project)["backdoored"]
    assert 0 <= graded["asr"] <= 1
    assert 0 <= graded["cross_acc"] <= 1
    assert "Cross ACC: share" in (project / "reports/summary.md").read_text()


def test_a_victim_who_receives_a_model(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blind = {**TINY, "attack.name": "blind", "purify.by": {"dbr": "scores/cd"}, "stress.methods": ["fst"]}
    write_params(project, blind)
    run_stages()
    said = "not applicable: the victim receives a model, no data set is poisoned"
    # What looks at a training set has none, and says so in its artefact's place; what looks at a model goes on.
    absent = [path.parent for path in project.glob("*/**/absent.json") if read_json(path)["because"] == said]
    assert {path.relative_to(project).as_posix() for path in absent} == {
        "data/scores/cd",
        "data/stress/fst",
        "data/variations",
        "models/student",
        "models/purified/dbr",
    }
    assert f"evaluate: data/scores/cd: {said}" in capsys.readouterr().out
    metrics, summary = metrics_of(project), (project / "reports/summary.md").read_text()
    assert not {"detection", "student"} & set(metrics)
    assert list(metrics["purified"]) == ["fst"]
    assert {"backdoored", "inputs", "models"} <= set(metrics)
    assert "Not applicable: cd. The victim of this attack receives a model" in summary
    assert open_poisoned(Path("data/base"), Path("data/poisoned")).overlay.index.size == 0  # type: ignore[union-attr]
    # A surrogate is scored, and marked wherever its figures stand.
    write_params(project, {**TINY, "attack.name": "blind", "attack.surrogate.data": True, "attack.poison_rate": 0.1})
    run_stages("check_params", "poison", "train_backdoored", "stamp_test", "extract", "detect@cd", "evaluate", "report")
    assert read_json(project / "data/poisoned/manifest.json")["received"] == "surrogate"
    metrics, summary = metrics_of(project), (project / "reports/summary.md").read_text()
    assert metrics["attack"]["surrogate"] == 1
    assert "cd" in metrics["detection"]
    assert summary.count("Of a surrogate: the victim of this attack receives a model.") == 2


def test_a_trigger_that_was_trained_beside_another_victim_is_not_graded(project: Path) -> None:
    tiny = {"params/attacks.yaml:lira.joint": 1.0, "variations.enabled": False}
    write_params(project, {**TINY, **tiny, "attack.name": "lira"})
    run_stages("check_params", "poison", "train_backdoored", "stamp_test", "evaluate")
    write_params(project, {**TINY, **tiny, "attack.name": "lira", "train.lr": 0.07})
    run_stages("train_backdoored")
    with pytest.raises(
        UserError, match=r"^data/triggered: its triggers were not trained beside the present models/backdoored"
    ):
        run_stages("evaluate")
    run_stages("stamp_test", "evaluate")


def test_labels_alone_are_poisoned(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = {
        f"params/attacks.yaml:flip.{key}": value for key, value in {"passes": 1, "points": 2, "batch_size": 50}.items()
    }
    quick = {"attack.surrogate.model.width": 8, "attack.surrogate.train.epochs": 1, "variations.enabled": False}
    write_params(project, {**TINY, **own, **quick, "attack.name": "flip"})
    run_stages("check_params", "poison", "train_backdoored", "stamp_test", "extract", "detect@cd", "evaluate", "report")
    clean, received = open_split(Path("data/base"), "train"), open_poisoned(Path("data/base"), Path("data/poisoned"))
    everything, mask = np.arange(200), np.load("data/truth/mask.npy")
    assert (clean.gather(everything) == received.gather(everything)).all()
    assert mask.sum() == 18
    assert ((clean.labels != received.labels) == mask).all()
    assert (np.load("data/truth/given.npy") == received.labels).all()
    # Nobody has a hand in the training.
    assert read_json(project / "data/attacker/training/attacker.json")["parts"] == []
    figures = metrics_of(project)
    assert figures["attack"]["poisoned"] == pytest.approx(0.09)
    assert figures["attack"]["trigger"]["flip"]["changed"] > 0.5
    assert "asr" in figures["backdoored"]
    assert figures["detection"]["cd"]["auroc"] >= 0
    # Experts and labels are kept, and the same poison comes from them again.
    before = digests(project)
    shutil.rmtree(project / "data/poisoned")
    run_stages("poison")
    assert "flip_labels: taken from the store" in capsys.readouterr().out
    assert digests(project) == before


def test_several_triggers(project: Path) -> None:
    write_params(project, {**TINY, "attack.name": "multi", "purify.methods": [], "variations.enabled": False})
    run_stages()
    assert set(metrics_of(project)["backdoored"]["asr_of"]) == {"0_badnets", "1_blended"}
    assert "target class 1" in (project / "reports/summary.md").read_text()
    used = read_json(project / "data/checked/attack.json")
    assert set(used) == {"badnets", "blended"}
    # Whatever a plan is made of reruns `poison`, although dvc.yaml names the plan's own file and parameters only.
    write_params(project, {**TINY, "attack.name": "multi", "params/attacks.yaml:blended.ratio": 0.3})
    run_stages("check_params")
    assert read_json(project / "data/checked/attack.json") != used
    write_params(project, TINY)
    run_stages("check_params")
    assert read_json(project / "data/checked/attack.json") == {}


def test_assets_are_reused_when_only_the_rate_changes(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attack = {
        "attack.name": "lc",
        "params/attacks.yaml:lc.steps": 2,
        "params/attacks.yaml:lc.adversarial": False,
        "attack.surrogate.model.width": 8,
        "attack.surrogate.train.epochs": 1,
    }
    for rate, new, taken in ((0.3, 6, 0), (0.1, 0, 2), (0.5, 4, 6)):
        write_params(project, {**TINY, **attack, "attack.poison_rate": rate})
        run_stages("poison")
        said = capsys.readouterr().out
        assert f": {new} made, {taken} taken from the store" in said
        assert ("clean_network: made in" in said) == (rate == 0.3)


def test_a_robust_method_of_ones_own(made: Path, tmp_path: Path) -> None:
    # As CONTRIBUTING.md says: its file, its line in the table, `make params`. Plain training on the set as received.
    folder = copy_project(made, tmp_path / "own")
    for name in ("src", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    (folder / "src/unpoison/robust/plain.py").write_text(
        "from ..training.loop import fit\nfrom .robust import Robust\n\n\n"
        "def train(make_model, data, reserve, recipe, keep, *, seed: int = 0, rounds: int = 1):\n"
        '    """Plain.\n\n    Args:\n        rounds: of training.\n    """\n'
        "    model = make_model()\n"
        "    return model, fit(model, data, recipe, seed=seed, what='plain', checkpoints=keep('plain'))\n\n\n"
        "ROBUST = Robust(train=train)\n"
    )
    table = folder / "src/unpoison/robust/__init__.py"
    text = table.read_text().replace("from . import ", "from . import plain, ", 1)
    table.write_text(
        text.replace("ROBUST: dict[str, Robust] = {", 'ROBUST: dict[str, Robust] = {\n    "plain": plain.ROBUST,')
    )
    run(folder, sys.executable, "stages/method_params.py")
    assert re.search(r"^plain:\n  rounds: 1 +# of training$", (folder / "params/robust.yaml").read_text(), re.M)
    write_params(folder, {"robust.methods": ["plain"]}, source=folder)
    assert "accuracy on what it was trained on" in run(folder, sys.executable, "stages/train_robust.py", "plain")
    run(folder, sys.executable, "stages/evaluate.py")
    # As short a training as this may end in one class.
    assert set(metrics_of(folder)["robust"]["plain"]) - {"collapsed"} == {
        "acc",
        "acc_without_target",
        "asr",
        "ra",
        "der",
    }
    assert read_json(folder / "models/robust/plain/model.json")["made_by"]["parameters"] == {"rounds": 1}


def test_a_method_with_a_stage_of_its_own_is_refused(project: Path) -> None:
    write_params(project, {**TINY, "robust.methods": ["distillation"]})
    with pytest.raises(UserError, match=r"robust\.methods: 'distillation' given, .* stage of its own"):
        run_stages("check_params")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"attack.name": "blended", "params/attacks.yaml:blended.pattern": "params.yaml"},
            "params/attacks.yaml: blended.pattern: 'params.yaml' given",
        ),
        ({"attack.name": "tact", "attack.sources": [11]}, "params.yaml: attack.sources: 11 given, allowed: 0 to 9"),
    ],
)
def test_a_bad_attack_is_one_line_and_touches_nothing(project: Path, changes: dict[str, Any], message: str) -> None:
    write_params(project, {**TINY, **changes})
    before = digests(project)
    for stage in ("check_params", "poison"):
        with pytest.raises(UserError) as caught:
            run_stages(stage)
        assert str(caught.value).startswith(message)
        assert "\n" not in str(caught.value)
    assert digests(project) == before


def test_an_error_ends_a_stage_with_one_line_and_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> list[Path]:
        raise UserError("params.yaml: seed: -1 given,\nallowed: a whole number")

    with pytest.raises(SystemExit) as caught:
        run_stage("some stage", main)
    assert caught.value.code == "error: params.yaml: seed: -1 given, allowed: a whole number"


def noted_otherwise(stage: str, module: str) -> None:
    """Another digest of a module, as if its file had been edited since `check_params` ran."""
    noted = read_json(code_file(stage))
    assert noted["modules"][module]
    write_json(code_file(stage), {**noted, "modules": {**noted["modules"], module: "0" * 64}})


@pytest.mark.parametrize(
    ("stage", "noted", "module"),
    [
        ("detect@cd", "detect@cd", "unpoison.detection.cd"),
        ("train_backdoored", "train_backdoored", "training"),
        ("train_backdoored", "recipes", "unpoison.training.recipes"),
        ("poison", "poison@badnets", "unpoison.attacks.badnets"),
    ],
)
def test_a_stage_runs_the_code_that_was_noted(
    project: Path, stage: str, noted: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []
    main = poison.main if stage == "poison" else lambda: ran.append(stage) or []
    noted_otherwise(noted, module)
    before = digests(project)
    # Only DVC keeps outputs under digests of code, and it says that it runs a stage.
    monkeypatch.setenv("DVC_STAGE", stage)
    with pytest.raises(SystemExit) as caught:
        run_stage(stage, main)
    file = module.rpartition(".")[2]
    said, file = str(caught.value.code), module.rpartition(".")[2]
    assert re.match(
        rf"error: /.*/{file}\.py: changed since `check_params` ran, allowed: .*; run `dvc repro` again$", said
    )
    assert digests(project) == before
    assert ran == []


def test_a_stage_runs_where_its_code_is_as_noted(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.leave", lambda: None)
    ran: list[str] = []
    for stage, given in (("detect@cd", "detect@cd"), ("report", ""), ("purify@fst", "purify@fst")):
        if not given:
            # By hand nothing is asked for.
            noted_otherwise("report", "common")
        monkeypatch.setenv("DVC_STAGE", given) if given else monkeypatch.delenv("DVC_STAGE")
        run_stage(stage, lambda stage=stage: ran.append(stage) or [])
    assert ran == ["detect@cd", "report", "purify@fst"]


def test_a_stage_with_a_bad_input_keeps_its_earlier_output(project: Path) -> None:
    weights = project / "models/backdoored/model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(content[:-4])
    before = digests(project)
    for stage in ("purify@fst", "detect@cd", "extract", "distill_student", "evaluate"):
        with pytest.raises(UserError, match=r"^models/backdoored/model\.safetensors: digest mismatch"):
            run_stages(stage)
    assert digests(project) == before


def test_the_readmes_three_lines_run(project: Path) -> None:
    reserve = open_split(Path("data/base"), "reserve")
    text = (ROOT / "README.md").read_text().split("In Python,")[1].split("\n\n")[1]
    names: dict[str, Any] = {"images": reserve.gather(np.arange(20)), "labels": reserve.labels[:20]}
    names["classes"] = reserve.classes
    exec("\n".join(line.strip() for line in text.splitlines()), names)
    assert len(text.splitlines()) == 3
    assert names["clean"](torch.zeros(1, 3, 32, 32)).shape == (1, 10)


# Of the prior, checkpoint by checkpoint: test_variations.py. Of every stage, at random moments: bench/faults.py.
@pytest.mark.parametrize("stage", [pytest.param("train_prior", marks=pytest.mark.slow), "generate_variations"])
def test_kill_9_then_the_same_bytes(project: Path, stage: str) -> None:
    shutil.copytree(ROOT / "stages", project / "stages")
    (project / "src").symlink_to(ROOT / "src")
    shutil.rmtree(project / ".unpoison")
    made = {"train_prior": ("models/prior", "reports/training/prior.csv"), "generate_variations": ("data/variations",)}[
        stage
    ]
    output = project / made[0]
    before = {name: digest for name, digest in digests(project).items() if name.startswith(made)}
    # As DVC does, the old output goes before the stage starts.
    shutil.rmtree(output)
    sign = {"train_prior": "prior/*/*.npz", "generate_variations": "store/variations/*/*.npz"}[stage]
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen([sys.executable, f"stages/{stage}.py"], cwd=project, env=environment)
    deadline = time.monotonic() + 120
    while process.poll() is None and not list((project / ".unpoison").glob(sign)):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not output.exists(), "the stage ended before it could be killed"
    said = run_any(project, sys.executable, f"stages/{stage}.py").stdout
    if stage == "train_prior":
        assert "going on from the checkpoint at step" in said
    else:
        assert int(said.split(" s, ")[1].split()[0]) >= 64
    assert {name: digest for name, digest in digests(project).items() if name.startswith(made)} == before


def test_a_victim_that_diverges_is_named_and_nothing_is_written(project: Path) -> None:
    write_params(project, {**TINY, "train.lr": 1e30})
    before = digests(project)
    said = r"^params\.yaml: train\.lr: 1e\+30 given, with which the training of backdoored diverged: the loss"
    with pytest.raises(UserError, match=said):
        run_stages("train_backdoored")
    assert digests(project) == before


def test_a_model_of_one_class_is_said_to_have_collapsed(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = project / "models/purified/fst"
    model, about = models.load(folder), read_json(folder / "model.json")
    for value, said in ((0.0, None), (torch.inf, r"not finite")):
        model.head.weight.data.fill_(value)
        model.head.bias.data.copy_(torch.eye(10)[3])
        made = {key: about[key] for key in ("made_by", "made_from")}
        models.save(model, folder, classes=tuple(about["classes"]), **made)
        if said is None:
            run_stages("evaluate")
            assert (
                "models/purified/fst predicts 3 for 100.0% of the clean test images: a collapse"
                in capsys.readouterr().out
            )
            assert metrics_of(project)["purified"]["fst"]["collapsed"] == {"class": 3.0, "share": 1.0}
        else:
            with pytest.raises(UserError, match=rf"^models/purified/fst.*{said}"):
                run_stages("evaluate")


def test_a_federation(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (project / "reports/curves/rounds.csv").read_text() == "round,acc,asr\n"
    assert read_json(project / "models/rounds/rounds.json")["rounds"] == []
    federation = {
        "clients": 3,
        "per_round": 2,
        "rounds": 3,
        "local_epochs": 1,
        "attackers": 1,
        "scale": 4,
        "curve_every": 2,
    }
    write_params(project, {**TINY, "train.whiten": False, "train.federation": federation})
    write_json(project / "data/checked/without/control.json", {"because": None})
    run_stages("train_backdoored", "train_clean", "stamp_test", "evaluate")
    for name in ("backdoored", "clean"):
        curve = (project / f"reports/training/{name}.csv").read_text().splitlines()
        assert [line.split(",")[0] for line in curve] == ["epoch", "1", "2", "3"]
    head, *rows = (project / "reports/curves/rounds.csv").read_text().splitlines()
    assert head == "round,acc,asr"
    # The last round is the model itself.
    graded = metrics_of(project)["backdoored"]
    assert [row.split(",")[0] for row in rows] == ["2", "3"]
    assert [float(cell) for cell in rows[1].split(",")[1:]] == [graded["acc"], graded["asr"]]
    # What defences depend on does not say who attacks.
    made_by = read_json(project / "models/backdoored/model.json")["made_by"]
    assert made_by["recipe"]["epochs"] == 1
    assert made_by["federation"]["clients"] == 3
    assert "attackers" not in made_by["federation"]
    assert read_json(project / "models/clean/model.json")["made_by"]["federation"] == made_by["federation"]
    before = digests(project)
    run_stages("train_backdoored")
    assert digests(project) == before
    assert "rounds is of another run" not in capsys.readouterr().out
    write_params(
        project, {**TINY, "train.whiten": False, "train.federation": {**federation, "attackers": 0, "scale": 1}}
    )
    with pytest.raises(
        UserError, match=r"^params\.yaml: train\.federation\.attackers: 0 given, allowed with an attack"
    ):
        run_stages("train_backdoored")
    # An attack that stamps while the victim trains.
    write_params(project, {**TINY, "train.whiten": False, "train.federation": federation, "attack.poison_first": False})
    run_stages("poison")
    with pytest.raises(UserError, match=r"^params\.yaml: train\.federation: given with badnets, which stamps while"):
        run_stages("train_backdoored")
