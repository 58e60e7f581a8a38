"""The code that every stage runs: digests of its script's modules, in the file that the stage depends on.

A changed comment in the library reruns `check_params`, which writes the same files again, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from common import RECIPES, STAGES, code_file

import purifying
import robust_methods
from parameters import Params, methods_of
from poison import settings
from received import victim_network_of
from robust_networks import robust_network_of, student_network_of, teacher_network_of
from training import network_of, recipe_of
from unpoison.attacks import ATTACKS
from unpoison.core.code import code_of, digest_of, source_of
from unpoison.core.files import sha256_file, sha256_json, write_json
from unpoison.detection import DETECTORS, INPUT_DETECTORS
from unpoison.inspection import INSPECTORS
from unpoison.models.networks import NETWORKS
from unpoison.models.text_encoder import FILES
from unpoison.variations import VARIATIONS
from unpoison.visualisation import FIGURES

WHOLE = (
    "prepare",
    "train_backdoored",
    "stamp_test",
    "extract",
    "examine",
    "train_prior",
    "distill_student",
    "train_clean",
    "bias",
    "stress",
    "evaluate",
    "report",
    "train_canary",
    "detect_canary",
)
"""Stages that run the same code whatever the methods."""

METHODS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "poison": ("unpoison.attacks", ATTACKS),
    "generate_variations": ("unpoison.variations", VARIATIONS),
    "train_robust": ("unpoison.robust", robust_methods.BY_SET),
    "train_robust_by": ("unpoison.robust", robust_methods.BY_ARTEFACT),
    "purify": ("unpoison.purification", purifying.BY_RESERVE),
    "purify_by": ("unpoison.purification", purifying.BY_ARTEFACT),
    "detect": ("unpoison.detection", DETECTORS),
    "detect_inputs": ("unpoison.detection", INPUT_DETECTORS),
    "inspect_model": ("unpoison.inspection", INSPECTORS),
    "visualise": ("unpoison.visualisation", FIGURES),
}
"""Stages that run one method: the family's package, which is the table of its methods, and the methods by name."""


TRAINED_BY = {
    "train_backdoored": "train",
    "train_robust": "train",
    "train_robust_by": "train",
    "train_canary": "train",
    "train_clean": "train",
    "bias": "train",
    "distill_student": "distill.train",
}
"""Stages that train by a recipe of the parameters, and its section."""


def code_of_stages(params: Params) -> dict[str, dict[str, Any]]:
    """What every stage runs, and every method whether it is used or not: `modules`, digests by name; `recipe`, or None.

    Args:
        params: all parameters, which must be right.

    Returns:
        By the stage's name as in `dvc.yaml` (`detect@cd`); `poison@NAME` and `generate_variations@NAME` for each method. With
        `pretrained`, a digest, where a training begins with weights out of a file or a folder, which may lie anywhere.
    """
    # A table imports all that is in it, and a new entry is to rerun nothing: what counts is the entry that is run. Of methods
    # that is the stage's own, of networks those of the models that the stage makes or reads, of recipes their values.
    attack = settings(params)
    networks = {**_networks(params), "poison": {attack.network["name"]}}
    tables = {table: list[str]() for table in (RECIPES, *(package for package, _ in METHODS.values()))}
    # The one stage that runs several methods of a table.
    calibrated = [f"unpoison.detection.{method}" for method in methods_of(params, "detect", DETECTORS)]
    found, pretrained = dict[str, dict[str, Any]](), _pretrained(params)
    for stage in (*WHOLE, *METHODS):
        names = networks.get(stage, networks["model"]) & set(NETWORKS)
        tables["unpoison.models.networks"] = [NETWORKS[name].__module__ for name in sorted(names)]
        recipe = attack.recipe if stage == "poison" else None
        if stage in TRAINED_BY:
            recipe = recipe_of(params, TRAINED_BY[stage])
        package, methods = METHODS.get(stage, ("", {}))
        # A plan in use runs the attacks that it is made of.
        plan = {attack.name: {wanted.attack for wanted in attack.intents}} if stage == "poison" else {}
        for name in methods or [""]:
            own = [f"{package}.{method}" for method in {name, *plan.get(name, ())} if method]
            own += calibrated if stage == "detect_canary" else []
            modules = code_of(stage, *own, scripts=STAGES, tables=tables)
            about = {
                "modules": modules,
                "recipe": None if recipe is None else asdict(recipe),
                **pretrained.get(stage, {}),
            }
            found[f"{stage}@{name}" if name else stage] = about
    return found


def _networks(params: Params) -> dict[str, set[str]]:
    """The networks by name that a defence's or the victim's stage runs; `model`: of every stage that is not listed."""
    victim, robust = {victim_network_of(params)["name"]}, {robust_network_of(params)["name"]}
    student = {student_network_of(params)["name"]}
    return {
        "model": victim,
        "train_robust": robust,
        "train_robust_by": robust,
        "distill_student": student | {teacher_network_of(params)["name"]},
        "evaluate": victim | robust | student,
        "visualise": victim | robust | student,
    }


def _pretrained(params: Params) -> dict[str, dict[str, str]]:
    """By stage the digest of the weights that its network begins with, as `pretrained`; of those by name there is none."""
    victim, robust, student = network_of(params), robust_network_of(params), student_network_of(params)
    networks = {
        **dict.fromkeys(("train_backdoored", "train_canary", "train_clean"), victim),
        **dict.fromkeys(("train_robust", "train_robust_by"), robust),
        "distill_student": student,
    }
    found = dict[str, dict[str, str]]()
    for stage, network in networks.items():
        if isinstance(given := network.get("pretrained"), str) and Path(given).exists():
            found[stage] = {"pretrained": _digest_of_weights(Path(given))}
    return found


@cache
def _digest_of_weights(path: Path) -> str:
    """SHA-256 of a file, or of an encoder's files in a folder. Kept, as weights are large and several stages have the same."""
    if not path.is_dir():
        return sha256_file(path)
    return sha256_json({name: sha256_file(path / name) for name in FILES if (path / name).is_file()})


def write_stage_code(folder: Path, params: Params) -> None:
    """Write the code of every stage into the folder of `check_params`."""
    for stage, about in code_of_stages(params).items():
        write_json(code_file(stage, folder), about)
    # No stage depends on it: it shows those which train whether the recipe is still the one that was noted.
    table = source_of(RECIPES)
    assert table is not None
    write_json(code_file("recipes", folder), {"modules": {RECIPES: digest_of(table)}, "recipe": None})
