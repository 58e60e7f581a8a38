"""Networks trained on `data.npz`, by attackers too: as a script by each of several processes, or by a call in one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from small_networks import strided
from unpoison import models
from unpoison.attacks import SINGLE, hand_of
from unpoison.compute.distributed import world
from unpoison.core.arrays import Images, IntArray
from unpoison.crafting.attack import intent
from unpoison.crafting.context import Context
from unpoison.crafting.craft import craft
from unpoison.data.imageset import ImageSet
from unpoison.training.hand import Hand
from unpoison.training.loop import fit
from unpoison.training.recipe import Recipe
from unpoison.training.shaping import Shaped

HANDS: dict[str, dict[str, Any]] = {"wanet": {}, "bpp": {}, "blind": {"balance": "mgda", "location": "bottom_right"}}
"""Attacks that train the victim, with their arguments."""
RECIPE = Recipe(epochs=3, batch_size=66, lr=0.02, augment=["crop", "flip"])


def train(images: Images, labels: IntArray) -> dict[str, Any]:
    """Network's kind to every sample's loss, a row per epoch, and a digest of the model."""
    data, results = ImageSet(images, labels, tuple("0123456789")), {}
    # Without batch norm every image is treated by itself.
    without = strided((8, 16), seed=0, norm=None)
    batch_norm = models.build("resnet18", num_classes=10, image_size=(32, 32), width=8, stem="conv3_pool")
    runs: list[tuple[str, models.Classifier, Hand | None]] = [
        ("without", without, None),
        ("batch norm", batch_norm, None),
    ]
    shaped = Shaped(clip=0.5, noise=0.1, seed=0, what="test")
    runs.append(("shaped", strided((8, 16), seed=0, norm=None), shaped))
    runs += [(name, strided((8, 16), seed=0, norm=None), hand_in_training(name, data)) for name in HANDS]
    for kind, model, hand in runs:
        history = fit(model, data, RECIPE, seed=0, what="test", hand=hand)
        digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in model.state_dict().values())).hexdigest()
        results[kind] = {"losses": history.losses.tolist(), "rows": history.epochs, "digest": digest}
    return results


def hand_in_training(name: str, data: ImageSet) -> Hand:
    poisoned = craft(name, [intent(name, SINGLE[name], {}, HANDS[name])], Context(train=data, seed=0))
    return hand_of(poisoned, data, seed=0)


def main() -> list[Path]:
    with np.load("data.npz") as data:
        results = train(data["images"], data["labels"])
    # Every process writes, to be compared.
    output = Path(f"result-{world().rank}-of-{world().size}.json")
    output.write_text(json.dumps(results))
    return [output]


if __name__ == "__main__":
    from common import run_stage

    run_stage("train_together", main, together=True)
