"""The real DAG with tiny parameters, in a repository of its own: run, rerun, experiment, push and pull, bad values."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from preloaded import preloaded
from tiny import ENVIRONMENT, ROOT, TINY, digests, run, run_any, run_stages, write_params

COPIED = (
    "stages",
    "src",
    "data/source/README.md",
    "data/reserve_source/README.md",
    "data/calibration/README.md",
    "data/scores/README.md",
    "data/stress/README.md",
    "models/README.md",
    "reports/figures/README.md",
    "bench/results/audit.csv",
    "dvc.yaml",
    ".gitignore",
    ".dvcignore",
    ".dvc/config",
    ".dvc/.gitignore",
)


def stages_run(output: str) -> set[str]:
    return {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")}


def make_project(folder: Path, changes: dict) -> Path:
    """A repository of its own at `folder`, with changed parameters; nothing has run yet."""
    for name in COPIED:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, target)
    write_params(folder, changes)
    run(folder, "git", "init", "-q")
    run(folder, "git", "config", "user.email", "test@example.org")
    run(folder, "git", "config", "user.name", "test")
    return folder


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny project, committed after `dvc repro`; its stages run without importing torch anew each time."""
    folder = tmp_path_factory.mktemp("project")
    with preloaded(folder / "bin"), pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENVIRONMENT, "PATH", f"{folder / 'bin'}{os.pathsep}{ENVIRONMENT['PATH']}")
        clone = make_project(folder / "clone", TINY)
        run(clone, "dvc", "repro")
        run(clone, "git", "add", "-A")
        run(clone, "git", "commit", "-qm", "run")
        yield clone


@pytest.fixture
def project(repository: Path) -> Iterator[Path]:
    """The same, as it was committed again after each test."""
    yield repository
    run(repository, "git", "checkout", "-q", ".")
    run(repository, "dvc", "checkout", "-q")


def test_reports_and_metrics_are_there(project: Path) -> None:
    metrics = json.loads((project / "reports/metrics.json").read_text())
    assert set(metrics) == {"attack", "backdoored", "student", "purified", "detection", "inputs", "models"}
    # A model of this size may give one class for everything.
    assert set(metrics["backdoored"]) - {"collapsed"} == {"acc", "acc_without_target", "asr", "ra"}
    assert set(metrics["attack"]["trigger"]["badnets"]) == {"psnr", "ssim", "linf", "l2", "changed"}
    assert metrics["attack"]["poisoned"] == 0.09
    assert set(metrics["purified"]) == {"fst"}
    graded = {"auroc", "ap", "tpr_at_1fpr", "tpr_at_5fpr", "precision_at_count", "passes_per_sample"}
    assert set(metrics["detection"]["cd"]) == graded | {"flagged", "flagged_tpr", "flagged_fpr"}
    assert set(metrics["inputs"]["scale_up"]) == set(metrics["detection"]["cd"])
    assert set(metrics["models"]["neural_cleanse"]) == {"flagged", "anomaly", "passes", "hit", "false_alarms"}
    page = (project / "reports/index.html").read_text()
    assert "http" not in page.replace("http-equiv", "")
    assert "seconds" not in page
    assert "| backdoored |" in (project / "reports/summary.md").read_text()
    assert len((project / "reports/suspects.csv").read_text().splitlines()) == 201
    assert not list(project.rglob("*.partial"))
    costs = run(project, sys.executable, "-m", "unpoison.reporting.costs", ".unpoison/costs")
    assert {line.split()[1] for line in costs.splitlines()[2:]} > {
        "prepare",
        "detect@cd",
        "purify@fst",
        "report",
        "all",
    }


