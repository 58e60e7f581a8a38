"""A picture of every trigger of a suite: the same images stamped for training and for the test, with the difference."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from .. import models
from ..attacks import ATTACKS, hand_of
from ..core.arrays import Images
from ..core.content_store import ContentStore
from ..core.errors import ParameterError, UserError
from ..core.files import new_file, sha256_json
from ..crafting.attack import Intent, intents_of
from ..crafting.context import Context
from ..crafting.craft import craft, make_trigger, optimised
from ..data.imageset import ImageSet
from ..data.store import open_split
from ..poisoning.trigger import Trigger, stamp
from ..reporting import figures
from ..training.loop import fit
from ..training.recipes import APART, recipe_named
from .git import Repository
from .params import FOLDER, PARAMS, Params, params_at, params_of
from .reading import read_suite
from .run import chosen
from .runner import overrides_of
from .suite import Row, Suite

ATTACKS_FILE = f"{FOLDER}/attacks.yaml"
ENHANCED = 10
"""Factor of the differences."""


def sheet(
    repository: Repository, name: str, scale: str | None, data: str | None, *, only: Sequence[str] = (), images: int = 3
) -> Path:
    """Draw the triggers of a suite's experiments, with the parameters of the last commit and each one's first value.

    Args:
        name, scale, data: as for `run.run`.
        only: names of experiments, of the suite's file; none: all.
        images: how many, of the target class, so that clean-label attacks are shown on images they could stamp.

    Returns:
        The picture's path: a row per trigger, `NAME-SCALE.png` beside the suite's page.
    """
    suite = read_suite(name, repository.suites)
    scale, data = chosen(suite, scale, data)
    names = dict.fromkeys(experiment.name for experiment in suite.experiments.values())
    for given in only:
        if given not in names:
            raise UserError(f"--experiments: {given!r} given, allowed: {', '.join(names)}")
    params = _params(repository, suite, scale, data, only or list(names))
    store, rows = ContentStore(repository.scratch / "store"), dict[str, Images]()
    for label, wanted, own in _different(params):
        train = open_split(_prepared(repository, own), "train")
        context = _context(own, train, store)
        keys = np.flatnonzero(train.labels == own["attack"]["target"])[:images]
        clean = train.gather(keys)
        rows.setdefault("clean", _side_by_side(clean, clean, clean))
        trigger = optimised(wanted, make_trigger(wanted, context), context, keys)
        if trigger.trained:
            trigger = _trained(wanted, context, own)
        rows[label] = _side_by_side(clean, *(stamp(trigger, clean, keys, train=hand) for hand in (True, False)))
    pairs = len(rows["clean"]) // 4
    titles = [f"{kind}{end}" for kind in ("training", "test") for _ in range(pairs) for end in ("", f" ×{ENHANCED}")]
    path = repository.report(f"{name}-{scale}.png")
    with new_file(path) as staging:
        staging.write_bytes(figures.contact_sheet(rows, titles))
    return path


def _params(
    repository: Repository, suite: Suite, scale: str, data: str | None, names: Sequence[str]
) -> dict[str, Params]:
    """By experiment's name, the parameters of its run with the first value and the first seed."""
    committed, seed = params_at(repository.root, "HEAD"), suite.scales[scale].seeds[0]
    first = {experiment.name: key for key, experiment in suite.experiments.items() if not experiment.place}
    rows = {name: Row(scale, first[name], seed) for name in names}
    return {
        name: params_of(suite, committed, overrides_of(suite, row, committed, repository.root, data))
        for name, row in rows.items()
    }


def _prepared(repository: Repository, params: Params) -> Path:
    """The base data set, made by the pipeline's own stage in a folder of its own."""
    folder = repository.scratch / f"base-{sha256_json(params['data'])[:8]}"
    base = folder / "data" / "base"
    if not (base / "manifest.json").is_file():
        files = {key: value for key, value in params.items() if key.startswith(f"{FOLDER}/")}
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        for path, values in {**files, PARAMS: {k: v for k, v in params.items() if k not in files}}.items():
            YAML(typ="safe", pure=True).dump(values, folder / path)
        program = repository.root / "stages" / "prepare.py"
        done = subprocess.run(
            [sys.executable, str(program)], cwd=folder, env={**os.environ, "UNPOISON_SCRATCH": str(folder)}
        )
        if done.returncode:
            raise UserError(f"{folder}: the data set could not be prepared, see above")
    return base


def _different(params: Mapping[str, Params]) -> Iterator[tuple[str, Intent, Params]]:
    """Label, intent and parameters of each trigger; experiments that differ in policy or training only share theirs."""
    seen: set[str] = set()
    for name, own in params.items():
        policy = {key: value for key, value in own["attack"].items() if key not in ("name", "surrogate")}
        try:
            intents = intents_of(own["attack"]["name"], ATTACKS, policy, own[ATTACKS_FILE])
        except ParameterError as error:
            raise UserError(f"{name}: {error}") from None
        triggers = repr([(wanted.attack, wanted.arguments, wanted.policy.target) for wanted in intents])
        if triggers not in seen:
            seen.add(triggers)
            for number, wanted in enumerate(intents):
                yield (name if len(intents) == 1 else f"{name}: {number}_{wanted.attack}"), wanted, own


def _context(params: Params, train: ImageSet, store: ContentStore) -> Context:
    """The attacker's context, as the stage `poison` makes it."""
    surrogate: Mapping[str, Any] = params["attack"]["surrogate"]
    given = {key: value for key, value in surrogate["model"].items() if value is not None}
    network = given.pop("name")
    return Context(
        train=train,
        seed=params["seed"],
        network={"name": network, **models.network_arguments(network, given)},
        recipe=recipe_named(surrogate["train"]),
        store=store,
    )


def _trained(wanted: Intent, context: Context, params: Params) -> Trigger:
    """The trigger as it is once a victim is trained, by the victim's network and recipe."""
    hand = hand_of(craft(wanted.attack, [wanted], context), context.train, seed=context.seed)
    given = {key: value for key, value in params["model"].items() if value is not None}
    name, data = given.pop("name"), context.train
    about = {"image_size": data.image_size, "channels": data.channels, **models.network_arguments(name, given)}
    model = models.build(name, num_classes=len(data.classes), seed=context.seed, **about)
    recipe = {key: value for key, value in params["train"].items() if key not in APART}
    fit(model, data, recipe_named(recipe), seed=context.seed, what=wanted.attack, hand=hand)
    return hand.trained()[0]


def _side_by_side(clean: Images, trained: Images, tested: Images) -> Images:
    """Each image with its enhanced difference: uint8 [4 n, h, w, c]."""
    columns = []
    for stamped in (trained, tested):
        difference = (np.abs(stamped.astype(int) - clean) * ENHANCED).clip(0, 255).astype(np.uint8)
        columns.append(np.stack([stamped, difference], 1).reshape(-1, *clean.shape[1:]))
    return np.concatenate(columns)
