"""Test whether one purified model holds, with the attacker's data: `python stages/stress.py fst`.

It is no defence: it reads the truth. Where none is known, the trigger is one that an inspector reversed from the model.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from common import (
    BACKDOORED,
    BASE,
    CLEAN,
    POISONED,
    PURIFIED,
    STRESS,
    TRIGGERED,
    TRUTH,
    VERDICTS,
    check_code,
    run_stage,
    say,
)

from not_applicable import without_set
from parameters import PARAMS, Params, load_params, section, seed_of
from stress_settings import Settings, settings
from unpoison import models
from unpoison.core.errors import UserError, file_of, keys_of
from unpoison.core.files import sha256_file
from unpoison.core.hyperparameters import one_of
from unpoison.core.manifest import check_made_from
from unpoison.data import verdicts as verdicts_
from unpoison.data.imageset import ImageSet
from unpoison.data.store import open_poisoned, open_split
from unpoison.data.stress import Line, Stressed, save_stressed
from unpoison.data.verdicts import Verdict, load_verdict
from unpoison.evaluation.stress import line_metrics, poisoned_images, reactivated_metrics, retuned_metrics
from unpoison.models.classifier import Classifier
from unpoison.poisoning import triggered as triggered_
from unpoison.poisoning.triggered import read_triggered
from unpoison.poisoning.truth import read_truth
from unpoison.stress.connectivity import line
from unpoison.stress.reactivation import changed_by, train_generator
from unpoison.stress.retuning import retune
from unpoison.stress.reversed import reversed_figures


def main(method: str) -> list[Path]:
    # One code for all models, noted under the stage's name.
    check_code("stress")
    params = load_params()
    wanted, seed = settings(params), seed_of(params)
    with file_of(PARAMS):
        one_of(method, dict.fromkeys(wanted.methods), key="stress.methods")
    if without_set(f"stress@{method}", STRESS / method):
        return [STRESS / method]
    data, folder = open_poisoned(BASE, POISONED), PURIFIED / method
    truth = read_truth(TRUTH, poisoned=data)
    if truth is not None and not truth.mask.any():
        raise UserError(
            f"{PARAMS}: stress.methods: {method!r} given, allowed for a training set without a known poisoned sample: []"
        )
    made_from = {
        "poisoned": data.digest,
        "backdoored": models.digest_of(BACKDOORED),
        "purified": models.digest_of(folder),
    }
    check_made_from(BACKDOORED, models.DESCRIPTION, poisoned=data.digest)
    check_made_from(folder, models.DESCRIPTION, backdoored=made_from["backdoored"])
    check_made_from(TRIGGERED, triggered_.DESCRIPTION, poisoned=data.digest)
    test, reserve, triggered = open_split(BASE, "test"), open_split(BASE, "reserve"), read_triggered(TRIGGERED, BASE)
    purified, backdoored = models.load(folder, reserve), models.load(BACKDOORED, reserve)
    control, clean = None, None
    retuning = {key: getattr(wanted, key) for key in ("poisoned", "epochs", "batch_size", "lr", "augment")}
    if truth is None:
        verdict, made_from["verdict"] = _reversed_trigger(params, made_from["backdoored"])
        with file_of(PARAMS), keys_of("stress"):
            figures = reversed_figures(backdoored, purified, reserve, test, verdict, seed=seed, **retuning)
        return _written(
            method, wanted, figures, line_metrics(line(purified, backdoored, wanted.points), test, None, {}), made_from
        )
    graded = (test, truth, triggered)
    stamped, true = poisoned_images(data, truth, seed=seed)
    with file_of(PARAMS), keys_of("stress"):
        retuned = retune(purified, reserve, stamped, seed=seed, **retuning)
        if wanted.reactivation:
            clean = _clean_model(reserve)
            made_from["clean"] = models.digest_of(CLEAN)
            control = retune(clean, reserve, stamped, seed=seed, **retuning)
        figures = retuned_metrics(retuned, *graded, control=control)
        if clean is not None:
            own = {
                k: getattr(wanted, k) for k in ("images", "batch_size", "query_epochs", "query_lr", "alpha", "budget")
            }
            generator = train_generator(purified, retuned, clean, reserve, true, seed=seed, **own)
            figures |= reactivated_metrics(lambda images: changed_by(generator, images), purified, clean, triggered)
    return _written(
        method, wanted, figures, line_metrics(line(purified, backdoored, wanted.points), *graded), made_from
    )


def _reversed_trigger(params: Params, backdoored: str) -> tuple[Verdict, str]:
    """The first verdict on the present model that holds triggers, and the digest of its description."""
    for name in section(params, "detect")["models"]:
        folder = VERDICTS / name
        check_made_from(folder, verdicts_.DESCRIPTION, backdoored=backdoored)
        verdict = load_verdict(folder, method=name)
        if verdict.aux:
            return verdict, sha256_file(folder / verdicts_.DESCRIPTION)
    raise UserError(
        f"{PARAMS}: stress.methods: given where no truth is known, allowed with an inspector that reverses triggers in "
        "detect.models"
    )


def _written(
    method: str, wanted: Settings, figures: Mapping[str, float], places: Line, made_from: dict[str, str]
) -> list[Path]:
    stressed = Stressed(figures=figures, line=places)
    parameters = {key: value for key, value in asdict(wanted).items() if key != "methods"}
    save_stressed(stressed, STRESS / method, method=method, parameters=parameters, made_from=made_from)
    say(f"stress@{method}: {', '.join(f'{name} {value:.3f}' for name, value in figures.items())}")
    return [STRESS / method]


def _clean_model(reserve: ImageSet) -> Classifier:
    check_made_from(CLEAN, models.DESCRIPTION, base=reserve.digest)
    return models.load(CLEAN, reserve)


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    run_stage(f"stress@{name}", lambda: main(name))
