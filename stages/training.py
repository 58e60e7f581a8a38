"""What stages that train a classifier share: the network and the recipe of the parameters, and how a model is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from common import BACKDOORED, BASE, POISONED, VARIATIONS
from parameters import FAMILIES, PARAMS, Params, own_parameters, section, seed_of
from unpoison import models
from unpoison.compute.device import machine
from unpoison.core.errors import file_of, keys_of
from unpoison.core.files import new_file
from unpoison.data.imageset import ImageSet
from unpoison.data.store import open_poisoned, open_split
from unpoison.robust.robust import Robust
from unpoison.training.distributed import world
from unpoison.training.loop import History
from unpoison.training.recipe import Recipe
from unpoison.training.recipes import recipe_named


def network_of(params: Params) -> dict[str, Any]:
    """The section `model`: the network's name and arguments, as `models.build` takes them."""
    # A key that is null is as good as absent: the file lists arguments that only some networks have.
    network = {key: value for key, value in section(params, "model").items() if value is not None}
    name = network.pop("name", None)
    with file_of(PARAMS), keys_of("model"):
        return {"name": name, **models.network_arguments(name, network)}


def recipe_of(params: Params, name: str) -> Recipe:
    """The recipe that a section (`train`, `distill.train`) stands for."""
    with file_of(PARAMS), keys_of(name):
        return recipe_named(section(params, name))


def fresh_model(network: Mapping[str, Any], data: ImageSet, *, seed: int) -> models.Classifier:
    """The network for the images and classes of `data`, with fresh weights."""
    about: dict[str, Any] = {"image_size": data.image_size, "channels": data.channels, **network}
    return models.build(**about, num_classes=len(data.classes), seed=seed)


def write_curve(path: Path, history: History) -> None:
    """A row per epoch: epoch, loss, accuracy, learning rate."""
    with new_file(path) as staging:
        pd.DataFrame(history.epochs, columns=["epoch", "loss", "accuracy", "lr"]).to_csv(staging, index=False)


INPUTS: Mapping[str, Callable[[], Any]] = {
    "data": lambda: open_poisoned(BASE, POISONED),
    "reserve": lambda: open_split(BASE, "reserve"),
    "variations": lambda: open_split(VARIATIONS, "train"),
    "backdoored": lambda: models.load(BACKDOORED),
}
"""What a robust method may train on, by the names that `Robust.inputs` uses."""


def train_robustly(
    name: str,
    method: Robust,
    params: Params,
    make_model: Callable[[], models.Classifier],
    recipe: Recipe,
    *,
    stage: str,
    folder: Path,
    curve: Path,
) -> list[Path]:
    """Train with a robust method, and write the model and its training curve.

    Args:
        name: the method's.
        make_model: gives the network with fresh weights.
        recipe: of the training.
        stage: the stage's name, for `model.json`.
        folder, curve: where model and curve go.
    """
    seed, arguments = seed_of(params), own_parameters(params, "robust", name, method.parameters)
    inputs = {given: INPUTS[given]() for given in method.inputs}
    with file_of(FAMILIES["robust"]), keys_of(name):
        model, history = method.train(make_model, *inputs.values(), recipe, seed=seed, **arguments)
    if world().rank:
        return []
    sets = {given: data for given, data in inputs.items() if isinstance(data, ImageSet)}
    made_from = {"poisoned" if given == "data" else given: data.digest for given, data in sets.items()}
    if "backdoored" in inputs:
        made_from["backdoored"] = models.digest_of(BACKDOORED)
    made_by = {"stage": stage, "method": name, "parameters": arguments, "recipe": asdict(recipe), "seed": seed}
    classes = next(iter(sets.values())).classes
    models.save(model, folder, classes=classes, made_by={**made_by, "machine": machine()}, made_from=made_from)
    write_curve(curve, history)
    last = history.epochs[-1]
    print(f"{stage}: loss {last['loss']:.4f}, accuracy on what it was trained on {last['accuracy']:.4f}", flush=True)
    return [folder, curve]
