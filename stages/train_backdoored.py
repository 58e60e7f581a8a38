"""Train on the poisoned set as a victim would, and keep every sample's loss in every epoch; or take over a model received."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from common import (
    ATTACKER_TRAINED,
    ATTACKER_TRAINING,
    BACKDOORED,
    BASE,
    POISONED,
    SCRATCH,
    TRAINING,
    code_file,
    run_stage,
)

import numpy as np

from federated import States, check_attackers, federation_of, refuse_hand, train_in_federation
from kept_rounds import ROUNDS
from parameters import PARAMS, load_params, seed_of
from received import origin_of, received_of
from training import fresh_model, network_of, recipe_of, write_curve
from unpoison import models
from unpoison.compute.checkpoints import Checkpoints
from unpoison.compute.device import machine
from unpoison.compute.distributed import world
from unpoison.core.errors import file_of, keys_of
from unpoison.core.files import new_folder, read_json, sha256_file, sha256_json
from unpoison.core.seeding import derive
from unpoison.data.imageset import ImageSet
from unpoison.data.store import open_poisoned, open_split
from unpoison.federation.kept import write_rounds
from unpoison.poisoning import attacker
from unpoison.poisoning.attacker import Restore, read_training, write_trained
from unpoison.poisoning.poisoned import Poisoned
from unpoison.training.loop import History, fit

if TYPE_CHECKING:
    from unpoison.crafting.stamping import Stamping


# In functions and not above: these import every attack, and few attackers have a hand in training. What DVC has to know of that
# code, its digest, is in the artefact.
def _restore() -> Restore:
    from unpoison.attacks import restored

    return restored


def _hand(poisoned: Poisoned, data: ImageSet, seed: int) -> Stamping:
    from unpoison.attacks import hand_of

    return hand_of(poisoned, data, seed=seed)


def main() -> list[Path]:
    params = load_params()
    seed, network, recipe = seed_of(params), network_of(params), recipe_of(params, "train")
    received, hand, federation = open_poisoned(BASE, POISONED), None, federation_of(params)
    if (folder := received_of(params)) is not None:
        return _take_over(folder, received, seed)
    data, poisoned = received, read_training(ATTACKER_TRAINING, _restore, poisoned=received.digest)
    if federation is not None:
        recipe = replace(recipe, epochs=federation.local_epochs)
        if poisoned is not None:
            raise refuse_hand(f"{poisoned.truth.attack}, which stamps while the victim trains")
        # What the attack has changed is the attackers' to train on, and this stage plays them as it plays all clients.
        changed = received.overlay is not None and len(received.overlay.index) > 0
        check_attackers(federation, attacked=changed or federation.attackers > 0)
    if poisoned is not None:
        # The trigger comes while the victim trains: he starts from the clean images.
        data = open_split(BASE, "train")
        with file_of(ATTACKER_TRAINING / attacker.DESCRIPTION):
            hand = _hand(poisoned, data, seed)
    model = fresh_model(network, data, seed=derive(seed, "backdoored/weights"))
    # All that the training depends on, and so the name of its checkpoints.
    about = [
        received.digest,
        sha256_file(ATTACKER_TRAINING / attacker.DESCRIPTION),
        network,
        asdict(recipe),
        seed,
        machine(),
    ]
    checkpoints, states = None, States()
    # Run by hand without `check_params`, nobody has said what code runs.
    if federation is None and (noted := code_file("train_backdoored")).exists():
        key = sha256_json([*about, read_json(noted)])
        checkpoints = Checkpoints(SCRATCH / "backdoored", key, what="backdoored", unit="epoch")
    if federation is not None:
        clean = open_split(BASE, "train")
        history, states = train_in_federation(model, clean, data, recipe, federation, seed=seed, what="backdoored")
    else:
        with file_of(PARAMS), keys_of("train"):
            history = fit(model, data, recipe, seed=seed, what="backdoored", hand=hand, checkpoints=checkpoints)
    if world().rank:
        return []
    made_by: dict[str, Any] = {
        "stage": "train_backdoored",
        "recipe": asdict(recipe),
        "seed": seed,
        "machine": machine(),
    }
    if federation is not None:
        made_by["federation"] = federation.of_the_server
    if history.spent:
        made_by["privacy"] = history.spent
    made_from = {"poisoned": received.digest}
    final = None if hand is None else replace(hand.poisoned, triggers=hand.trained())
    models.save(model, BACKDOORED, classes=data.classes, made_by=made_by, made_from=made_from)
    made_from["backdoored"] = models.digest_of(BACKDOORED)
    write_trained(ATTACKER_TRAINED, final, made_from)
    write_rounds(ROUNDS, states, made_from)
    with new_folder(TRAINING / "losses") as staging:
        np.save(staging / "losses.npy", history.losses)
    write_curve(TRAINING / "backdoored.csv", history)
    if checkpoints is not None:
        checkpoints.remove()
    last = history.epochs[-1]
    seen = "the poisoned set" if federation is None else "their own samples, of the last round's clients,"
    print(f"train_backdoored: loss {last['loss']:.4f}, accuracy on {seen} {last['accuracy']:.4f}", flush=True)
    return [BACKDOORED, ATTACKER_TRAINED, ROUNDS, TRAINING / "losses", TRAINING / "backdoored.csv"]


def _take_over(folder: Path, data: ImageSet, seed: int) -> list[Path]:
    """Write the model received as the victim, of which there is no training to tell."""
    if world().rank:
        return []
    model, about = models.load(folder, data), models.read_about(folder)
    digest = sha256_file(folder / models.DESCRIPTION)
    made_by = {
        "stage": "train_backdoored",
        "received": origin_of(about.made_by, digest),
        "seed": seed,
        "machine": machine(),
    }
    made_from = {"poisoned": data.digest, "received": digest}
    models.save(model, BACKDOORED, classes=data.classes, made_by=made_by, made_from=made_from)
    made_from["backdoored"] = models.digest_of(BACKDOORED)
    write_trained(ATTACKER_TRAINED, None, made_from)
    write_rounds(ROUNDS, {}, made_from)
    nothing = History([], np.zeros((0, len(data)), np.float32))
    with new_folder(TRAINING / "losses") as staging:
        np.save(staging / "losses.npy", nothing.losses)
    write_curve(TRAINING / "backdoored.csv", nothing)
    print(f"train_backdoored: nothing trained, the model received has SHA-256 {models.digest_of(folder)}", flush=True)
    return [BACKDOORED, ATTACKER_TRAINED, ROUNDS, TRAINING / "losses", TRAINING / "backdoored.csv"]


if __name__ == "__main__":
    run_stage("train_backdoored", main, together=True)
