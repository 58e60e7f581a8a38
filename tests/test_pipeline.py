"""The real DAG with tiny parameters, in a clone of its own: run, rerun, force, experiment, push and pull, kill."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT / "src"),
    "DVC_NO_ANALYTICS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}
COPIED = (
    "stages",
    "src",
    "data/source/README.md",
    "params.yaml",
    "dvc.yaml",
    ".gitignore",
    ".dvcignore",
    ".dvc/config",
    ".dvc/.gitignore",
)
TINY = {
    "data": {"digits": {"train": 200, "test": 60}, "reserve": 60, "public": 60},
    "model": {"width": 8},
    "train": {"epochs": 2},
    "prior": {"steps": 20, "channels": [8, 8], "unshuffle": 4, "checkpoint_every": 5},
    "variations": {"steps": 4, "strength": 0.5},
    "distill": {"train": {"epochs": 2}},
    "purify": {"methods": ["fst"], "fst": {"epochs": 1}},
    "detect": {"methods": ["cd"], "cd": {"steps": 2}},
    "report": {"suspects": 2},
}


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def merge(base: dict, change: dict) -> dict:
    return {k: merge(base[k], change[k]) if isinstance(change.get(k), dict) else change.get(k, base[k]) for k in base}


def digests(folder: Path) -> dict[str, str]:
    files = [p for part in ("data", "models", "reports") for p in (folder / part).rglob("*") if p.is_file()]
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def stages_run(output: str) -> set[str]:
    return {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")}


def make_project(folder: Path, changes: dict) -> Path:
    """A repository of its own at `folder`, with changed parameters, after one `dvc repro`."""
    for name in COPIED:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, target)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    (folder / "params.yaml").write_text(yaml.safe_dump(merge(params, changes), sort_keys=False))
    run(folder, "git", "init", "-q")
    run(folder, "git", "config", "user.email", "test@example.org")
    run(folder, "git", "config", "user.name", "test")
    run(folder, "dvc", "repro")
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny project, committed."""
    folder = make_project(tmp_path_factory.mktemp("project") / "clone", TINY)
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-qm", "run")
    return folder


def test_reports_and_metrics_are_there(project: Path) -> None:
    metrics = json.loads((project / "reports/metrics.json").read_text())
    assert set(metrics) == {"attack", "backdoored", "student", "purified", "detection"}
    assert set(metrics["backdoored"]) == {"acc", "acc_without_target", "asr", "ra"}
    assert set(metrics["attack"]["trigger"]["badnets"]) == {"psnr", "ssim", "linf", "l2", "changed"}
    assert metrics["attack"]["poisoned"] == 0.09
    assert set(metrics["purified"]) == {"fst"}
    assert set(metrics["detection"]["cd"]) == {"auroc", "ap", "tpr_at_1fpr", "tpr_at_5fpr"}
    page = (project / "reports/index.html").read_text()
    assert "generate_variations" in page
    assert "http" not in page.replace("http-equiv", "")
    assert "| backdoored |" in (project / "reports/summary.md").read_text()
    assert len((project / "reports/suspects.csv").read_text().splitlines()) == 201
    assert not list(project.rglob("*.partial"))


def test_nothing_to_do_and_force_gives_the_same_bytes(project: Path) -> None:
    assert "Data and pipelines are up to date" in run(project, "dvc", "repro")
    before, lock = digests(project), (project / "dvc.lock").read_bytes()
    assert "check_params" in stages_run(run(project, "dvc", "repro", "--force"))
    assert digests(project) == before
    assert (project / "dvc.lock").read_bytes() == lock


