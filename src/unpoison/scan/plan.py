"""What a scan will do and how long it takes here, measured on a few batches before it starts."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from .. import models
from ..compute.inference import logits_of
from ..data.imageset import ImageSet
from ..training.loop import fit
from ..training.recipes import recipe_named
from .rules import NETWORK, Survey, batch_of, detectors_of

PASSES = {"strip": 100, "cd": 300}
"""Forward passes per image, about, of the detectors that take more than the one of `extract`; a backward pass counts as two."""
STARTS = 60.0
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
    # The first steps are slower than all later ones: memory is laid out, kernels are chosen.
    fit(model, data, recipe, seed=0, what="timing")
    start = time.perf_counter()
    fit(model, data, recipe, seed=0, what="timing")
    trained = (time.perf_counter() - start) / len(data)
    logits_of(model, data)
    start = time.perf_counter()
    logits_of(model, data)
    return Cost(trained, (time.perf_counter() - start) / len(data))


def seconds(found: Survey, cost: Cost, *, epochs: int, canary: bool) -> float:
    """Seconds that a scan takes, about."""
    passes = 1 + sum(PASSES.get(name, 0) for name in detectors_of(found.total, found.sample.shape[1]))
    once = found.total * (epochs * cost.trained + passes * cost.passed)
    return STARTS + once * (2 if canary else 1)


def minutes_said(duration: float) -> str:
    """A duration in words, no finer than it is known."""
    if duration < 90:
        return "about a minute"
    return f"about {duration / 60:.0f} minutes" if duration < 5400 else f"about {duration / 3600:.1f} hours"
