"""Train a student on variations only, with the backdoored model as its teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from common import BACKDOORED, PARAMS, STUDENT, TRAINING, VARIATIONS, Params, load_params, run_stage, section, seed_of
from unpoison import models
from unpoison.core.files import new_file
from unpoison.core.hyperparameters import Fraction, Positive, check
from unpoison.core.seeding import derive
from unpoison.data.store import open_split
from unpoison.robust.distillation import distill
from unpoison.training.distributed import world
from unpoison.training.recipe import Recipe
from unpoison.training.recipes import recipe_named


def settings(params: Params) -> tuple[dict[str, Any], Recipe]:
    """The distillation's arguments and the student's recipe."""
    values = section(params, "distill")
    recipe = recipe_named(section(params, "distill.train"), where=f"{PARAMS}: distill.train")
    values.pop("train")
    return check(values, _arguments, where=f"{PARAMS}: distill"), recipe


def _arguments(*, alpha: Fraction = 0.5, temperature: Positive = 10.0, ce_temperature: Positive = 1.0) -> None:
    """The keys of `distill`, without what is not the user's to set (`seed`)."""


def main() -> list[Path]:
    params = load_params()
    seed, (arguments, recipe) = seed_of(params), settings(params)
    teacher, variations = models.load(BACKDOORED), open_split(VARIATIONS, "train")
    student = models.fresh_copy(teacher, seed=derive(seed, "student/weights"))
    history = distill(student, variations, teacher, recipe, seed=seed, **arguments)
    if world().rank:
        return []
    models.save(student, STUDENT, classes=variations.classes, made_by={"stage": "distill_student", "seed": seed})
    with new_file(TRAINING / "student.csv") as staging:
        pd.DataFrame(history.epochs).to_csv(staging, index=False)
    last = history.epochs[-1]
    print(f"distill_student: loss {last['loss']:.4f}, accuracy on the variations {last['accuracy']:.4f}", flush=True)
    return [STUDENT, TRAINING / "student.csv"]


if __name__ == "__main__":
    run_stage("distill_student", main, together=True)
