"""Train a student on variations, by a teacher, the backdoored model if no other is named: the robust method `distillation`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from common import BACKDOORED, BASE, STUDENT, TRAINING, VARIATIONS, run_stage, say

from not_applicable import NO_SET
from parameters import OFF, load_params, seed_of, with_variations
from robust_networks import fresh_student, load_teacher, student_network_of
from robust_training import train_robustly
from teacher import made_from_teacher, teacher_of
from training import recipe_of, write_curve
from unpoison import models
from unpoison.core.manifest import check_made_from, made_from_of, reason_absent, write_absent
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
    folder, variations = teacher_of(params), store.open_split(VARIATIONS, "train")
    if folder == BACKDOORED:
        # The victim is of the set that the variations are of; a teacher from elsewhere is of none that is known.
        received = models.read_about(BACKDOORED).made_from.get("poisoned", "")
        check_made_from(VARIATIONS, store.MANIFEST, poisoned=received)
    poisoned = made_from_of(VARIATIONS, store.MANIFEST).get("poisoned", "")
    teacher = load_teacher(folder, variations)

    def make_model() -> models.Classifier:
        return fresh_student(params, teacher, variations, seed=derive(seed_of(params), "student/weights"))

    return train_robustly(
        "distillation",
        ROBUST,
        params,
        make_model,
        recipe_of(params, "distill.train"),
        network=student_network_of(params),
        recipe_section="distill.train",
        stage="distill_student",
        folder=STUDENT,
        curve=curve,
        given={"variations": variations, "backdoored": teacher, "public": store.open_split(BASE, "public")},
        given_from=made_from_teacher(folder, poisoned),
    )


if __name__ == "__main__":
    run_stage("distill_student", main, together=True)
