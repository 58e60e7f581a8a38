"""Seconds and passes of each method of robust training as a multiple of plain training of the same network.

    python bench/robust.py                # prints a table and adds it to bench/results/robust.csv
    python bench/robust.py --quick        # a few images, one run, prints only

2,400 digits, ResNet-18 of width 16 (`conv3_pool`), the recipe `small` for 8 epochs; a method's own epochs are those of the suite
`robust`. Scores are random, an eleventh of the samples flagged; clean images stand in for variations. In turns. `seconds` is the
multiple of the time; `passes` that of the images that go through the network, a pass with gradients counting as three.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from pairs import arguments, by_turns, report, row, timed
from unpoison import models
from unpoison.data.imageset import ImageSet
from unpoison.data.scores import Scored
from unpoison.models.classifier import Classifier
from unpoison.robust import ROBUST
from unpoison.sources import digits
from unpoison.training.loop import fit
from unpoison.training.recipes import recipe_named

PLAIN = "plain training"
OWN: dict[str, dict[str, Any]] = {
    "abl": {"isolation_epochs": 8},
    "dst": {"crop": 0.7, "classifier_lr": 0.3},
    "dbd": {"extractor_epochs": 8, "crop": 0.7},
    "nab": {"isolation_epochs": 8},
    "pdb": {"size": 4},
    "vibe": {"extractor_epochs": 8, "crop": 0.7, "every": 2},
}


@cache
def splits(images: int) -> dict[str, ImageSet]:
    made = digits.build({"train": images, "test": 10, "reserve": 300, "public": 10})
    return {name: ImageSet(*made[name], digits.CLASSES) for name in ("train", "reserve")}


def train(way: str, images: int) -> None:
    """Plain training, or that of a method."""
    data, reserve = splits(images)["train"], splits(images)["reserve"]
    recipe = recipe_named({"recipe": "small"})
    if way == PLAIN:
        fit(fresh(), data, recipe, seed=0, what="bench")
        return
    values = np.random.default_rng(0).permutation(images).astype(np.float32)
    there = {
        "data": data,
        "reserve": reserve,
        "variations": data,
        "backdoored": fresh(),
        "public": reserve,
        "scores": Scored(data=data, values=values, flagged=values >= images * 10 / 11),
    }
    method = ROBUST[way]
    inputs = [there[what] for what in (*method.inputs, *filter(None, [method.by]))]
    method.train(fresh, *inputs, recipe, seed=0, **OWN.get(way, {}))


def fresh() -> Classifier:
    return models.build("resnet18", num_classes=10, image_size=(32, 32), width=16, stem="conv3_pool", seed=1)


@contextmanager
def counted() -> Iterator[list[int]]:
    """Images that go through a network in the meantime, one entry a pass, one with gradients counting as three."""
    passes: list[int] = []

    def count(module: nn.Module, given: tuple[Any, ...], _: Any) -> None:
        # The first convolution is in copies with folded batch norm as well.
        if isinstance(module, nn.Conv2d) and module.in_channels == 3:
            passes.append(len(given[0]) * (3 if torch.is_grad_enabled() else 1))

    hook = register_module_forward_hook(count)
    try:
        yield passes
    finally:
        hook.remove()


def main() -> None:
    given = arguments(__doc__, runs=3)
    images = 600 if given.quick else 2_400
    passes: dict[str, int] = {}

    def rate(way: str) -> float:
        with counted() as found:
            seconds = timed(lambda: train(way, images))
        passes[way] = sum(found)
        return images / seconds

    # Passes of single samples are not counted by the hook, and batch norm does without them: docs/privacy.md has their times.
    methods = [name for name, method in ROBUST.items() if not method.per_sample]
    ways = (PLAIN, *methods)
    rates = by_turns({way: partial(rate, way) for way in ways}, given.runs)
    rows = [row("a training", rates, way, PLAIN) for way in methods]
    for line in rows:
        way = line["way"]
        line["seconds"] = round(median(one / other for one, other in zip(rates[PLAIN], rates[way], strict=True)), 1)
        line["passes"] = round(passes[way] / passes[PLAIN], 1)
    report(rows, "robust.csv", write=not given.quick)


if __name__ == "__main__":
    main()
