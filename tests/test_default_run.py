"""The committed default run: its figures, and that its lock file is of this tree; (slow) a run of one's own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from common import CHECKED, code_file

import pytest
import yaml

from parameters import load_params
from stage_code import write_stage_code
from test_pipeline import make_project
from tiny import run

ROOT = Path(__file__).resolve().parent.parent
METRICS: dict[str, Any] = json.loads((ROOT / "reports" / "metrics.json").read_text())


def check(metrics: dict[str, Any]) -> None:
    backdoored, student, fst = metrics["backdoored"], metrics["student"], metrics["purified"]["fst"]
    assert backdoored["acc"] >= 0.90
    assert backdoored["asr"] >= 0.98
    assert student["asr"] <= 0.03
    assert student["acc"] >= backdoored["acc"] - 0.015
    assert fst["asr"] <= 0.05
    assert fst["acc"] >= backdoored["acc"] - 0.04
    for detector in ("cd", "strip"):
        assert metrics["detection"][detector]["auroc"] >= 0.90


def test_committed_metrics_reach_the_figures() -> None:
    check(METRICS)


def test_committed_metrics_are_of_the_methods_in_params() -> None:
    params = load_params(ROOT)
    assert set(METRICS["detection"]) == {*params["detect"]["methods"], "fusion"}
    assert set(METRICS["purified"]) == {*params["purify"]["methods"], *params["purify"]["by"]}


LOCK: dict[str, Any] = yaml.safe_load((ROOT / "dvc.lock").read_text())["stages"]


def md5_of(path: Path) -> str:
    """A file's MD5, or that of a folder as DVC has it: of the JSON list of its files, those of .dvcignore left out."""
    if path.is_file():
        return hashlib.md5(path.read_bytes()).hexdigest()  # noqa: S324 (DVC's digest)
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and "__pycache__" not in file.parts]
    entries = [{"md5": md5_of(file), "relpath": file.relative_to(path).as_posix()} for file in files]
    text = json.dumps(sorted(entries, key=lambda entry: entry["relpath"]))
    return hashlib.md5(text.encode()).hexdigest() + ".dir"  # noqa: S324


def test_the_lock_file_is_of_this_tree(tmp_path: Path) -> None:
    # The code that the stages run, not the files: `check_params`, which depends on those, runs in seconds, and writes the same
    # after a changed comment.
    params = load_params(ROOT)
    write_stage_code(tmp_path / CHECKED, params)
    methods = {"poison": params["attack"]["name"], "generate_variations": params["variations"]["method"]}
    changed = set()
    for stage in set(LOCK) - {"check_params"}:
        path = code_file(f"{stage}@{methods[stage]}" if stage in methods else stage)
        locked = {dep["path"]: dep["md5"] for dep in LOCK[stage]["deps"]}
        changed |= {stage} if locked.get(path.as_posix()) != md5_of(tmp_path / path) else set()
        changed |= {
            path
            for path, md5 in locked.items()
            if path.startswith(("data/source", "data/reserve_source")) and md5_of(ROOT / path) != md5
        }
    assert changed == set(), "run `dvc repro` and commit dvc.lock"


def test_the_lock_file_has_the_parameters_and_stages_of_this_tree() -> None:
    params = load_params(ROOT)
    for stage, locked in LOCK.items():
        for file, values in locked.get("params", {}).items():
            for key, value in values.items():
                held: Any = params[file] if file != "params.yaml" else params
                for part in key.split("."):
                    held = held[part]
                assert held == value, f"{stage}: {file}: {key}"
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    expected = set()
    for stage, block in stages.items():
        # A stage that runs one method of a list: `${detect.methods}`.
        methods: Any = params
        for part in block.get("foreach", "").removeprefix("${").removesuffix("}").split("."):
            methods = methods[part] if part else None
        expected |= {stage} if methods is None else {f"{stage}@{name}" for name in methods}
    assert set(LOCK) == expected


@pytest.mark.slow
def test_a_run_of_ones_own_reaches_the_figures(tmp_path: Path) -> None:
    folder = make_project(tmp_path / "clone", {})
    run(folder, "dvc", "repro")
    check(json.loads((folder / "reports" / "metrics.json").read_text()))
