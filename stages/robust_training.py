"""What stages of robust training share: a method is handed what it trains on, and its model and curve are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from inspect import signature
from pathlib import Path
from typing import Any

from common import BACKDOORED, BASE, POISONED, VARIATIONS

from parameters import FAMILIES, PARAMS, Params, own_parameters, seed_of
from training import write_curve
from unpoison import models
from unpoison.compute.device import machine
from unpoison.core.errors import ParameterError, file_of, keys_of
from unpoison.data.imageset import ImageSet
from unpoison.data.store import open_poisoned, open_split
from unpoison.robust.robust import Robust
from unpoison.training.distributed import world
from unpoison.training.recipe import Recipe

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
    recipe_section: str,
    stage: str,
    folder: Path,
    curve: Path,
) -> list[Path]:
    """Train with a robust method, and write the model and its training curve.

    Args:
        name: the method's.
        make_model: gives the network with fresh weights.
        recipe: of the training.
        recipe_section: where in params.yaml it comes from, for messages.
        stage: the stage's name, for `model.json`.
        folder, curve: where model and curve go.
    """
    seed, arguments = seed_of(params), own_parameters(params, "robust", name, method.parameters)
    inputs = {given: INPUTS[given]() for given in method.inputs}
    with _keys(name, method, recipe_section):
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


@contextmanager
def _keys(name: str, method: Robust, recipe_section: str) -> Iterator[None]:
    """Say where the key of a `ParameterError` lies: a method's own in `params/robust.yaml`, the recipe's in `params.yaml`."""
    try:
        yield
    except ParameterError as error:
        own = str(error).partition(":")[0] in signature(method.parameters).parameters
        with file_of(FAMILIES["robust"] if own else PARAMS), keys_of(name if own else recipe_section):
            raise
