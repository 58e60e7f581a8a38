"""Runs of a report, small and made by hand: what the tests of the report share."""

from __future__ import annotations

from typing import Any

import numpy as np

from unpoison.data.imageset import ImageSet, Overlay
from unpoison.data.scores import Scores
from unpoison.poisoning.policy import Policy
from unpoison.poisoning.truth import Part, Truth
from unpoison.reporting.run import ReportSettings, Run

CLASSES = ("cat", "<b>dog</b>", "eel")
COUNT = 40
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (COUNT, 12, 12, 3), dtype=np.uint8)
TRUE = np.arange(COUNT) % 3
# Samples 1, 4, 7 and 10 are dogs that were given to the cats, which makes them 4 of 18 of that class.
MASK = np.isin(np.arange(COUNT), [1, 4, 7, 10])
GIVEN = np.where(MASK, 0, TRUE)
DATA = ImageSet(IMAGES, GIVEN, CLASSES, "", Overlay(np.flatnonzero(MASK), 255 - IMAGES[MASK], GIVEN[MASK]))
CLEAN = ImageSet(IMAGES, TRUE, CLASSES)
ABOUT = {"name": "pets", "source": "a|folder", "counts": {"train": COUNT, "test": 12}}
MODEL = {
    "network": {"name": "resnet18", "arguments": {"width": 8}},
    "made_by": {"recipe": {"epochs": 2, "lr": None}, "seed": 3, "machine": "a machine"},
}


def truth_of(*targets: int) -> Truth:
    """A trigger for each target; the first has all poisoned samples."""
    parts = tuple(Part("badnets", Policy(target=target), {"size": 2}) for target in targets)
    return Truth("multi" if len(parts) > 1 else "badnets", parts, MASK, np.where(MASK, 0, -1).astype(np.int8), TRUE)


def scores_of(count: int, **settings: Any) -> dict[str, Scores]:
    values = np.arange(COUNT, dtype=np.float32)
    return {f"detector{number}": Scores(values, 1 + number, **settings) for number in range(count)}


def metrics_of(truth: Truth, **more: Any) -> dict[str, Any]:
    graded = {"acc": 0.9, "acc_without_target": 0.8, "asr": 0.7, "ra": 0.2}
    shown = {"psnr": 20.0, "ssim": 0.9, "linf": 1.0, "l2": 2.0, "changed": 0.1}
    attack = {"poisoned": 0.1, "cover": 0.0, "tested": 8, "trigger": dict.fromkeys(truth.names, shown)}
    return {"attack": attack, "backdoored": graded, **more}


def run_of(**parts: Any) -> Run:
    settings = ReportSettings(**{"samples": 2, "suspects": 3, **parts.pop("settings", {})})
    rest = {"data": DATA, "about": ABOUT, "sources": [f"{i:02d}.png" for i in range(COUNT)], **parts}
    return Run(settings=settings, **rest)
