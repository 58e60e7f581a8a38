"""Train a student on variations only, with the backdoored model as its teacher: the robust method `distillation`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from common import BACKDOORED, STUDENT, TRAINING, VARIATIONS, run_stage, say

from not_applicable import NO_SET
from parameters import OFF, load_params, seed_of, with_variations
from robust_training import train_robustly
from training import network_of, recipe_of, write_curve
from unpoison import models
from unpoison.core.manifest import check_made_from, reason_absent, write_absent
from unpoison.core.seeding import derive
from unpoison.data import store
from unpoison.robust.distillation import ROBUST
from unpoison.training.loop import History


def without_variations() -> bool:
    """Whether there is no set that variations could be of; the student's folder then says so in its place."""
    if reason_absent(VARIATIONS) != NO_SET:
        return False
    write_absent(STUDENT, NO_SET)
    say(f"distill_student: {NO_SET}")
    return True


def main() -> list[Path]:
    params, curve = load_params(), TRAINING / "student.csv"
    if not with_variations(params):
        write_absent(STUDENT, OFF)
    if not with_variations(params) or without_variations():
        write_curve(curve, History.none())
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
        network=network_of(params),
        recipe_section="distill.train",
        stage="distill_student",
        folder=STUDENT,
        curve=curve,
    )


if __name__ == "__main__":
    run_stage("distill_student", main, together=True)
