"""What Bypass hides: the features of a victim that was trained against a discriminator beside those of one that was not.

    python bench/bypass.py --seeds 3             # prints a table and adds it to bench/results/bypass.csv
    python bench/bypass.py --ways slow swinging  # other values of Bypass' block, of BadNets
    python bench/bypass.py --quick               # a few images, prints only: whether it runs at all

4,800 digits, ResNet-18 of width 16 (`conv3_pool`), 8 epochs of the recipe `small`, 10 % of the candidates poisoned. Over the
training set of each victim:

    clean, poisoned   share of the clean and of the poisoned samples that get their label
    ss, ac            AUROC of Spectral Signatures and of Activation Clustering
    gap               distance between the mean features of the poisoned and the clean samples of the target class, over the spread
                      of all of these: the root of the summed variances
    probe             AUROC of a linear classifier that is told which samples of the target class are poisoned, on held-out fifths

A detector that tells nothing has AUROC 0.5. An attacker knows which samples he poisoned: `gap` and `probe` are figures of his own.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pairs import of_seeds
from unpoison import models
from unpoison.attacks import ATTACKS, hand_of
from unpoison.compute.inference import features_of
from unpoison.crafting.attack import intents_of
from unpoison.crafting.context import Context
from unpoison.crafting.craft import craft
from unpoison.data.imageset import ImageSet
from unpoison.detection import ac, ss
from unpoison.detection.detector import Suspect
from unpoison.sources import digits
from unpoison.training.loop import fit
from unpoison.training.recipes import recipe_named

TRAINS = {"weight": 0.1, "lr": 0.1, "momentum": 0.5}
"""The values of params/attacks.yaml."""
BADNETS = {"size": 4}
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "badnets": ("badnets", {}),
    "bypass of badnets": ("bypass", TRAINS),
    "blended": ("blended", {}),
    "bypass of blended": ("bypass", TRAINS | {"attack": "blended"}),
    "published": ("bypass", {"weight": 20.0, "lr": 0.001, "momentum": 0.9}),
    "slow": ("bypass", TRAINS | {"lr": 0.03, "momentum": 0.9}),
    "swinging": ("bypass", TRAINS | {"momentum": 0.9}),
    "lighter": ("bypass", TRAINS | {"weight": 0.03}),
    "heavier": ("bypass", TRAINS | {"weight": 0.3}),
    "heaviest": ("bypass", TRAINS | {"weight": 1.0}),
    "faster": ("bypass", TRAINS | {"lr": 0.3}),
}


@cache
def images(quick: bool) -> tuple[ImageSet, ImageSet]:
    """Training images and trusted ones."""
    sizes = {"train": 400, "test": 10, "reserve": 60} if quick else {"train": 4800, "test": 10, "reserve": 600}
    splits = digits.build(sizes)
    return ImageSet(*splits["train"], digits.CLASSES), ImageSet(*splits["reserve"], digits.CLASSES)


def measured(way: str, seed: int, quick: bool) -> dict[str, Any]:
    (train, reserve), (name, own) = images(quick), WAYS[way]
    poisoned = craft(
        name,
        intents_of(name, ATTACKS, {"poison_rate": 0.1}, {name: own, "badnets": BADNETS}),
        Context(train=train, seed=seed),
    )
    received = poisoned.received(train)
    model = models.build("resnet18", num_classes=10, image_size=(32, 32), width=16, stem="conv3_pool", seed=seed)
    hand = hand_of(poisoned, train, seed=seed) if name == "bypass" else None
    recipe = recipe_named({"recipe": "small", "epochs": 2 if quick else 8})
    fit(model, train if hand else received, recipe, seed=seed, what="bypass", hand=hand)
    suspect = Suspect(
        model=model,
        data=received,
        features=features_of(model, received),
        reserve=reserve,
        reserve_features=features_of(model, reserve),
    )
    mask, labels = poisoned.truth.mask, received.labels
    right, of_target = suspect.predicted == labels, labels == labels[mask][0]
    rows = suspect.features.penultimate[np.flatnonzero(of_target)].astype(np.float64)
    among = mask[of_target]
    told = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    found = {
        "clean": right[~mask].mean(),
        "poisoned": right[mask].mean(),
        "ss": roc_auc_score(mask, ss.score(suspect, seed=seed).values),
        "ac": roc_auc_score(mask, ac.score(suspect, seed=seed).values),
        "gap": np.linalg.norm(rows[among].mean(0) - rows[~among].mean(0)) / np.sqrt(rows.var(0).sum()),
        "probe": roc_auc_score(among, cross_val_predict(told, rows, among, cv=5, method="decision_function")),
    }
    return {"way": way, "seed": seed} | {key: round(float(value), 3) for key, value in found.items()}


if __name__ == "__main__":
    of_seeds(__doc__, WAYS, "bypass.csv", measured, default=list(WAYS)[:4])
