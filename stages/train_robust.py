"""Train a clean model on the suspect set with one robust method: `python stages/train_robust.py METHOD`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from common import BASE, ROBUST, TRAINING, run_stage

from not_applicable import without_set
from parameters import PARAMS, load_params, seed_of
from robust_training import train_robustly
from training import fresh_model, network_of, recipe_of, write_curve
from unpoison import models
from unpoison.core.errors import UserError, file_of
from unpoison.core.hyperparameters import one_of
from unpoison.core.seeding import derive
from unpoison.data.store import open_split
from unpoison.robust import ROBUST as METHODS
from unpoison.robust.robust import RECEIVED
from unpoison.training.loop import History


def main(name: str) -> list[Path]:
    params = load_params()
    with file_of(PARAMS):
        method = one_of(name, METHODS, key="robust.methods")
    if missing := sorted(set(method.inputs) - set(RECEIVED)):
        # This stage does not depend on them, so DVC would not know when to run it again.
        raise UserError(
            f"{PARAMS}: robust.methods: {name!r} given, which needs {', '.join(missing)} and has its own stage"
        )
    stage, folder, curve = f"train_robust@{name}", ROBUST / name, TRAINING / "robust" / f"{name}.csv"
    if without_set(stage, folder):
        write_curve(curve, History.none())
        return [folder, curve]
    network, base = network_of(params), open_split(BASE, "train")

    def make_model() -> models.Classifier:
        return fresh_model(network, base, seed=derive(seed_of(params), f"{name}/weights"))

    return train_robustly(
        name,
        method,
        params,
        make_model,
        recipe_of(params, "train"),
        recipe_section="train",
        stage=stage,
        folder=folder,
        curve=curve,
    )


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    run_stage(f"train_robust@{name}", lambda: main(name), together=True)