def test_experiment_reruns_what_it_touches(project: Path) -> None:
    output = run(project, "dvc", "exp", "run", "-n", "lower", "-S", "attack.poison_rate=0.02")
    ran = stages_run(output)
    assert {"poison", "train_backdoored", "generate_variations", "detect@cd", "report"} <= ran
    assert not {"prepare", "train_prior"} & ran
    line = next(line for line in output.splitlines() if line.startswith("generate_variations:"))
    reused = int(line.split(" s, ")[1].split()[0])
    assert reused >= 0.85 * 200
    assert "lower" in run(project, "dvc", "exp", "show", "--md")
    run(project, "git", "checkout", "-q", ".")
    run(project, "dvc", "checkout")
    methods = stages_run(run(project, "dvc", "exp", "run", "-S", "detect.methods=[cd,ss]"))
    assert methods == {"check_params", "detect@ss", "evaluate", "report"}
    table = run(project, "dvc", "metrics", "diff", "--json", "--all")
    shown = subprocess.run(
        [sys.executable, "-m", "unpoison.reporting.metrics_diff"],
        input=table,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert "4 of" in shown.stdout.splitlines()[0]
    assert "| detection.ss.auroc | – |" in shown.stdout
    run(project, "git", "checkout", "-q", ".")
    run(project, "dvc", "checkout")


def test_plots_and_dag(project: Path) -> None:
    assert "generate_variations" in run(project, "dvc", "dag", "--md")
    assert "index.html" in run(project, "dvc", "plots", "show")
    assert (project / "dvc_plots/index.html").read_text().count("vega") > 3


def test_push_and_pull_leave_another_clone_nothing_to_do(project: Path, tmp_path: Path) -> None:
    run(project, "dvc", "remote", "add", "-f", "--local", "-d", "store", str(tmp_path / "remote"))
    run(project, "dvc", "push")
    clone = tmp_path / "other"
    run(tmp_path, "git", "clone", "-q", str(project), str(clone))
    run(clone, "dvc", "remote", "add", "--local", "-d", "store", str(tmp_path / "remote"))
    run(clone, "dvc", "pull")
    assert "Data and pipelines are up to date" in run(clone, "dvc", "repro")
    assert digests(clone) == {k: v for k, v in digests(project).items() if ".gitignore" not in k} | {
        k: v for k, v in digests(clone).items() if ".gitignore" in k
    }


@pytest.mark.parametrize("stage", ["train_prior", "generate_variations"])
def test_kill_9_then_the_same_bytes(project: Path, tmp_path: Path, stage: str) -> None:
    folder = tmp_path / "killed"
    shutil.copytree(project, folder, ignore=shutil.ignore_patterns(".unpoison", ".git", "cache"))
    made = {"train_prior": ("models/prior", "reports/training/prior.csv"), "generate_variations": ("data/variations",)}[
        stage
    ]
    output = folder / made[0]
    before = {k: v for k, v in digests(folder).items() if k.startswith(made)}
    # As DVC does, the old output goes before the stage starts.
    shutil.rmtree(output)
    slow = {"train_prior": ("prior", "checkpoint/rows.json"), "generate_variations": ("variations", "*.npz")}[stage]
    process = subprocess.Popen(
        [sys.executable, f"stages/{stage}.py"], cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and not list((folder / ".unpoison" / slow[0]).glob(f"*/{slow[1]}")):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not output.exists(), "the stage ended before it could be killed"
    said = run(folder, sys.executable, f"stages/{stage}.py")
    if stage == "train_prior":
        assert "going on from the checkpoint at step" in said
    else:
        assert int(said.split(" s, ")[1].split()[0]) >= 64
    assert {k: v for k, v in digests(folder).items() if k.startswith(made)} == before


def attacked(project: Path, folder: Path, attack: dict) -> Path:
    """A copy of the project, without git, with another attack."""
    shutil.copytree(project, folder, ignore=shutil.ignore_patterns(".git", "cache"))
    set_attack(folder, attack)
    return folder


def set_attack(folder: Path, attack: dict) -> None:
    params = yaml.safe_load((folder / "params.yaml").read_text())
    (folder / "params.yaml").write_text(yaml.safe_dump(merge(params, {"attack": attack}), sort_keys=False))


def test_assets_are_reused_when_only_the_rate_changes(project: Path, tmp_path: Path) -> None:
    surrogate = {"model": {"width": 8}, "train": {"recipe": "default", "epochs": 1}}
    attack = {"name": "lc", "poison_rate": 0.3, "lc": {"steps": 2, "adversarial": False}, "surrogate": surrogate}
    folder = attacked(project, tmp_path / "assets", attack)
    said = run(folder, sys.executable, "stages/poison.py")
    assert "clean_network: made in" in said
    assert ": 6 made, 0 taken from the store" in said
    for rate, made, taken in ((0.1, 0, 2), (0.5, 4, 6)):
        set_attack(folder, {"poison_rate": rate})
        assert f": {made} made, {taken} taken from the store" in run(folder, sys.executable, "stages/poison.py")


def test_triggers_stamped_in_training_and_several_triggers(project: Path, tmp_path: Path) -> None:
    folder = attacked(project, tmp_path / "attacks", {"random_poisoning": True, "poison_first": False})
    assert "a snapshot: triggers are stamped in training" in run(folder, sys.executable, "stages/poison.py")
    before = (folder / "models/backdoored/model.safetensors").read_bytes()
    run(folder, sys.executable, "stages/train_backdoored.py")
    assert (folder / "models/backdoored/model.safetensors").read_bytes() != before
    set_attack(folder, {"name": "multi", "random_poisoning": False})
    for stage in ("check_params", "poison", "evaluate", "report"):
        run(folder, sys.executable, f"stages/{stage}.py")
    metrics = json.loads((folder / "reports/metrics.json").read_text())
    assert set(metrics["backdoored"]["asr_of"]) == {"0_badnets", "1_blended"}
    assert "blended: target class 1" in (folder / "reports/summary.md").read_text()


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ({"name": "blended", "blended": {"pattern": "params.yaml"}}, "attack.blended.pattern: 'params.yaml' given"),
        ({"name": "tact", "sources": [11]}, "attack.sources: 11 given, allowed: 0 to 9"),
    ],
)
def test_a_bad_attack_is_one_line_and_touches_nothing(
    project: Path, tmp_path: Path, attack: dict, message: str
) -> None:
    folder = attacked(project, tmp_path / "bad", attack)
    before = digests(folder)
    for stage in ("check_params", "poison"):
        command = [sys.executable, f"stages/{stage}.py"]
        done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: params.yaml: {message}")
        assert done.stderr.count("\n") == 1
    assert digests(folder) == before


