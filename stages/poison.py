"""Poison the training set: what a victim receives, what the attacker keeps, and apart from both the truth."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from common import ATTACKER_TRAINING, ATTACKER_TRIGGERS, BASE, POISONED, SCRATCH, TRUTH, check_code, run_stage

import numpy as np

from parameters import FAMILIES, PARAMS, Params, block, load_params, section, seed_of
from unpoison import models
from unpoison.attacks import ATTACKS
from unpoison.core.content_store import ContentStore
from unpoison.core.errors import ParameterError, UserError, file_of, keys_of
from unpoison.core.hyperparameters import one_of
from unpoison.crafting.attack import Intent, intents_of
from unpoison.crafting.context import Context
from unpoison.crafting.craft import craft
from unpoison.data.imageset import ImageSet
from unpoison.data.store import Attributes, new_overlay, open_split, poisoned_digest, read_attributes
from unpoison.data.texts import read_vocabulary
from unpoison.poisoning.attacker import write_training, write_triggers
from unpoison.poisoning.poisoned import Poisoned
from unpoison.poisoning.truth import write_truth
from unpoison.training.recipe import Recipe
from unpoison.training.recipes import recipe_named


@dataclass(frozen=True)
class Settings:
    """The attack's name, one intent per trigger (none for data of unknown origin), what he makes besides.

    Attributes:
        surrogate: whether a data set is poisoned in the place of none.
        network, recipe: of the attacker's own networks.
    """

    name: str
    intents: list[Intent]
    surrogate: bool
    network: dict[str, Any]
    recipe: Recipe

    def context(
        self,
        train: ImageSet,
        seed: int,
        store: ContentStore,
        *,
        attributes: Attributes | None = None,
        vocabulary: tuple[str, ...] = (),
    ) -> Context:
        return Context(
            train=train,
            seed=seed,
            network=self.network,
            recipe=self.recipe,
            store=store,
            attributes=attributes,
            vocabulary=vocabulary,
        )


def settings(params: Params, classes: Sequence[str] | None = None) -> Settings:
    """The section `attack` and the attack's own parameters; `classes` are the names that classes may be given by."""
    policy = section(params, "attack")
    name, surrogate = policy.pop("name", None), policy.pop("surrogate", {})
    with file_of(PARAMS), keys_of("attack"):
        one_of(name, ATTACKS, key="name")
    sections = params[FAMILIES["attacks"].as_posix()]
    own = {key: block(sections.get(key), f"{FAMILIES['attacks']}: {key}") for key in ATTACKS}
    with attack_keys():
        intents = intents_of(str(name), ATTACKS, policy, own, classes)
    chosen = Settings(str(name), intents, *_surrogate(surrogate))
    if chosen.surrogate and not intents:
        raise UserError(f"{PARAMS}: attack.surrogate.data: true given, allowed with {name}: false")
    return chosen


@contextmanager
def attack_keys() -> Iterator[None]:
    """Say where the key of a `ParameterError` lies: an attack's own in `params/attacks.yaml`, others in `params.yaml`."""
    try:
        yield
    except ParameterError as error:
        own = str(error).partition(".")[0] in ATTACKS
        raise UserError(f"{FAMILIES['attacks']}: {error}" if own else f"{PARAMS}: attack.{error}") from None


def _surrogate(given: Any) -> tuple[bool, dict[str, Any], Recipe]:
    """Whether there is to be a surrogate of a poisoned set; network and recipe of what the attacker trains himself."""
    where = f"{PARAMS}: attack.surrogate"
    if not isinstance(given, dict) or set(given) - {"data", "model", "train"}:
        raise UserError(f"{where}: {given!r} given, allowed: `data`, and blocks `model` and `train`")
    data = given.get("data", False)
    if not isinstance(data, bool):
        raise UserError(f"{where}.data: {data!r} given, allowed: true or false")
    model = {key: value for key, value in block(given.get("model"), f"{where}.model").items() if value is not None}
    name = model.pop("name", "resnet18")
    with file_of(PARAMS), keys_of("attack.surrogate"):
        with keys_of("model"):
            network = {"name": name, **models.network_arguments(name, model)}
        with keys_of("train"):
            return data, network, recipe_named(block(given.get("train"), f"{where}.train"))


def main() -> list[Path]:
    params = load_params()
    train = open_split(BASE, "train")
    seed, chosen = seed_of(params), settings(params, train.classes)
    check_code(f"poison@{chosen.name}")
    poisoned: Poisoned | None = None
    if chosen.intents:
        with attack_keys():
            store, attributes = ContentStore(SCRATCH / "store"), read_attributes(BASE, "train")
            context = chosen.context(train, seed, store, attributes=attributes, vocabulary=read_vocabulary(BASE))
            poisoned = craft(chosen.name, chosen.intents, context, surrogate=chosen.surrogate)
        poisoned.write_overlay(POISONED, train)
    else:
        nothing = np.zeros(0, np.int64)
        with new_overlay(POISONED, train, nothing, nothing):
            pass
    made_from = {"poisoned": poisoned_digest(train, POISONED)}
    write_training(ATTACKER_TRAINING, poisoned, made_from)
    write_triggers(ATTACKER_TRIGGERS, poisoned, made_from)
    write_truth(TRUTH, None if poisoned is None else poisoned.truth, made_from)
    print(f"poison: {_said(poisoned, len(train))}", flush=True)
    return [POISONED, ATTACKER_TRAINING, ATTACKER_TRIGGERS, TRUTH]


def _said(poisoned: Poisoned | None, total: int) -> str:
    if poisoned is None:
        return "attack none, the training set is left as it is and no truth is known"
    samples, covers = int(poisoned.truth.mask.sum()), int(poisoned.truth.cover.sum())
    received = {
        "set": "",
        "model": "; the victim receives a model, no data set is poisoned",
        "surrogate": "; a surrogate: the victim receives a model, and this set stands in for one that there is not",
    }
    return (
        f"{samples} of {total} samples ({samples / total:.2%} of all)"
        + (f", {covers} cover samples ({covers / total:.2%})" if covers else "")
        + received[poisoned.truth.received]
        + ("; a snapshot: triggers are stamped in training" if poisoned.truth.in_training else "")
    )


if __name__ == "__main__":
    run_stage("poison", main)
