"""A suite of two attacks, its runs, and a repository to run it in: what the tests of suites share."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

from conftest import with_value
from unpoison.suites.git import git
from unpoison.suites.reading import read_suite
from unpoison.suites.record import Run
from unpoison.suites.suite import Suite

ROOT = Path(__file__).resolve().parent.parent
NAMES = sorted(path.stem for path in (ROOT / "suites").glob("*.yaml"))
FILE: dict[str, Any] = {
    "title": "Two attacks",
    "sources": {"paper": "A paper, table 1"},
    "protocol": ["Nothing is as published."],
    "tolerances": {"acc": 0.02, "asr": 0.05, "ra": 0.05},
    "methods": {
        "none": {"metrics": "backdoored"},
        "fst": {"metrics": "purified.fst", "unpublished": "the paper has no such table"},
    },
    "set": {"data.name": "digits"},
    "experiments": {
        "badnets": {
            "set": {"attack.name": "badnets", "params/attacks.yaml:badnets.size": 3},
            "published": {"none": {"source": "paper", "acc": 0.91, "asr": 0.95}},
        },
        "blended": {
            "set": {"attack.name": "blended"},
            "published": {"none": {"source": "paper", "acc": 0.5, "ra": 0.0}},
        },
    },
    "scales": {
        "small": {"label": "200 digits", "seeds": [0, 1, 2], "cost": "a minute"},
        "full": {"label": "all digits", "seeds": [0], "cost": "a year", "set": {"data.train_limit": None}},
    },
}
# Two rates of the first attack, one of the second, and further columns; nothing is judged.
VARIED: dict[str, Any] = {
    **{key: value for key, value in FILE.items() if key != "tolerances"},
    "methods": {"none": {"metrics": "backdoored", "unpublished": "the paper has no such rate"}},
    "vary": {"attack.poison_rate": [0.1, 0.05]},
    "columns": {"PSNR, dB": {"metric": "attack.trigger.*.psnr", "form": ".1f"}, "cover": {"metric": "attack.cover"}},
    "experiments": {
        "badnets": {
            "set": {"attack.name": "badnets"},
            "published": {"none": {"source": "paper", "acc": 0.9, "asr": {0.1: 0.95}}},
        },
        "blended": {
            "set": {"attack.name": "blended"},
            "vary": {"attack.poison_rate": [0.4]},
            "published": {"none": {"source": "paper", "asr": {0.4: 1}}},
        },
    },
}
PARAMS: dict[str, dict[str, Any]] = {
    "params.yaml": {
        "seed": 0,
        "data": {"name": "digits", "path": "data/source"},
        "attack": {"name": "badnets", "poison_rate": 0.1},
        "purify": {"methods": ["fst"]},
        "robust": {"methods": []},
    },
    "params/attacks.yaml": {"badnets": {"size": 4}, "blended": {}},
}
# In the place of the pipeline two stages that make folders, and one that grades, and can wait.
STAGES: dict[str, dict[str, Any]] = {
    "prepare": {
        "cmd": "python stages/prepare.py",
        "params": ["data.name"],
        "outs": ["data/base"],
    },
    "poison": {
        "cmd": "python stages/poison.py",
        "deps": ["data/base"],
        "params": ["attack"],
        "outs": ["data/poisoned"],
    },
    "grade": {
        "cmd": "python stages/grade.py",
        "deps": ["data/poisoned"],
        "params": ["attack", "seed", {"params/attacks.yaml": ["${attack.name}"]}],
        "metrics": [{"reports/metrics.json": {"cache": False}}],
    },
}


def _folder(path: str, digit: str) -> dict[str, Any]:
    return {"path": path, "hash": "md5", "md5": f"{digit * 32}.dir", "size": 1, "nfiles": 1}


# Like that of a new clone: the default run's, whose outputs are not in the cache.
LOCK = {
    "schema": "2.0",
    "stages": {
        "prepare": {
            "cmd": "python stages/prepare.py",
            "params": {"params.yaml": {"data.name": "digits"}},
            "outs": [_folder("data/base", "1")],
        },
        "poison": {
            "cmd": "python stages/poison.py",
            "deps": [_folder("data/base", "1")],
            "params": {"params.yaml": {"attack": {"name": "badnets", "poison_rate": 0.5}}},
            "outs": [_folder("data/poisoned", "2")],
        },
    },
}
FOLDER = """
import os, pathlib, sys
folder = pathlib.Path("data", {"prepare": "base", "poison": "poisoned"}[pathlib.Path(sys.argv[0]).stem])
with open(os.environ["DONE"], "a") as file:
    file.write(f"{folder}\\n")
