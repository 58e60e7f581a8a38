"""Plant canaries in a copy of the suspect set and train on it as on the set itself: `python stages/train_canary.py 0`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from common import BASE, POISONED, say

import numpy as np

from canary import MODELS, PLANTED, SET, TRUTH, open_planted, run_of_round
from parameters import PARAMS, load_params, seed_of
from training import fresh_model, network_of, recipe_of
from unpoison import models
from unpoison.compute.device import machine
from unpoison.compute.distributed import world
from unpoison.core.errors import file_of, keys_of
from unpoison.core.seeding import derive
from unpoison.data.store import new_overlay, open_poisoned, open_split
from unpoison.poisoning.truth import write_truth
from unpoison.scan.canaries import plant
from unpoison.training.loop import fit


def main(number: int) -> list[Path]:
    params = load_params()
    seed, network, recipe = derive(seed_of(params), "canary", number), network_of(params), recipe_of(params, "train")
    folder = PLANTED / str(number)
    if not world().rank:
        _plant(seed, folder)
    world().wait()
    data = open_planted(number)
    model = fresh_model(network, data, seed=derive(seed, "canary/weights"))
    with file_of(PARAMS), keys_of("train"):
        history = fit(model, data, recipe, seed=seed, what=f"canary {number}")
    if world().rank:
        return []
    made_by = {"stage": "train_canary", "recipe": asdict(recipe), "seed": seed, "machine": machine()}
    models.save(model, MODELS / str(number), classes=data.classes, made_by=made_by, made_from={"canaries": data.digest})
    say(f"train_canary@{number}: accuracy on the set with canaries {history.epochs[-1]['accuracy']:.4f}")
    return [folder, MODELS / str(number)]


def _plant(seed: int, folder: Path) -> None:
    """Write the set with canaries, as an overlay over the base as the suspect set is one, and which samples they are."""
    received = open_poisoned(BASE, POISONED)
    planted = plant(received, seed=seed)
    replaced = received.overlay.index if received.overlay is not None else np.zeros(0, np.int64)
    index = np.union1d(planted.truth.stamped, replaced)
    labels = planted.truth.labels_received(len(received.classes))[index]
    with new_overlay(folder / SET, open_split(BASE, "train"), index, labels) as overlay:
        for keys in received.chunks(index):
            overlay.write(np.searchsorted(index, keys), planted.stamped(received, keys))
    write_truth(folder / TRUTH, planted.truth, {"poisoned": received.digest})
    kinds = ", ".join(
        f"{int((planted.truth.part == place).sum())} by {part.attack} to class {received.classes[part.policy.target]}"
        for place, part in enumerate(planted.truth.parts)
    )
    say(f"train_canary: {kinds}, of {len(received)} samples")


if __name__ == "__main__":
    run_of_round("train_canary", main, together=True)
