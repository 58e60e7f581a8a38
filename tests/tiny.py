"""A project with tiny parameters: what the tests of the pipeline share."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

import bias
import check_params
import detect
import detect_inputs
import distill_student
import evaluate
import examine
import extract
import generate_variations
import inspect_model
import poison
import prepare
import purify
import purify_by
import report
import stamp_test
import stress
import train_backdoored
import train_clean
import train_prior
import train_robust
import train_robust_by
import visualise
from parameters import FAMILIES, PARAMS, read_yaml

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "DVC_NO_ANALYTICS": "1",
}
# Overrides as `dvc exp run -S` takes them: keys of params.yaml, or FILE:KEY.
TINY: dict[str, Any] = {
    "control": False,
    "data.digits.train": 200,
    "data.digits.test": 60,
    "data.reserve": 60,
    "data.public": 60,
    "model.width": 8,
    "train.epochs": 2,
    "prior.steps": 20,
    "prior.channels": [8, 8],
    "prior.unshuffle": 4,
    "prior.checkpoint_every": 5,
    "params/variations.yaml:sdedit.steps": 4,
    "distill.train.epochs": 2,
    "purify.methods": ["fst"],
    "params/purifiers.yaml:fst.epochs": 1,
    "detect.methods": ["cd"],
    "params/detectors.yaml:cd.steps": 2,
    "detect.inputs": ["scale_up"],
    "detect.models": ["neural_cleanse"],
    "params/detectors.yaml:neural_cleanse.epochs": 2,
    "params/detectors.yaml:neural_cleanse.sample": 8,
    "report.suspects": 2,
}


def write_params(folder: Path, changes: Mapping[str, Any], *, source: Path = ROOT) -> None:
    """The parameter files of `source` in `folder`, with overrides."""
    for path in (PARAMS, *FAMILIES.values()):
        values = read_yaml(source / path)
        for key, value in changes.items():
            file, _, dotted = key.rpartition(":")
            if (file or PARAMS.as_posix()) == path.as_posix():
                *sections, last = dotted.split(".")
                inner: Any = values
                for name in sections:
                    inner = inner[name]
                inner[last] = value
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def run_stages(*names: str) -> None:
    """Run stages' `main` in this process and the working directory; by default all, in order."""
    params = read_yaml(PARAMS)
    stages: dict[str, Callable[[], list[Path]]] = {
        "check_params": check_params.main,
        "prepare": prepare.main,
        "poison": poison.main,
        "train_backdoored": train_backdoored.main,
        "stamp_test": stamp_test.main,
        "extract": extract.main,
        "examine": examine.main,
        "train_prior": train_prior.main,
        "generate_variations": generate_variations.main,
        "distill_student": distill_student.main,
        **{f"train_robust@{name}": lambda name=name: train_robust.main(name) for name in params["robust"]["methods"]},
        **{f"purify@{name}": lambda name=name: purify.main(name) for name in params["purify"]["methods"]},
        "train_clean": train_clean.main,
        "bias": bias.main,
        **{f"stress@{name}": lambda name=name: stress.main(name) for name in params["stress"]["methods"]},
        **{f"detect@{name}": lambda name=name: detect.main(name) for name in params["detect"]["methods"]},
        **{f"detect_inputs@{name}": lambda name=name: detect_inputs.main(name) for name in params["detect"]["inputs"]},
        **{f"inspect_model@{name}": lambda name=name: inspect_model.main(name) for name in params["detect"]["models"]},
        **{f"train_robust_by@{name}": lambda name=name: train_robust_by.main(name) for name in params["robust"]["by"]},
        **{f"purify_by@{name}": lambda name=name: purify_by.main(name) for name in params["purify"]["by"]},
        **{f"visualise@{name}": lambda name=name: visualise.main(name) for name in params["visualise"]["figures"]},
        "evaluate": evaluate.main,
        "report": report.main,
    }
    for name in names or stages:
        for path in stages[name]():
            assert path.exists(), f"{name} did not write {path}"


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every artefact of a project."""
    files = [p for part in ("data", "models", "reports") for p in (folder / part).rglob("*") if p.is_file()]
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def run(folder: Path, *command: str) -> str:
    """What a command prints, run in `folder` with the library that lies there; it must succeed."""
    done = run_any(folder, *command)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def run_any(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    library = folder / "src" if (folder / "src").is_dir() else ROOT / "src"
    environment = {**ENVIRONMENT, "PYTHONPATH": str(library)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def copy_project(source: Path, folder: Path) -> Path:
    """A copy without git and DVC's cache."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns(".git", "cache", "__pycache__"))
    return folder
