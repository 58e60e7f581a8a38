"""Two networks trained on `data.npz`: as a script by each of several processes, or by a call in one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from small_networks import strided
from unpoison import models
from unpoison.core.arrays import Images, IntArray
from unpoison.data.imageset import ImageSet
from unpoison.training.distributed import world
from unpoison.training.loop import fit
from unpoison.training.recipe import Recipe

RECIPE = Recipe(epochs=3, batch_size=66, lr=0.02, augment=["crop", "flip"])


def train(images: Images, labels: IntArray) -> dict[str, Any]:
    """Network's kind to every sample's loss, a row per epoch, and a digest of the model."""
    data, results = ImageSet(images, labels, tuple("0123456789")), {}
    # Without batch norm every image is treated by itself.
    without = strided((8, 16), seed=0, batch_norm=False)
    batch_norm = models.build("resnet18", num_classes=10, image_size=(32, 32), width=8, stem="conv3_pool")
    for kind, model in (("without", without), ("batch norm", batch_norm)):
        history = fit(model, data, RECIPE, seed=0, what="test")
        digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in model.state_dict().values())).hexdigest()
        results[kind] = {"losses": history.losses.tolist(), "rows": history.epochs, "digest": digest}
    return results


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
