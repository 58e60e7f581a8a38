"""Train the victim's network by the victim's recipe on the clean training set: the control of every attack."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from common import BASE, CLEAN, TRAINING, run_stage

from federated import federation_of, train_in_federation
from parameters import PARAMS, load_params, seed_of
from training import fresh_model, network_of, recipe_of, write_curve
from unpoison import models
from unpoison.compute.device import machine
from unpoison.compute.distributed import world
from unpoison.core.errors import file_of, keys_of
from unpoison.core.manifest import write_absent
from unpoison.core.seeding import derive
from unpoison.data.store import open_split
from unpoison.training.loop import History, fit
from without import why_without

CURVE = TRAINING / "clean.csv"


def main() -> list[Path]:
    params = load_params()
    seed, network, recipe = seed_of(params), network_of(params), recipe_of(params, "train")
    if (why := why_without("control")) is not None:
        if not world().rank:
            write_absent(CLEAN, why)
            write_curve(CURVE, History.none())
        return [CLEAN, CURVE]
    data = open_split(BASE, "train")
    model = fresh_model(network, data, seed=derive(seed, "clean/weights"))
    if (federation := federation_of(params)) is not None:
        # The victim's federation, of honest clients alone.
        honest, recipe = federation.without_attackers(), replace(recipe, epochs=federation.local_epochs)
        history, _ = train_in_federation(model, data, data, recipe, honest, seed=seed, what="clean")
    else:
        with file_of(PARAMS), keys_of("train"):
            history = fit(model, data, recipe, seed=seed, what="clean")
    if world().rank:
        return []
    made_by: dict[str, Any] = {"stage": "train_clean", "recipe": asdict(recipe), "seed": seed, "machine": machine()}
    if federation is not None:
        made_by["federation"] = federation.of_the_server
    if history.spent:
        made_by["privacy"] = history.spent
    models.save(model, CLEAN, classes=data.classes, made_by=made_by, made_from={"base": data.digest})
    write_curve(CURVE, history)
    print(
        f"train_clean: loss {history.epochs[-1]['loss']:.4f}, accuracy {history.epochs[-1]['accuracy']:.4f}", flush=True
    )
    return [CLEAN, CURVE]


if __name__ == "__main__":
    run_stage("train_clean", main, together=True)
