"""What several test files need: a small data set and a model with a planted backdoor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pytest

from unpoison import models
from unpoison.attacks import SINGLE
from unpoison.crafting.attack import intent
from unpoison.crafting.context import Context
from unpoison.crafting.craft import craft
from unpoison.data.imageset import ImageSet
from unpoison.poisoning.poisoned import Poisoned
from unpoison.sources import digits
from unpoison.training.loop import fit
from unpoison.training.recipe import Recipe

RECIPE = Recipe(epochs=14, batch_size=32, lr=0.1)


@dataclass(frozen=True)
class Planted:
    """A poisoned training set, how it was made, clean splits, and the model trained on it."""

    data: ImageSet
    poisoned: Poisoned
    test: ImageSet
    reserve: ImageSet
    model: models.Classifier


def with_value(block: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """A copy of nested blocks with the value at `path` replaced."""
    changed: Any = deepcopy(dict(block))
    *sections, last = path
    inner = changed
    for section in sections:
        inner = inner[section]
    inner[last] = value
    return dict(changed)


@pytest.fixture(scope="session")
def splits() -> dict[str, ImageSet]:
    built = digits.build({"train": 1600, "test": 200, "reserve": 300, "public": 100})
    return {name: ImageSet(images, labels, digits.CLASSES, digest=name) for name, (images, labels) in built.items()}


@pytest.fixture(scope="session")
def planted(splits: dict[str, ImageSet]) -> Planted:
    train = splits["train"]
    wanted = intent("badnets", SINGLE["badnets"], {"poison_rate": 0.06}, {"pattern": "checkerboard", "size": 8})
    poisoned = craft("badnets", [wanted], Context(train=train, seed=0))
    data = poisoned.received(train)
    model = models.build("resnet18", num_classes=10, image_size=(32, 32), width=16, stem="conv3_pool")
    fit(model, data, RECIPE, seed=0, what="planted")
    return Planted(data, poisoned, splits["test"], splits["reserve"], model)
