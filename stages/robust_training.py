"""What stages of robust training share: a method is handed what it trains on, and its model and curve are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from inspect import signature
from pathlib import Path
from typing import Any

from common import BASE, POISONED, ROBUST, SCRATCH, TRAINING, code_file

from by_artefact import DESCRIPTIONS, read_scored
from not_applicable import without_set
from parameters import FAMILIES, PARAMS, Params, own_parameters, seed_of
from robust_methods import check_private
from robust_networks import robust_network_of
from training import fresh_model, recipe_of, write_curve
from unpoison import models
from unpoison.compute.checkpoints import Checkpoints
from unpoison.compute.device import machine
from unpoison.compute.distributed import world
from unpoison.core.errors import ParameterError, UserError, file_of, keys_of
from unpoison.core.files import read_json, sha256_file, sha256_json
from unpoison.core.seeding import derive
from unpoison.data.imageset import ImageSet
from unpoison.data.store import open_poisoned, open_split
from unpoison.robust import ROBUST as METHODS
from unpoison.robust.robust import Robust
from unpoison.training.loop import History
from unpoison.training.recipe import Recipe

INPUTS: Mapping[str, Callable[[], Any]] = {
    "data": lambda: open_poisoned(BASE, POISONED),
    "reserve": lambda: open_split(BASE, "reserve"),
}
"""What a robust method without a stage of its own may train on, by the names that `Robust.inputs` uses."""


def train_by_recipe(stage: str, params: Params, *, by: Path | None = None) -> list[Path]:
    """Train the network of `robust.model` by the recipe of `train`, with the method that the stage's name ends in.

    Args:
        stage: the stage's name as in `dvc.yaml` (`train_robust@abl`).
        params: all parameters.
        by: folder of the scores that the method builds on.
    """
    name = stage.partition("@")[2]
    folder, curve = ROBUST / name, TRAINING / "robust" / f"{name}.csv"
    if without_set(stage, folder):
        write_curve(curve, History.none())
        return [folder, curve]
    check_private(params, name)
    network, base = robust_network_of(params), open_split(BASE, "train")

    def make_model() -> models.Classifier:
        return fresh_model(network, base, seed=derive(seed_of(params), f"{name}/weights"))

    return train_robustly(
        name,
        METHODS[name],
        params,
        make_model,
        recipe_of(params, "train"),
        network=network,
        recipe_section="train",
        stage=stage,
        folder=folder,
        curve=curve,
        by=by,
    )


def train_robustly(
    name: str,
    method: Robust,
    params: Params,
    make_model: Callable[[], models.Classifier],
    recipe: Recipe,
    *,
    network: Mapping[str, Any],
    recipe_section: str,
    stage: str,
    folder: Path,
    curve: Path,
    by: Path | None = None,
    given: Mapping[str, Any] | None = None,
    given_from: Mapping[str, str] | None = None,
) -> list[Path]:
    """Train with a robust method, and write the model and its training curve. A killed training goes on where it was.

    Args:
        name: the method's.
        make_model: gives the network with fresh weights.
        recipe: of the training.
        network: name and arguments of the network, by which checkpoints are found.
        recipe_section: where in params.yaml it comes from, for messages.
        stage: the stage's name, for `model.json`.
        folder, curve: where model and curve go.
        by: folder of the scores that the method builds on.
        given: inputs by name, of a method that has a stage of its own.
        given_from: digest by name of those of them that are no data sets.
    """
    seed, arguments = seed_of(params), own_parameters(params, "robust", name, method.parameters)
    present = given or {}
    inputs = {what: present[what] if what in present else INPUTS[what]() for what in method.inputs}
    sets = {what: data for what, data in inputs.items() if isinstance(data, ImageSet)}
    trusted = len(sets.get("reserve", ()))
    if trusted < (needed := method.needs_trusted(**arguments)):
        raise UserError(
            f"{BASE}/reserve: {trusted} trusted images, allowed: at least {needed}, {name} needs them; raise data.reserve"
        )
    made_from = {"poisoned" if what == "data" else what: data.digest for what, data in sets.items()}
    made_from |= given_from or {}
    scored = [] if by is None else [read_scored(by)]
    if by is not None:
        # The description holds the digests of all files of the artefact.
        made_from["scores"] = sha256_file(by / DESCRIPTIONS["scores"])
    made_by = {"stage": stage, "method": name, "parameters": arguments, "recipe": asdict(recipe), "seed": seed}
    kept = _Kept(stage, [made_from, made_by, network, machine()])
    with _keys(name, method, recipe_section):
        model, history = method.train(make_model, *inputs.values(), *scored, recipe, kept.phase, seed=seed, **arguments)
    if world().rank:
        return []
    classes = next(iter(sets.values())).classes
    found = {"found": history.found} if history.found else {}
    found |= {"privacy": history.spent} if history.spent else {}
    models.save(model, folder, classes=classes, made_by={**made_by, **found, "machine": machine()}, made_from=made_from)
    write_curve(curve, history)
    kept.remove()
    last = history.epochs[-1]
    print(f"{stage}: loss {last['loss']:.4f}, accuracy on what it was trained on {last['accuracy']:.4f}", flush=True)
    if history.found:
        print(f"{stage}: found {', '.join(f'{name} {value:.4g}' for name, value in history.found.items())}", flush=True)
    return [folder, curve]


class _Kept:
    """Checkpoints of the phases of a training, until its model is written."""

    def __init__(self, stage: str, about: list[Any]) -> None:
        """`about` is all that the training depends on besides the code, which `check_params` has noted."""
        self.folder, self.about, self.phases = SCRATCH / stage.replace("@", "_"), about, list[Checkpoints]()
        # Run by hand without `check_params`, nobody has said what code runs.
        self.code = read_json(noted) if (noted := code_file(stage)).exists() else None

    def phase(self, name: str) -> Checkpoints | None:
        """The checkpoints of a phase. They stay when it has ended: of a killed training it is then not done again."""
        if self.code is None:
            return None
        key = sha256_json([*self.about, self.code, name])
        self.phases.append(Checkpoints(self.folder, key, what=name, unit="epoch"))
        return self.phases[-1]

    def remove(self) -> None:
        for phase in self.phases:
            phase.remove()


@contextmanager
def _keys(name: str, method: Robust, recipe_section: str) -> Iterator[None]:
    """Say where the key of a `ParameterError` lies: a method's own in `params/robust.yaml`, the recipe's in `params.yaml`."""
    try:
        yield
    except ParameterError as error:
        own = str(error).partition(":")[0] in signature(method.parameters).parameters
        with file_of(FAMILIES["robust"] if own else PARAMS), keys_of(name if own else recipe_section):
            raise
