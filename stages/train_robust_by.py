"""Train a clean model with one robust method that builds on scores: `python stages/train_robust_by.py METHOD`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from common import run_stage

from by_artefact import artefact_of
from parameters import load_params
from robust_methods import BY_ARTEFACT
from robust_training import train_by_recipe


def main(name: str) -> list[Path]:
    params = load_params()
    return train_by_recipe(f"train_robust_by@{name}", params, by=artefact_of(params, "robust", BY_ARTEFACT, name))


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    run_stage(f"train_robust_by@{name}", lambda: main(name), together=True)
