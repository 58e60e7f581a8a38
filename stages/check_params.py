"""Check the parameters as a whole, before any stage touches an output: every other stage depends on what this one writes.

python stages/check_params.py                # the stage
python stages/check_params.py --runs < JSON  # several sets of parameters at once, by name; prints the hardware
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from common import BACKDOORED, CHECKED, run_stage

import numpy as np

import bias
import detect
import federated
import generate_variations
import poison
import prepare
import purifying
import report
import robust_methods
import stress_settings
import train_prior
import visualise
from by_artefact import artefacts_of
from parameters import (
    FAMILIES,
    OFF,
    PARAMS,
    Params,
    load_params,
    methods_of,
    own_parameters,
    section,
    seed_of,
    with_variations,
)
from purifying import purified_of
from received import received_of
from robust_methods import robust_of
from robust_networks import robust_network_of, student_network_of
from sizes import check_per_sample_networks, check_sizes, training_size
from stage_code import write_stage_code
from teacher import teacher_of
from texts import check_kind
from training import network_of, recipe_of
from unpoison import models
from unpoison.attacks import ATTACKS, SINGLE
from unpoison.compute.device import hardware
from unpoison.core.content_store import ContentStore
from unpoison.core.errors import UserError, file_of, keys_of
from unpoison.core.files import new_folder, sha256_file, write_json
from unpoison.core.hyperparameters import one_of
from unpoison.crafting.craft import make_trigger
from unpoison.data.imageset import ImageSet
from unpoison.detection import DETECTORS
from unpoison.detection.sample import check_sample
from unpoison.federation.rounds import no_whitening
from unpoison.inspection import INSPECTORS
from unpoison.poisoning.choice import assign_samples
from unpoison.poisoning.policy import check_classes
from unpoison.purification import PURIFIERS
from unpoison.robust import ROBUST
from unpoison.sources.attributes import classes_with
from unpoison.training.privacy import PrivateRecipe, check_installed, spending, steps_of
from unpoison.variations import VARIATIONS
from unpoison.visualisation import FIGURES
from without import WITHOUT

SECTIONS = [
    "seed",
    "control",
    "received",
    "data",
    "attack",
    "model",
    "train",
    "prior",
    "variations",
    "distill",
    "purify",
    "stress",
    "robust",
    "detect",
    "bias",
    "visualise",
    "report",
]
METHODS: dict[str, Mapping[str, Any]] = {
    "attacks": ATTACKS,
    "detectors": DETECTORS | INSPECTORS,
    "figures": FIGURES,
    "purifiers": PURIFIERS,
    "robust": ROBUST,
    "variations": VARIATIONS,
}


def check_all(params: Params) -> None:
    """Raises UserError for the first thing that would stop a stage."""
    for name in params:
        if name not in SECTIONS and name not in map(str, FAMILIES.values()):
            raise UserError(f"{PARAMS}: {name}: unknown key, allowed: {', '.join(SECTIONS)}")
    seed, data = seed_of(params), prepare.settings(params)
    _check_data(data)
    _check_attributes(params, data)
    for family, methods in METHODS.items():
        _check_blocks(params, family, methods)
    check_kind(params, data)
    _check_attack(params, data, seed)
    why_without_control(params)
    for name, keys in (("distill", ("model", "teacher", "train")), ("robust", ("by", "methods", "model"))):
        for key in section(params, name):
            if key not in keys:
                raise UserError(f"{PARAMS}: {name}.{key}: unknown key, allowed: {', '.join(keys)}")
    network_of(params)
    received_of(params)
    _check_federation(params, data)
    _check_privacy(params, data)
    robust_network_of(params)
    if (teacher := teacher_of(params)) != BACKDOORED:
        _check_readable("distill.teacher", teacher)
    student_network_of(params)
    for name in ("train", "distill.train"):
        recipe_of(params, name)
    report.settings(params)
    _check_figures(params)
    recipe, sampler = train_prior.settings(params), generate_variations.chosen_of(params)
    split = train_prior.images_of(params).name
    if with_variations(params):
        sampler.check(recipe.max_strength)
    if why_without_prior(params) is None and split in ("public", "reserve") and not data.most(split):
        raise UserError(
            f"{PARAMS}: data.{split}: 0 given, allowed: at least 10, the prior is trained on it; or variations.enabled: false"
        )
    _check_methods(params, data)
    check_per_sample_networks(params, data)
    check_sizes(params, data, recipe if why_without_prior(params) is None else None)


def _check_data(data: prepare.Settings) -> None:
    with file_of(PARAMS), keys_of("data"):
        data.check_sizes()
    if data.name in ("folder", "text", "imagenet", "multi_mnist") and not Path(data.path).exists():
        allowed = {"multi_mnist": "a folder, or a table of digits", "text": "a CSV file"}.get(
            data.name, "a folder or archive"
        )
        raise UserError(f"{PARAMS}: data.path: {data.path!r} given, which does not exist; allowed: {allowed}")
    _check_readable("data.path", Path(data.path))
    reserve = Path(data.reserve_path)
    # Where nothing was put, there is the page that keeps the folder.
    if data.reserve_from == "other" and (
        not reserve.exists() or (reserve.is_dir() and {each.name for each in reserve.iterdir()} <= {"README.md"})
    ):
        raise UserError(
            f"{PARAMS}: data.reserve_path: {data.reserve_path!r} given, where there is nothing; allowed with "
            "data.reserve_from: other: a folder or archive of images"
        )
    _check_readable("data.reserve_path", reserve)


def _check_attributes(params: Params, data: prepare.Settings) -> None:
    """Check the table of attributes, and that those that are asked for are in it."""
    wanted = bias.settings(params)
    with file_of(PARAMS), keys_of("data"):
        table = prepare.attributes_of(data)
        if table is not None and data.classes_of is not None:
            classes_with(table, data.classes_of, ())
    asked = [one.policy.attribute for one in poison.settings(params).intents if one.policy.label_policy == "complex"]
    for name in asked:
        if table is None:
            raise UserError(
                f"{PARAMS}: attack.label_policy: complex given, allowed with data.attributes null: the others"
            )
        if name not in table.names:
            listed = ", ".join(table.names)
            raise UserError(
                f"{PARAMS}: attack.attribute: {name!r} given, allowed: attributes out of {data.attributes}, {listed}"
            )
    if not wanted.attributes:
        return
    given = f"{PARAMS}: bias.attributes: {wanted.attributes!r} given"
    if table is None:
        raise UserError(f"{given}, allowed with data.attributes null: []")
    if data.reserve_from == "other" or not data.most("reserve"):
        reserve = "reserve_from: other" if data.reserve_from == "other" else "reserve: 0"
        raise UserError(f"{given}, allowed with data.{reserve}: [], as no held-out image has attributes")
    for name in wanted.attributes:
        if name not in table.names:
            raise UserError(f"{given}, allowed: attributes out of {data.attributes}, {', '.join(table.names)}")
        if (largest := table.largest(name)) > 1:
            raise UserError(f"{given}, {name} with values up to {largest}; allowed: attributes of 0 and 1")


def _check_readable(key: str, source: Path) -> None:
    """Raises UserError for what DVC cannot hash: before `prepare` may skip a file, DVC reads all that lies there."""
    waiting = [source]
    while waiting:
        path = waiting.pop()
        given = f"{PARAMS}: {key}: {str(source)!r} given, where {str(path)!r} is"
        if path.is_symlink() and not path.exists():
            raise UserError(f"{given} a link that leads nowhere; allowed: files and folders that DVC can read")
        if path.is_dir() and (path == source or not path.is_symlink()):
            # The system says of each entry what it is: only what is no plain file is looked at.
            with os.scandir(path) as entries:
                waiting += [Path(entry) for entry in entries if not entry.is_file(follow_symlinks=False)]
        elif path.exists() and not path.is_file() and not path.is_dir():
            raise UserError(f"{given} a pipe or device; allowed: files and folders that DVC can read")


def _check_blocks(params: Params, family: str, methods: Mapping[str, Any]) -> None:
    """Check every method's own parameters, whether it is used or not."""
    path = FAMILIES[family].as_posix()
    for name in params.get(path, {}):
        with file_of(path):
            one_of(name, methods, key=str(name))
    for name, method in methods.items():
        own_parameters(params, family, name, method.parameters)


