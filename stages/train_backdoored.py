"""Train on the poisoned set as a victim would, and keep every sample's loss in every epoch.

It reads the truth for one purpose: attacks that stamp their trigger while the victim trains.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common import (
    BACKDOORED,
    BASE,
    PARAMS,
    POISONED,
    TRAINING,
    TRUTH,
    Params,
    load_params,
    run_stage,
    section,
    seed_of,
)
from unpoison import models
from unpoison.compute.device import machine
from unpoison.core.files import new_file, new_folder
from unpoison.core.seeding import derive
from unpoison.data.store import open_poisoned, open_split
from unpoison.poisoning.in_training import InTraining
from unpoison.poisoning.truth import read_truth
from unpoison.training.distributed import world
from unpoison.training.loop import fit
from unpoison.training.recipe import Recipe
from unpoison.training.recipes import recipe_named


def settings(params: Params) -> tuple[dict[str, Any], Recipe]:
    """The network's name and arguments, and the recipe."""
    # A key that is null is as good as absent: the file lists arguments that only some networks have.
    network = {key: value for key, value in section(params, "model").items() if value is not None}
    name = network.pop("name", None)
    arguments = models.network_arguments(name, network, where=f"{PARAMS}: model")
    return {"name": name, **arguments}, recipe_named(section(params, "train"), where=f"{PARAMS}: train")


def main() -> list[Path]:
    params = load_params()
    seed, (network, recipe) = seed_of(params), settings(params)
    truth, poisoning = read_truth(TRUTH), None
    if truth is not None and truth.in_training:
        data = open_split(BASE, "train")
        poisoning = InTraining(truth, seed=seed, classes=len(data.classes))
    else:
        data = open_poisoned(BASE, POISONED)
    model = models.build(
        **network,
        num_classes=len(data.classes),
        image_size=data.image_size,
        channels=data.channels,
        seed=derive(seed, "backdoored/weights"),
    )
    history = fit(model, data, recipe, seed=seed, what="backdoored", poisoning=poisoning)
    if world().rank:
        return []
    made_by = {"stage": "train_backdoored", "seed": seed, "machine": machine()}
    models.save(model, BACKDOORED, classes=data.classes, made_by=made_by)
    with new_folder(TRAINING / "losses") as staging:
        np.save(staging / "losses.npy", history.losses)
    with new_file(TRAINING / "backdoored.csv") as staging:
        pd.DataFrame(history.epochs).to_csv(staging, index=False)
    last = history.epochs[-1]
    print(f"train_backdoored: loss {last['loss']:.4f}, accuracy on the poisoned set {last['accuracy']:.4f}", flush=True)
    return [BACKDOORED, TRAINING / "losses", TRAINING / "backdoored.csv"]


if __name__ == "__main__":
    run_stage("train_backdoored", main, together=True)
