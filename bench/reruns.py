"""Which stages run after an edit: the table of docs/pipeline.md, measured in a clone with tiny parameters.

    python bench/reruns.py       # about ten minutes on two cores; prints a Markdown table

Each edit is made to the clone after a whole run, `dvc repro` runs, and the clone goes back. Edits of code add a line that
changes no result: what runs then is what DVC runs for any change of code in the file. The scenario has every detector and purifier.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent
TINY: dict[str, dict[str, Any]] = {
    "params.yaml": {
        "data.digits.train": 200,
        "data.digits.test": 60,
        "data.reserve": 60,
        "data.public": 60,
        "model.width": 8,
        "train.epochs": 2,
        "prior.steps": 20,
        "prior.channels": [8, 8],
        "prior.unshuffle": 4,
        "distill.train.epochs": 2,
    },
    "params/detectors.yaml": {"cd.steps": 2},
    "params/purifiers.yaml": {"ft.epochs": 1, "fst.epochs": 1},
    "params/variations.yaml": {"sdedit.steps": 4},
}


def change(clone: Path, file: str, overrides: dict[str, Any]) -> None:
    # ruamel's round trip, which keeps comments and builds plain values only.
    yaml, path = YAML(), clone / file
    values = yaml.load(path)
    for key, value in overrides.items():
        *sections, last = key.split(".")
        inner = values
        for name in sections:
            inner = inner[name]
        inner[last] = value
    yaml.dump(values, path)


def run(clone: Path, *command: str) -> str:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(clone / "src"),
        "DVC_NO_ANALYTICS": "1",
    }
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def edited(*files: str) -> Callable[[Path], None]:
    """An edit of code that changes no result."""

    def edit(clone: Path) -> None:
        for file in files:
            path = clone / "src" / "unpoison" / file
            path.write_text(path.read_text(encoding="utf-8") + "\n_EDITED = True\n", encoding="utf-8")

    return edit


def commented(clone: Path) -> None:
    """A comment at the end of every file of the library and of the stages."""
    for path in [*clone.glob("src/unpoison/**/*.py"), *clone.glob("stages/*.py")]:
        path.write_text(path.read_text(encoding="utf-8") + "\n# A comment.\n", encoding="utf-8")


def new_network(clone: Path) -> None:
    """A network `new` that is a copy of another one: its file and its line."""
    folder = clone / "src" / "unpoison" / "models"
    (folder / "new.py").write_text((folder / "vgg.py").read_text(encoding="utf-8"), encoding="utf-8")
    text = (folder / "networks.py").read_text(encoding="utf-8")
    text += '\nfrom . import new\n\nNETWORKS["new"] = new.vgg19_bn\n'
    (folder / "networks.py").write_text(text, encoding="utf-8")


def new_recipe(clone: Path) -> None:
    path = clone / "src" / "unpoison" / "training" / "recipes.py"
    path.write_text(path.read_text(encoding="utf-8") + '\nRECIPES["new"] = RECIPES["fast"]\n', encoding="utf-8")


def new_method(family: str, table: str, like: str) -> Callable[[Path], None]:
    """A method `new` that is a copy of another one, as CONTRIBUTING.md says: its file, its line, `make params`."""

    def edit(clone: Path) -> None:
        folder = clone / "src" / "unpoison" / family
        (folder / "new.py").write_text((folder / f"{like}.py").read_text(encoding="utf-8"), encoding="utf-8")
        text = (folder / "__init__.py").read_text(encoding="utf-8")
        text += f'\nfrom . import new\n\n{table}["new"] = new.{table.removesuffix("S")}\n'
        (folder / "__init__.py").write_text(text, encoding="utf-8")
        run(clone, sys.executable, "stages/method_params.py")
        if family == "detection":
            change(clone, "params.yaml", {"detect.methods": ["cd", "ac", "ss", "strip", "new"]})

    return edit


EDITS: dict[str, Callable[[Path], None]] = {
    "a comment in every file": commented,
    "a new network": new_network,
    "a new recipe": new_recipe,
    "a new detector": new_method("detection", "DETECTORS", "ss"),
    "an edit of the training loop": edited("training/loop.py"),
    "a new attack": new_method("attacks", "ATTACKS", "tact"),
    "an edit of an attack that is not in use": edited("attacks/lf.py"),
    "an edit of the attack in use": edited("attacks/badnets.py"),
    "an edit of one detector": edited("detection/strip.py"),
    "an edit of the report's sections": edited("reporting/sections.py"),
    "a published default of an attack that is not in use": lambda clone: change(
        clone, "params/attacks.yaml", {"sig.delta": 20.0}
    ),
}


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        clone = Path(temporary) / "clone"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        for file, overrides in TINY.items():
            change(clone, file, overrides)
        run(clone, "dvc", "repro")
        run(clone, "git", "-c", "user.name=bench", "-c", "user.email=bench@localhost", "commit", "-qam", "tiny")
        print("| after | stages that run besides `check_params` |\n|---|---|", flush=True)
        for name, edit in EDITS.items():
            edit(clone)
            output = run(clone, "dvc", "repro")
            stages = [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]
            shown = ", ".join(f"`{stage}`" for stage in stages if stage != "check_params") or "none"
            print(f"| {name} | {shown} |", flush=True)
            run(clone, "git", "checkout", "-q", ".")
            run(clone, "git", "clean", "-qfd", "src", "params")
            run(clone, "dvc", "checkout", "-q")


if __name__ == "__main__":
    main()