def _check_attack(params: Params, data: prepare.Settings, seed: int) -> None:
    """Check the attack as far as possible before the data are read: in full for sets that are made, whose shape is known."""
    made = prepare.MADE.get(data.name)
    chosen = poison.settings(params, None if made is None else made.classes)
    if made is None or not chosen.intents:
        return
    labels = np.arange(data.digits_sizes["train"]) % len(made.classes)
    # The digits are made at one size.
    side = made.side if data.name == "digits" else data.image_size or made.side
    blank = np.broadcast_to(np.zeros((), np.uint8), (len(labels), side, side, made.channels))
    context = chosen.context(ImageSet(blank, labels, made.classes), seed, ContentStore(None))
    with poison.attack_keys():
        for wanted in chosen.intents:
            check_classes(wanted.policy, len(made.classes), made.classes)
            # What takes time to make is not made for a check.
            if not wanted.method.assets:
                make_trigger(wanted, context)
        policies = [wanted.policy for wanted in chosen.intents]
        assign_samples(
            policies,
            [None] * len(policies),
            labels,
            len(made.classes),
            seed=seed,
            names=made.classes,
            copies=chosen.intents[0].method.copies and not chosen.surrogate,
        )


def _check_federation(params: Params, data: prepare.Settings) -> None:
    """Check the victim's federation against the rest of the scenario."""
    federation = federated.federation_of(params)
    if federation is None:
        return
    if (received := params.get("received")) is not None:
        raise UserError(
            f"{PARAMS}: train.federation: given, allowed with received {received!r}: null, nobody is trained"
        )
    if canary := detect.settings(params).canary:
        raise UserError(
            f"{PARAMS}: detect.canary: {canary!r} given, allowed with train.federation: [], as canaries are trained in one place"
        )
    intents = poison.settings(params).intents
    federated.check_attackers(federation, attacked=bool(intents))
    if (what := _hand_in_training(intents)) is not None:
        raise federated.refuse_hand(what)
    with file_of(PARAMS), keys_of("train"):
        if recipe_of(params, "train").whiten:
            raise no_whitening()
        if data.name in prepare.MADE:
            with keys_of("federation"):
                federation.check_samples(data.digits_sizes["train"])


