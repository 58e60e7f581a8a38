"""Poison the training set: an overlay, which is what a victim receives, and apart from it the truth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common import BASE, PARAMS, POISONED, SCRATCH, TRUTH, Params, checked, load_params, run_stage, section, seed_of
from unpoison import models
from unpoison.attacks import ATTACKS, multi
from unpoison.core.errors import UserError
from unpoison.crafting.assets import AssetStore
from unpoison.crafting.context import Scene
from unpoison.crafting.craft import Intent, intent, poison
from unpoison.data.imageset import ImageSet
from unpoison.data.store import new_overlay, open_split
from unpoison.poisoning.truth import write_truth
from unpoison.training.recipe import Recipe
from unpoison.training.recipes import recipe_named

WHERE = f"{PARAMS}: attack"


@dataclass(frozen=True)
class Settings:
    """The attack's name ("none" for data of unknown origin), one intent per trigger, the attacker's own networks."""

    name: str
    intents: list[Intent]
    network: dict[str, Any]
    recipe: Recipe

    def scene(self, train: ImageSet, seed: int, store: AssetStore) -> Scene:
        return Scene(train=train, seed=seed, network=self.network, recipe=self.recipe, store=store, where=WHERE)


def settings(params: Params) -> Settings:
    attack = section(params, "attack")
    name, surrogate = attack.pop("name", None), attack.pop("surrogate", {})
    if name not in ("none", "multi", *ATTACKS):
        raise UserError(f"{WHERE}.name: {name!r} given, allowed: none, multi, {', '.join(ATTACKS)}")
    policy = {key: value for key, value in attack.items() if key not in ("multi", *ATTACKS)}
    intents = []
    if name == "multi":
        triggers = checked(params, "attack.multi", multi.options).get("triggers", list(multi.DEFAULT))
        intents = multi.intents(policy, {key: attack.get(key) or {} for key in ATTACKS}, triggers, where=WHERE)
    elif name != "none":
        intents = [intent(name, policy, attack.get(name) or {}, where=WHERE)]
    return Settings(name, intents, *_surrogate(surrogate))


def _surrogate(block: Any) -> tuple[dict[str, Any], Recipe]:
    """Network and recipe of what the attacker trains himself."""
    if not isinstance(block, dict) or set(block) - {"model", "train"}:
        raise UserError(f"{WHERE}.surrogate: {block!r} given, allowed: blocks `model` and `train`")
    for key, value in block.items():
        if value is not None and not isinstance(value, dict):
            raise UserError(f"{WHERE}.surrogate.{key}: {value!r} given, allowed: a block of keys")
    network = {key: value for key, value in (block.get("model") or {"name": "resnet18"}).items() if value is not None}
    name = network.pop("name", None)
    arguments = models.network_arguments(name, network, where=f"{WHERE}.surrogate.model")
    return {"name": name, **arguments}, recipe_named(block.get("train") or {}, where=f"{WHERE}.surrogate.train")


def main() -> list[Path]:
    params = load_params()
    seed, chosen = seed_of(params), settings(params)
    train = open_split(BASE, "train")
    if chosen.name == "none":
        nothing = np.zeros(0, np.int64)
        with new_overlay(POISONED, train, nothing, nothing):
            write_truth(TRUTH, None)
        print("poison: attack none, the training set is left as it is and no truth is known", flush=True)
        return [POISONED, TRUTH]
    scene = chosen.scene(train, seed, AssetStore(SCRATCH / "assets"))
    truth = poison(chosen.name, chosen.intents, scene, where=WHERE)
    index = np.flatnonzero(truth.part >= 0)
    labels = truth.labels_given(len(train.classes))
    with new_overlay(POISONED, train, index, labels[index]) as overlay:
        for keys in train.chunks(index):
            overlay.write(np.searchsorted(index, keys), truth.stamped(train, keys))
    write_truth(TRUTH, truth)
    poisoned, covers = int(truth.mask.sum()), int(truth.cover.sum())
    print(
        f"poison: {poisoned} of {len(train)} samples ({poisoned / len(train):.2%} of all)"
        + (f", {covers} cover samples ({covers / len(train):.2%})" if covers else "")
        + ("; a snapshot: triggers are stamped in training" if truth.in_training else ""),
        flush=True,
    )
    return [POISONED, TRUTH]


if __name__ == "__main__":
    run_stage("poison", main)
