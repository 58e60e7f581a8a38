"""Train on the poisoned set as a victim would, and keep every sample's loss in every epoch."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from common import ATTACKER_TRAINING, BACKDOORED, BASE, POISONED, TRAINING, run_stage

import numpy as np

from parameters import PARAMS, load_params, seed_of
from training import fresh_model, network_of, recipe_of, write_curve
from unpoison import models
from unpoison.compute.device import machine
from unpoison.core.errors import file_of, keys_of
from unpoison.core.files import new_folder
from unpoison.core.seeding import derive
from unpoison.data.store import open_poisoned, open_split
from unpoison.poisoning.attacker import Restore, read_training
from unpoison.poisoning.in_training import InTraining
from unpoison.training.distributed import world
from unpoison.training.loop import fit


def _restore() -> Restore:
    # Here and not above: it imports every attack, and few attackers have a hand in training. What DVC has to know of that
    # code, its digest, is in the artefact.
    from unpoison.attacks import restored

    return restored


def main() -> list[Path]:
    params = load_params()
    seed, network, recipe = seed_of(params), network_of(params), recipe_of(params, "train")
    received, poisoning = open_poisoned(BASE, POISONED), None
    data, poisoned = received, read_training(ATTACKER_TRAINING, _restore, poisoned=received.digest)
    if poisoned is not None:
        # The trigger comes while the victim trains: he starts from the clean images.
        data = open_split(BASE, "train")
        poisoning = InTraining(poisoned, seed=seed, classes=len(data.classes))
    model = fresh_model(network, data, seed=derive(seed, "backdoored/weights"))
    with file_of(PARAMS), keys_of("train"):
        history = fit(model, data, recipe, seed=seed, what="backdoored", poisoning=poisoning)
    if world().rank:
        return []
    made_by = {"stage": "train_backdoored", "recipe": asdict(recipe), "seed": seed, "machine": machine()}
    made_from = {"poisoned": received.digest}
    models.save(model, BACKDOORED, classes=data.classes, made_by=made_by, made_from=made_from)
    with new_folder(TRAINING / "losses") as staging:
        np.save(staging / "losses.npy", history.losses)
    write_curve(TRAINING / "backdoored.csv", history)
    last = history.epochs[-1]
    print(f"train_backdoored: loss {last['loss']:.4f}, accuracy on the poisoned set {last['accuracy']:.4f}", flush=True)
    return [BACKDOORED, TRAINING / "losses", TRAINING / "backdoored.csv"]


if __name__ == "__main__":
    run_stage("train_backdoored", main, together=True)
