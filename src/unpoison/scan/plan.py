"""What a scan will do and how long it takes here, measured on a few batches before it starts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from .. import models
from ..compute.inference import logits_of
from ..data.imageset import ImageSet
from ..detection import transplant
from ..training.loop import fit
from ..training.recipes import recipe_named
from ..workflow import committed
from .rules import NETWORK, Survey, batch_of, detectors_of

RUNS = 3
"""Times that each of the two is measured."""
STARTS = 100.0
"""Seconds that the starts of all stages take, about: each is a process that loads its libraries."""


@dataclass(frozen=True)
class Cost:
    """Seconds per image on this machine.

    Attributes:
        trained: of an optimiser step.
        passed: of a forward pass.
    """

    trained: float
    passed: float


def measure(found: Survey) -> Cost:
    """Train and run the scan's network for a moment on the images looked at."""
    many = max(1, -(-2 * batch_of(found.total) // len(found.sample)))
    images, labels = np.tile(found.sample, (many, 1, 1, 1)), np.tile(found.labels, many)
    data = ImageSet(images, labels, found.classes)
    model = models.build(
        **NETWORK,
        num_classes=len(found.classes),
        image_size=data.image_size,
        channels=data.channels,
        seed=0,
    )
    recipe = replace(recipe_named({"recipe": "small"}), epochs=1, batch_size=batch_of(found.total))
    trained = fastest(lambda: fit(model, data, recipe, seed=0, what="timing")) / len(data)
    return Cost(trained, fastest(lambda: logits_of(model, data)) / len(data))


def fastest(run: Callable[[], object]) -> float:
    """Seconds of the fastest of some runs: the first is slower than all later ones, and other programs may be in the way."""
    taken = []
    for _ in range(RUNS):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return min(taken)


def seconds(found: Survey, cost: Cost, *, epochs: int, canary: bool) -> float:
    """Seconds that a scan takes, about."""
    chosen, own = detectors_of(found.total, found.sample.shape[1]), committed("params/detectors.yaml")
    # A pass for `extract`, one for each overlay of STRIP, and a step of CD is one forward and one backward, which is as two.
    passes = 1 + ("strip" in chosen) * own["strip"]["overlays"] + ("cd" in chosen) * 3 * own["cd"]["steps"]
    # Some of each class with every part, and all with the chosen one.
    tried = len(found.classes) * 2 * transplant.CHOOSING * len(transplant.PARTS)
    passes += own["transplant"]["others"] * (1 + min(tried / found.total, len(transplant.PARTS)))
    once = found.total * (epochs * cost.trained + passes * cost.passed)
    return STARTS + once * (2 if canary else 1)


def minutes_said(duration: float) -> str:
    """A duration in words, no finer than it is known."""
    if duration < 90:
        return "about a minute"
    return f"about {duration / 60:.0f} minutes" if duration < 5400 else f"about {duration / 3600:.1f} hours"
