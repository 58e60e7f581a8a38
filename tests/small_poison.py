"""A small base data set and attackers on it, for the tests of what they keep and of what is stamped at the test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from unpoison.attacks import ATTACKS, SINGLE
from unpoison.core.arrays import Images, IntArray
from unpoison.crafting.attack import intent, intents_of
from unpoison.crafting.context import Context
from unpoison.crafting.craft import craft
from unpoison.data.imageset import ImageSet
from unpoison.data.store import write_base
from unpoison.poisoning.poisoned import Poisoned

CLASSES = tuple("abcdefghij")
MADE_FROM = {"poisoned": "0123abcd"}
LISTED: dict[str, Any] = {"predicate": "index", "train_index": list(range(0, 200, 3)), "test_index": [1, 2, 3]}


def split_of(samples: int, seed: int) -> tuple[Images, IntArray]:
    images = np.random.default_rng(seed).integers(0, 256, (samples, 16, 16, 3), dtype=np.uint8)
    return images, np.arange(samples) % len(CLASSES)


def write_small_base(folder: Path, *, test_seed: int = 2) -> None:
    """200 training and 50 test images of noise, ten classes in turn."""
    write_base(folder, {"train": split_of(200, 1), "test": split_of(50, test_seed)}, classes=CLASSES)


def made(train: ImageSet, attack: str, arguments: dict[str, Any] | None = None, **policy: Any) -> Poisoned:
    wanted = intent(attack, SINGLE[attack], {"poison_rate": 0.3, **policy}, arguments or {})
    return craft(attack, [wanted], Context(train=train, seed=3))


def two_triggers(train: ImageSet, **policy: Any) -> Poisoned:
    blocks = [{"attack": "badnets", "target": 1, "size": 4}, {"attack": "blended", "target": 2, "test_ratio": 0.5}]
    intents = intents_of("multi", ATTACKS, {"poison_rate": 0.4, **policy}, {"multi": {"triggers": blocks}})
    return craft("multi", intents, Context(train=train, seed=3))