folder.mkdir(parents=True)
(folder / "images").write_text(f"the images of {folder}")
"""
GRADE = """
import json, os, time, yaml
name = yaml.safe_load(open("params.yaml"))["attack"]["name"]
own = yaml.safe_load(open("params/attacks.yaml"))[name]
with open(os.environ["DONE"], "a") as file:
    file.write(name + "\\n")
if os.environ.get("HOLD") == name:
    time.sleep(100)
figures = {"acc": own.get("size", 7) / 10, "asr": 1.0, "ra": own.get("ratio", 0.0)}
os.makedirs("reports", exist_ok=True)
json.dump({"backdoored": figures, "purified": {"fst": figures}}, open("reports/metrics.json", "w"))
"""
CHECK = """
import json, sys
for name, params in json.load(sys.stdin).items():
    if params["attack"]["poison_rate"] > 1:
        sys.exit(f"error: {name}: params.yaml: attack.poison_rate: {params['attack']['poison_rate']} given")
print(json.dumps({"device": "a machine", "torch": "2.0"}))
"""
# In the place of `python -m dvc`, where DVC's own work does not matter: writes an experiment as it does.
DVC = """
import json, os, subprocess, sys, time, yaml
def git(*command):
    return subprocess.run(["git", *command], check=True, capture_output=True, text=True).stdout.strip()
if sys.argv[1] != "exp":
    open(".dvc/config.local", "w").close()
    sys.exit()
name = sys.argv[sys.argv.index("-n") + 1]
with open(os.environ["DONE"], "a") as file:
    file.write(" ".join([name, *(part for part in sys.argv if part == "--force")]) + "\\n")
deadline = time.monotonic() + 60
while any(other not in open(os.environ["DONE"]).read() for other in os.environ.get("MEET", "").split()):
    if time.monotonic() > deadline:
        sys.exit("the others have not begun")
    time.sleep(0.02)
if name in os.environ.get("FAIL", "").split():
    print("this one fails")
    sys.exit(3)
params = yaml.safe_load(open("params.yaml"))
for part in sys.argv:
    if part.startswith("++data."):
        key, value = part.removeprefix("++data.").split("=", 1)
        params["data"][key] = yaml.safe_load(value)
yaml.safe_dump(params, open("params.yaml", "w"))
os.makedirs("reports", exist_ok=True)
json.dump({"backdoored": {"acc": 0.5}}, open("reports/metrics.json", "w"))
git("add", "--force", "params.yaml", "reports/metrics.json")
head = git("rev-parse", "HEAD")
commit = git("commit-tree", git("write-tree"), "-p", head, "-m", "as dvc")
git("update-ref", f"refs/exps/{head[:2]}/{head[2:]}/{name}", commit)
"""


def changed(key: str, value: Any, file: dict[str, Any] = FILE) -> dict[str, Any]:
    """The file with the value at `key`, parts divided by /, replaced."""
    return with_value(file, key.split("/"), value)


def read(folder: Path, file: Any) -> Suite:
    """The suite `tiny` of the repository at `folder`, written there first."""
    (folder / "suites").mkdir(exist_ok=True)
    (folder / "suites" / "tiny.yaml").write_text(yaml.safe_dump(file, sort_keys=False))
    return read_suite("tiny", folder / "suites")


def ran(suite: Suite, experiment: str, seed: int, *figures: float, scale: str = "small", data: str = "digits") -> Run:
    """A run of the suite with figures of its methods in turn: ACC, ASR and RA."""
    names = [f"{method.metrics}.{metric}" for method in suite.methods.values() for metric in ("acc", "asr", "ra")]
    return Run(
        scale=scale,
        experiment=experiment,
        seed=seed,
        settings=suite.settings(scale, experiment),
        commit="0123abcd",
        data=data,
        device="cpu: X, 2 cores, 2 threads",
        torch="2.15.0",
        seconds=60.0,
        metrics=dict(zip(names, figures, strict=True)),
    )


def make_project(root: Path, file: Any) -> None:
    """A committed repository of two stages and the suite `tiny`."""
    for name, values in {**PARAMS, "dvc.yaml": {"stages": STAGES}, "dvc.lock": LOCK}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(yaml.safe_dump(values, sort_keys=False))
    (root / "stages").mkdir()
    for name, text in {"prepare": FOLDER, "poison": FOLDER, "grade": GRADE, "check_params": CHECK}.items():
        (root / "stages" / f"{name}.py").write_text(text)
    for name in (".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    read(root, file)
    for command in ("init -q", "config user.email test@example.org", "config user.name test", "add -A", "commit -qm a"):
        git(root, *command.split())