def _check_privacy(params: Params, data: prepare.Settings) -> None:
    """Check the victim's privacy against the rest of the scenario, and that its budget leads to a noise."""
    recipe = recipe_of(params, "train")
    if not isinstance(recipe, PrivateRecipe):
        return
    given = f"{PARAMS}: train.privacy: given"
    if (received := params.get("received")) is not None:
        raise UserError(f"{given}, allowed with received {received!r}: null, nobody is trained")
    if (what := _hand_in_training(poison.settings(params).intents)) is not None:
        raise UserError(
            f"{given} with {what}, allowed: an attack that leaves its poison in the files, as the noise is measured by the "
            "samples' own losses; or train.privacy: null"
        )
    for name in robust_of(params):
        robust_methods.check_private(params, name)
    with file_of(PARAMS), keys_of("train"):
        check_installed()
        if data.name == "digits":
            count = data.digits_sizes["train"]
            spending(recipe.privacy, batch_size=recipe.batch_size, count=count, steps=steps_of(recipe, count))


def _hand_in_training(intents: Sequence[Any]) -> str | None:
    """What of an attack has a hand in the training itself, in words; None where it leaves its poison in the files."""
    for wanted in intents:
        if wanted.policy.in_training:
            return "attack.poison_first: false or attack.random_poisoning: true"
        if wanted.around is not None or (wanted.method.hand is not None and not wanted.method.hand_if):
            return f"attack.name: {wanted.attack}, which trains the victim"
    return None


def _check_methods(params: Params, data: prepare.Settings) -> None:
    """Check the lists of methods, and that there are as many trusted images as they need."""
    _check_stress(params, data)
    if (wanted := detect.settings(params).sample) is not None:
        most, classes = training_size(data)
        with file_of(PARAMS), keys_of("detect"):
            check_sample(wanted, most=most, classes=classes)
    settings, detectors = detect.settings(params), methods_of(params, "detect", DETECTORS)
    if settings.canary and not detectors:
        raise UserError(
            f"{PARAMS}: detect.canary: {settings.canary!r} given, allowed without detect.methods, which are calibrated: []"
        )
    made = {"scores": ("detect.methods", detectors), "verdicts": ("detect.models", settings.models)}
    chosen = {
        "purify": artefacts_of(params, "purify", purifying.BY_ARTEFACT),
        "robust": artefacts_of(params, "robust", robust_methods.BY_ARTEFACT),
    }
    for family, artefacts in chosen.items():
        for name, artefact in artefacts.items():
            kind, _, source = artefact.partition("/")
            key, there = made[kind]
            if source not in there:
                allowed = ", ".join(f"{kind}/{method}" for method in there)
                raise UserError(
                    f"{PARAMS}: {family}.by.{name}: {artefact!r} given, allowed: those of {key}, {allowed or 'which is empty'}"
                )
    needed = {name: PURIFIERS[name].needs_trusted for name in purified_of(params)}
    wanted_by = {
        "robust": robust_of(params),
        "detectors": [*detectors, *settings.inputs, *settings.models],
    }
    for family, names in wanted_by.items():
        for name in names:
            method = METHODS[family][name]
            needed[name] = method.needs_trusted(**own_parameters(params, family, name, method.parameters))
    for name, least in needed.items():
        if least > data.most("reserve"):
            raise UserError(
                f"{PARAMS}: data.reserve: {data.said('reserve')}, allowed: at least {least}, {name} needs them"
            )


