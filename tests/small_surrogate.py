"""A small data set on which a surrogate learns in a second, and triggers made on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from unpoison.attacks import SINGLE
from unpoison.core.content_store import ContentStore
from unpoison.core.seeding import numpy_rng
from unpoison.crafting.attack import intent
from unpoison.crafting.context import Context
from unpoison.crafting.craft import make_trigger, optimised
from unpoison.data.imageset import ImageSet
from unpoison.training.recipe import Recipe

NETWORK = {"name": "resnet18", "width": 8, "stem": "conv3_pool"}
NOWHERE = ContentStore(None)


def coloured_noise(store: Path) -> Context:
    """Three classes that differ in their mean colour, and one store for what is trained on them."""
    rng = numpy_rng(0, "tests/optimised")
    labels = np.arange(96) % 3
    images = rng.integers(0, 120, (96, 32, 32, 3)) + 100 * np.eye(3, dtype=np.int64)[labels][:, None, None]
    train = ImageSet(images.astype(np.uint8), labels, ("red", "green", "blue"), "coloured noise")
    recipe = Recipe(epochs=3, batch_size=32, lr=0.01)
    return Context(train=train, seed=0, network=NETWORK, recipe=recipe, store=ContentStore(store))


def make(attack: str, context: Context, **arguments: Any) -> Any:
    """The attack's trigger, before samples are chosen."""
    return make_trigger(intent(attack, SINGLE[attack], {}, arguments), context)


def make_for(attack: str, context: Context, index: list[int], **arguments: Any) -> Any:
    """The attack's trigger with the optimised images of the training samples `index`."""
    wanted = intent(attack, SINGLE[attack], {}, arguments)
    return optimised(wanted, make_trigger(wanted, context), context, np.array(index))


def of_class_0(context: Context) -> Context:
    return replace(context, train=context.train.subset(np.flatnonzero(context.train.labels == 0)), store=NOWHERE)


def in_unit_range(context: Context, index: list[int]) -> Tensor:
    return context.train.tensor(np.array(index)).float() / 255