def test_attack_none_needs_no_truth(project: Path, tmp_path: Path) -> None:
    folder = attacked(project, tmp_path / "none", {"name": "none"})
    for stage in ("check_params", "poison", "evaluate", "report"):
        run(folder, sys.executable, f"stages/{stage}.py")
    metrics = json.loads((folder / "reports/metrics.json").read_text())
    assert "detection" not in metrics
    assert set(metrics["backdoored"]) == {"acc"}
    page = (folder / "reports/index.html").read_text()
    assert "unknown origin" in page
    assert "Most suspicious samples" in page
    assert "ROC," not in page


def test_bad_parameters_leave_everything_as_it_was(project: Path) -> None:
    before = digests(project)
    for setting, message in (
        ("attack.poison_rate=3", "attack.poison_rate: 3 given"),
        ("detect.methods=[cd,nonsense]", "detect.methods: 'nonsense' given, allowed: cd, ac, ss, strip"),
        ("attack.name=nonsense", "attack.name: 'nonsense' given"),
    ):
        command = ["dvc", "exp", "run", "-S", setting]
        done = subprocess.run(command, cwd=project, env=ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode != 0
        assert message in done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        run(project, "git", "checkout", "-q", ".")
    assert digests(project) == before


def test_stage_with_a_bad_input_keeps_its_earlier_output(project: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tampered"
    shutil.copytree(project, folder, ignore=shutil.ignore_patterns(".git", "cache"))
    weights = folder / "models/backdoored/model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(content[:-4])
    before = digests(folder)
    for command in (["stages/purify.py", "fst"], ["stages/detect.py", "cd"], ["stages/evaluate.py"]):
        done = subprocess.run([sys.executable, *command], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stderr.startswith("error: models/backdoored/model.safetensors: digest mismatch")
        assert done.stderr.count("\n") == 1
    assert digests(folder) == before