def _check_stress(params: Params, data: prepare.Settings) -> None:
    """Check that stress tests have an attacker's images and trusted ones beside them."""
    wanted = stress_settings.settings(params)
    if not wanted.methods:
        return
    reversing = [name for name, inspector in INSPECTORS.items() if inspector.reverses]
    if poison.settings(params).name == "none" and not set(reversing) & set(detect.settings(params).models):
        raise UserError(
            f"{PARAMS}: stress.methods: {wanted.methods!r} given, allowed with attack.name none, of which no poisoned sample "
            f"is known: [], or with a trigger that is reversed from the model, one of {', '.join(reversing)} in detect.models"
        )
    if poison.settings(params).name == "none" and wanted.reactivation:
        raise UserError(f"{PARAMS}: stress.reactivation: true given, allowed with attack.name none: false")
    if wanted.poisoned >= (most := data.most("reserve")):
        raise UserError(
            f"{PARAMS}: stress.poisoned: {wanted.poisoned} given, allowed: fewer than data.reserve, {most} trusted images"
        )


def _check_figures(params: Params) -> None:
    """Check that the figures are of models that the run makes."""
    there = [*(["clean"] if why_without_control(params) is None else []), *visualise.defended_of(params)]
    for name in visualise.settings(params).models:
        if name not in there:
            raise UserError(
                f"{PARAMS}: visualise.models: {name!r} given, allowed: a list out of the models that are made beside the "
                f"backdoored one, {', '.join(there) or 'of which there is none'}"
            )


def attacks_in_use(params: Params) -> dict[str, Any]:
    """What `poison` depends on besides its code and the parameters of `attack.name`: those of a plan's attacks."""
    chosen = poison.settings(params)
    if chosen.name in SINGLE:
        return {}
    own = params[FAMILIES["attacks"].as_posix()]
    return {name: own.get(name) for name in {wanted.attack for wanted in chosen.intents}}


def why_without_control(params: Params) -> str | None:
    """Which parameter leaves a run without the network that is trained on the clean set; None where none does."""
    wanted = params.get("control")
    if not isinstance(wanted, bool):
        raise UserError(f"{PARAMS}: control: {wanted!r} given, allowed: true, false")
    # Of data of unknown origin no clean set is known.
    if poison.settings(params).name == "none":
        return "attack.name: none"
    return None if wanted or stress_settings.settings(params).reactivation else "control: false"


def why_without_prior(params: Params) -> str | None:
    """Which parameter leaves a run without a prior; None where none does."""
    if not with_variations(params):
        return OFF
    chosen = generate_variations.chosen_of(params)
    return None if chosen.method.pipeline is None else f"variations.method: {chosen.name}"


def main() -> list[Path]:
    params = load_params()
    check_all(params)
    with new_folder(CHECKED) as staging:
        write_stage_code(staging, params)
        write_json(staging / "attack.json", attacks_in_use(params))
        folder = received_of(params)
        digest = None if folder is None else sha256_file(folder / models.DESCRIPTION)
        write_json(staging / "received.json", {"received": digest})
        table = section(params, "data").get("attributes")
        write_json(staging / "attributes.json", {"attributes": None if table is None else sha256_file(Path(table))})
        pipeline = generate_variations.chosen_of(params).pipeline() if with_variations(params) else None
        write_json(staging / "weights.json", {"weights": None if pipeline is None else pipeline.digest})
        reasons = {"control": why_without_control(params), "prior": why_without_prior(params)}
        for branch, why in reasons.items():
            write_json(staging / WITHOUT.name / f"{branch}.json", {"because": why})
    return [CHECKED]


def check_runs(runs: Mapping[str, Params]) -> None:
    """Raises UserError for the first run whose parameters would stop a stage, with the run's name in front."""
    for name, params in runs.items():
        try:
            check_all(params)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None


if __name__ == "__main__":
    if sys.argv[1:] == ["--runs"]:
        try:
            check_runs(json.load(sys.stdin))
            print(json.dumps(hardware()))
        except UserError as error:
            sys.exit(f"error: {error}")
    else:
        run_stage("check_params", main)
