"""Draw one figure of what the backdoor does in the models: `python stages/visualise.py confusion`.

It is no defence and grades nothing: the truth says which samples are marked, and the triggered test images what a trigger does.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from common import (
    BACKDOORED,
    BASE,
    CLEAN,
    FIGURES,
    POISONED,
    PURIFIED,
    ROBUST,
    STUDENT,
    TRIGGERED,
    TRUTH,
    run_stage,
    say,
)

from parameters import FAMILIES, PARAMS, Params, checked, load_params, own_parameters, seed_of, with_variations
from purifying import purified_of
from robust_methods import robust_of
from teacher import made_from_teacher, teacher_of
from unpoison import models
from unpoison.core.errors import UserError, file_of, keys_of
from unpoison.core.hyperparameters import one_of
from unpoison.core.manifest import check_made_from, made_from_of, reason_absent
from unpoison.data.drawings import Drawing, save_drawing
from unpoison.data.store import open_poisoned, open_split
from unpoison.poisoning import triggered as triggered_
from unpoison.poisoning.triggered import read_triggered
from unpoison.poisoning.truth import read_truth
from unpoison.visualisation import FIGURES as ALL
from unpoison.visualisation.figure import Scene


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The section `visualise`.

    Attributes:
        models: models beside the backdoored one: `clean`, `student`, `purified/NAME`, `robust/NAME`.
        figures: figures that are drawn.
    """

    models: list[str] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)


def settings(params: Params) -> Settings:
    wanted = Settings(**checked(params, "visualise", Settings))
    for key, names in (("models", wanted.models), ("figures", wanted.figures)):
        if len(set(names)) != len(names):
            raise UserError(f"{PARAMS}: visualise.{key}: {names!r} given, allowed: each once")
    for name in wanted.figures:
        with file_of(PARAMS):
            one_of(name, ALL, key="visualise.figures")
    return wanted


def defended_of(params: Params) -> list[str]:
    """The models of defences that a run makes, as `visualise.models` names them."""
    student = ["student"] if with_variations(params) else []
    purified = [f"purified/{name}" for name in purified_of(params)]
    return [*student, *purified, *(f"robust/{name}" for name in robust_of(params))]


def main(name: str) -> list[Path]:
    params = load_params()
    wanted, seed = settings(params), seed_of(params)
    with file_of(PARAMS):
        figure = one_of(name, ALL, key="visualise.figures")
    arguments = own_parameters(params, "figures", name, figure.parameters)
    data, test = open_poisoned(BASE, POISONED), open_split(BASE, "test")
    truth = read_truth(TRUTH, poisoned=data)
    made_from = {"poisoned": data.digest, "backdoored": models.digest_of(BACKDOORED)}
    check_made_from(BACKDOORED, models.DESCRIPTION, poisoned=data.digest)
    check_made_from(TRIGGERED, triggered_.DESCRIPTION, poisoned=data.digest)
    # A trigger that was trained beside one victim says nothing about another.
    if (
        made_from_of(TRIGGERED, triggered_.DESCRIPTION).get("backdoored", made_from["backdoored"])
        != made_from["backdoored"]
    ):
        raise UserError(
            f"{TRIGGERED}: its triggers were not trained beside the present {BACKDOORED}; run the stage that makes it"
        )
    loaded, without = {"backdoored": models.load(BACKDOORED, data)}, ""
    for each in wanted.models:
        folder = _folder_of(each)
        if (because := reason_absent(folder)) is not None:
            without += f" Without {each}: {because}."
            continue
        check_made_from(folder, models.DESCRIPTION, **_inputs_of(each, params, made_from, test.digest))
        loaded[each.replace("/", ": ")] = models.load(folder, data)
        made_from[each] = models.digest_of(folder)
    # Where the victim receives a model, no sample of the set is stamped.
    known = truth is not None and truth.received != "model" and bool(truth.mask.any())
    scene = Scene(
        models=loaded,
        data=data,
        poisoned=truth.mask if truth is not None and known else None,
        test=test,
        triggered=read_triggered(TRIGGERED, BASE),
    )
    if (missing := figure.missing(scene)) is not None:
        drawing = Drawing(caption=f"The figure {name} is left out: {missing}.")
    else:
        # Of figures that draw nothing at random the seed is no argument.
        seeded = {"seed": seed} if figure.seeded else {}
        with file_of(FAMILIES["figures"]), keys_of(name):
            drawing = figure.draw(scene, **seeded, **arguments)
        drawing = Drawing(caption=drawing.caption + without, pictures=drawing.pictures, tables=drawing.tables)
    save_drawing(drawing, FIGURES / name, figure=name, parameters=arguments, made_from=made_from)
    say(f"visualise@{name}: {len(drawing.pictures)} pictures of {', '.join(loaded)}; {drawing.caption}")
    return [FIGURES / name]


def _folder_of(model: str) -> Path:
    """The folder of a model that `visualise.models` names. Raises UserError for another name."""
    family, _, method = model.partition("/")
    single, families = {"clean": CLEAN, "student": STUDENT}, {"purified": PURIFIED, "robust": ROBUST}
    if model in single:
        return single[model]
    if family in families and method:
        return families[family] / method
    raise UserError(f"{PARAMS}: visualise.models: {model!r} given, allowed: clean, student, purified/NAME, robust/NAME")


def _inputs_of(model: str, params: Params, present: dict[str, str], base: str) -> dict[str, str]:
    """What a model was made from, where it is of this run."""
    if model == "clean":
        return {"base": base}
    if model == "student":
        return made_from_teacher(teacher_of(params), present["poisoned"])
    key = "backdoored" if model.startswith("purified/") else "poisoned"
    return {key: present[key]}


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    run_stage(f"visualise@{name}", lambda: main(name))
