"""A federation of random images, small enough to train in a second."""

from __future__ import annotations

from typing import Any

import numpy as np

from small_networks import strided
from unpoison.data.imageset import ImageSet, Overlay
from unpoison.federation.rounds import train_federated
from unpoison.federation.settings import Federation
from unpoison.models.classifier import Classifier
from unpoison.training.recipe import Recipe

RECIPE = Recipe(epochs=7, batch_size=8, lr=0.05, momentum=0.0, weight_decay=0.0, schedule="constant")

CLEAN = ImageSet(
    np.random.default_rng(0).integers(0, 256, (48, 32, 32, 3), np.uint8), np.arange(48) % 10, tuple("0123456789")
)
POISON = np.array([3, 14, 25, 36])
RECEIVED = ImageSet(
    CLEAN.base,
    np.where(np.isin(np.arange(48), POISON), 0, CLEAN.labels),
    CLEAN.classes,
    "",
    Overlay(POISON, np.full((4, 32, 32, 3), 255, np.uint8), np.zeros(4, np.int64)),
)


def trained(
    federation: Federation, *, seed: int = 0, recipe: Recipe = RECIPE, **changes: Any
) -> tuple[Classifier, Any]:
    """A model that a federation has trained, and its history."""
    model = strided([8], seed=0)
    history = train_federated(model, CLEAN, RECEIVED, recipe, federation, seed=seed, what="test", **changes)
    return model, history
