"""Train a clean model on the suspect set with one robust method: `python stages/train_robust.py METHOD`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from common import run_stage

from parameters import PARAMS, load_params
from robust_methods import BY_SET, check_inputs
from robust_training import train_by_recipe
from unpoison.core.errors import file_of
from unpoison.core.hyperparameters import one_of


def main(name: str) -> list[Path]:
    params = load_params()
    with file_of(PARAMS):
        one_of(name, BY_SET, key="robust.methods")
    check_inputs(name)
    return train_by_recipe(f"train_robust@{name}", params)


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    run_stage(f"train_robust@{name}", lambda: main(name), together=True)