def test_a_forced_rerun_gives_the_same_bytes(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What `dvc repro --force` runs, without the seventeen starts of a process: DVC's own verdict stands at the end.
    before = digests(project)
    shutil.rmtree(project / ".unpoison")
    monkeypatch.chdir(project)
    run_stages()
    assert digests(project) == before
    assert "Data and pipelines are up to date" in run(project, "dvc", "status")
    assert run(project, "git", "status", "--porcelain") == ""


def test_experiment_reruns_what_it_touches(project: Path) -> None:
    # The variations that a lower rate takes from the store are counted in test_stages.py.
    command = ["dvc", "exp", "run", "-n", "lower", "-S", "attack.poison_rate=0.02", "train_backdoored", "stamp_test"]
    assert stages_run(run(project, *command)) == {"check_params", "poison", "train_backdoored", "stamp_test"}
    assert "lower" in run(project, "dvc", "exp", "show", "--md")


def test_methods_and_their_parameters_run_those_methods(project: Path) -> None:
    # Through DVC's own reader: a detector more, a parameter of another, none of a family, one that is not in use, one by scores.
    settings = ["detect.methods=[cd,ss]", "params/detectors.yaml:cd.steps=3", "purify.methods=[]"]
    settings += ["params/attacks.yaml:sig.delta=20", "++purify.by.dbr=scores/ss", "params/purifiers.yaml:dbr.epochs=1"]
    output = run(project, "dvc", "exp", "run", *(part for setting in settings for part in ("-S", setting)))
    assert stages_run(output) == {"check_params", "detect@cd", "detect@ss", "purify_by@dbr", "evaluate", "report"}
    assert set(json.loads((project / "reports/metrics.json").read_text())["purified"]) == {"dbr"}
    assert json.loads((project / "data/scores/cd/scores.json").read_text())["parameters"]["steps"] == 3
    (project / "diff.json").write_text(run(project, "dvc", "metrics", "diff", "--json", "--all"))
    shown = run(project, "sh", "-c", f"{sys.executable} -m unpoison.reporting.metrics_diff < diff.json")
    (project / "diff.json").unlink()
    assert "| detection.ss.auroc | – |" in shown
    assert "| purified.fst.acc |" in shown
    assert "gone" in shown


def test_plots_and_dag(project: Path) -> None:
    assert "generate_variations" in run(project, "dvc", "dag", "--md")
    assert "index.html" in run(project, "dvc", "plots", "show")
    shutil.rmtree(project / "dvc_plots")
    # No plot but those that are asked for, and the ROC of whatever detectors there are.
    shown = json.loads(run_any(project, "dvc", "plots", "show", "--json").stdout)
    assert set(shown["data"]) == {
        "ROC",
        "Rounds of the federation",
        *(f"reports/training/{name}.csv" for name in ("backdoored", "clean", "prior", "student")),
    }
    assert {"fpr", "cd"} <= set(shown["data"]["ROC"][0]["content"]["data"]["values"][0])


def test_push_and_pull_leave_another_clone_nothing_to_do(project: Path, tmp_path: Path) -> None:
    run(project, "dvc", "remote", "add", "-f", "--local", "-d", "store", str(tmp_path / "remote"))
    run(project, "dvc", "push")
    clone = tmp_path / "other"
    run(tmp_path, "git", "clone", "-q", str(project), str(clone))
    run(clone, "dvc", "remote", "add", "--local", "-d", "store", str(tmp_path / "remote"))
    run(clone, "dvc", "pull")
    assert "Data and pipelines are up to date" in run(clone, "dvc", "repro")
    assert digests(clone) == digests(project)


def test_bad_parameters_leave_everything_as_it_was(project: Path) -> None:
    # DVC removes a stage's outputs before it runs it: that of the check itself is the mark, which says nothing.
    before = {name: digest for name, digest in digests(project).items() if not name.startswith("data/checked")}
    # A single stage is checked as the whole is. More settings: test_params.py, and as DVC reads them test_dvc_values.py.
    done = run_any(project, "dvc", "exp", "run", "-S", "params/detectors.yaml:cd.steps=0", "poison")
    assert done.returncode != 0
    assert "params/detectors.yaml: cd.steps: 0 given" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    run(project, "git", "checkout", "-q", ".")
    assert {name: d for name, d in digests(project).items() if not name.startswith("data/checked")} == before


@pytest.mark.slow
def test_a_clone_that_has_run_nothing_takes_experiments_in_any_order(tmp_path: Path) -> None:
    # Its lock file names outputs of the default run, which it has neither in the working tree nor in a cache.
    clone = tmp_path / "clone"
    run(tmp_path, "git", "clone", "-q", str(ROOT), str(clone))
    run(clone, "git", "config", "user.email", "test@example.org")
    run(clone, "git", "config", "user.name", "test")
    write_params(clone, TINY)
    run(clone, "git", "commit", "-qam", "tiny")
    with preloaded(tmp_path / "bin"), pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENVIRONMENT, "PATH", f"{tmp_path / 'bin'}{os.pathsep}{ENVIRONMENT['PATH']}")
        assert "poison" in stages_run(run(clone, "dvc", "exp", "run", "-S", "attack.poison_rate=0.05", "poison"))
        run(clone, "git", "checkout", "-q", ".")
        assert "report" in stages_run(run(clone, "dvc", "exp", "run"))
    assert "Data and pipelines are up to date" in run(clone, "dvc", "status")
