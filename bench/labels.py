"""How many wrong labels a model contradicts though it was trained on them, and how many right ones.

    python bench/labels.py --seeds 3   # prints a row for each share and seed and adds it to bench/results/labels.csv
    python bench/labels.py --quick     # whether it runs

The default run's digits, network and recipe, without an attack; a share of the labels is replaced by others, at random.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import yaml

from pairs import ROOT, of_seeds
from unpoison import models
from unpoison.compute.inference import features_of
from unpoison.data.imageset import ImageSet
from unpoison.examination.labels import contradicted
from unpoison.sources import digits
from unpoison.training.loop import fit
from unpoison.training.recipes import APART, recipe_named

SHARES = ("0", "0.05", "0.2")


def measured(share: str, seed: int, quick: bool) -> dict[str, Any]:
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    counts = {"train": 400 if quick else params["data"]["digits"]["train"], "test": 10, "reserve": 10, "public": 10}
    images, true = digits.build(counts)["train"]
    rng, wrong = np.random.default_rng(seed), np.zeros(len(true), bool)
    wrong[rng.choice(len(true), round(float(share) * len(true)), replace=False)] = True
    labels = np.where(wrong, (true + rng.integers(1, len(digits.CLASSES), len(true))) % len(digits.CLASSES), true)
    data = ImageSet(images, labels, digits.CLASSES)

    network = {key: value for key, value in params["model"].items() if value is not None}
    network |= {"image_size": data.image_size, "channels": data.channels, "num_classes": len(data.classes)}
    model = models.build(**network, seed=seed)
    recipe = {key: value for key, value in params["train"].items() if key not in APART}
    recipe |= {"epochs": 1} if quick else {}
    fit(model, data, recipe_named(recipe), seed=seed, what=f"{share}, seed {seed}")
    said = contradicted(features_of(model, data).logits[np.arange(len(data))], labels)
    return {
        "replaced": share,
        "seed": seed,
        "wrong": int(wrong.sum()),
        "wrong_contradicted": int((said >= 0)[wrong].sum()),
        "by_the_true_class": int((said == true)[wrong].sum()),
        "right": int((~wrong).sum()),
        "right_contradicted": int((said >= 0)[~wrong].sum()),
    }


if __name__ == "__main__":
    of_seeds(__doc__, SHARES, "labels.csv", measured)
