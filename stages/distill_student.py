"""Train a student on variations only, with the backdoored model as its teacher: the robust method `distillation`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from common import BACKDOORED, STUDENT, TRAINING, VARIATIONS, run_stage

import numpy as np

from parameters import OFF, load_params, seed_of, with_variations
from robust_training import train_robustly
from training import recipe_of, write_curve
from unpoison import models
from unpoison.core.manifest import check_made_from, write_absent
from unpoison.core.seeding import derive
from unpoison.data import store
from unpoison.robust.distillation import ROBUST
from unpoison.training.loop import History


def main() -> list[Path]:
    params, curve = load_params(), TRAINING / "student.csv"
    if not with_variations(params):
        write_absent(STUDENT, OFF)
        write_curve(curve, History([], np.zeros((0, 0), np.float32)))
        return [STUDENT, curve]
    # The teacher is of the set that the variations are of.
    check_made_from(VARIATIONS, store.MANIFEST, poisoned=models.read_about(BACKDOORED).made_from.get("poisoned", ""))
    teacher = models.load(BACKDOORED)

    def make_model() -> models.Classifier:
        return models.fresh_copy(teacher, seed=derive(seed_of(params), "student/weights"))

    return train_robustly(
        "distillation",
        ROBUST,
        params,
        make_model,
        recipe_of(params, "distill.train"),
        recipe_section="distill.train",
        stage="distill_student",
        folder=STUDENT,
        curve=curve,
    )


if __name__ == "__main__":
    run_stage("distill_student", main, together=True)
