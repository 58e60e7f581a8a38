"""Training images/s of the core against the plain loop people write, and against the bare convolutions: in the same run.

    python bench/training.py            # prints tables and adds them to bench/results/training.csv
    python bench/training.py --quick    # whether it runs

Same network, batches, epochs, augmentation (crop, flip) and optimiser in both loops. The plain loop: a DataLoader (its default
of no workers on a CPU, 4 with a GPU) with transforms on PIL images, one by one, fp32, contiguous tensors, `torch.optim.SGD`.
SGD for `compact` as well: torch's Muon rounds to bf16, which a CPU emulates, and that would be measured in place of the loop.
What the recipe `compact` costs beside SGD is a row of its own, as is the plain loop's loader when nobody trains.

The limit is what the network's convolutions alone reach, forward and backward (`convolutions.py`).

A rate is that of further epochs: a training of `1 + epochs` epochs less one of a single epoch, so that neither building the data
set nor compiling (on a GPU alone; on a CPU it does not pay) counts.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import convolutions
from pairs import arguments, by_turns, report, row, timed
from unpoison import models
from unpoison.compute.device import pick_device
from unpoison.data.imageset import ImageSet
from unpoison.sources import digits
from unpoison.training.loop import fit
from unpoison.training.recipe import Recipe
from unpoison.training.recipes import RECIPES

Network = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A network, and how it is trained: images, batch size, and epochs that are timed."""

    what: str
    network: Network
    images: int
    batch_size: int
    epochs: int


CPU = [
    Case("compact width 32", {"name": "compact", "width": 32}, 1500, 500, 1),
    Case("resnet18 width 16 conv3_pool", {"name": "resnet18", "width": 16, "stem": "conv3_pool"}, 2560, 128, 2),
]
WIDE = Case("resnet18 width 64 conv3", {"name": "resnet18", "width": 64, "stem": "conv3"}, 20480, 128, 2)
GPU = [*(replace(case, images=20480 // case.batch_size * case.batch_size, epochs=2) for case in CPU), WIDE]


class PilImages(Dataset[tuple[torch.Tensor, int]]):
    """Images as a folder data set would hand them out, but already decoded."""

    def __init__(self, data: ImageSet) -> None:
        self.images = [Image.fromarray(image) for image in data.gather(np.arange(len(data)))]
        self.labels = data.labels.tolist()
        self.transform = transforms.Compose(
            [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def loader_of(data: ImageSet, batch_size: int) -> DataLoader[tuple[torch.Tensor, int]]:
    workers = 4 if pick_device().type == "cuda" else 0
    return DataLoader(PilImages(data), batch_size, shuffle=True, num_workers=workers)


def plain(model: models.Classifier, data: ImageSet, recipe: Recipe) -> None:
    device = pick_device()
    model.to(device).train()
    loader = loader_of(data, recipe.batch_size)
    optimizer = torch.optim.SGD(model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)
    for _ in range(recipe.epochs):
        for images, labels in loader:
            loss = F.cross_entropy(model(images.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()


def core(model: models.Classifier, data: ImageSet, recipe: Recipe) -> None:
    os.environ["UNPOISON_COMPILE"] = "0"
    fit(model, data, recipe, seed=0, what="bench")


def compiled(model: models.Classifier, data: ImageSet, recipe: Recipe) -> None:
    torch.compiler.reset()
    os.environ["UNPOISON_COMPILE"] = "1"
    fit(model, data, recipe, seed=0, what="bench")


def build(network: Network) -> models.Classifier:
    return models.build(num_classes=10, image_size=(32, 32), **network)


def rate(train: Callable[..., None], network: Network, data: ImageSet, recipe: Recipe) -> float:
    """Images per second in further epochs."""
    seconds = []
    for epochs in (1, 1 + recipe.epochs):
        torch.manual_seed(0)
        seconds.append(timed(partial(train, build(network), data, replace(recipe, epochs=epochs))))
    return len(data) * recipe.epochs / (seconds[1] - seconds[0])


def loading(data: ImageSet, batch_size: int) -> float:
    """Images per second that the plain loop's loader hands out when nobody trains."""
    loader = loader_of(data, batch_size)
    return len(data) / timed(lambda: [None for _ in loader])


def measured(case: Case, runs: int, *, compiling: bool) -> list[dict[str, Any]]:
    """Rows of one network."""
    data = ImageSet(*digits.build({"train": case.images})["train"], digits.CLASSES)
    recipe = Recipe(epochs=case.epochs, batch_size=case.batch_size, augment=["crop", "flip"])
    steps = case.epochs * -(-case.images // case.batch_size)
    ways: dict[str, Callable[[], float]] = {
        "plain": partial(rate, plain, case.network, data, recipe),
        "core": partial(rate, core, case.network, data, recipe),
        "convolutions": lambda: convolutions.rate(build(case.network), case.batch_size, steps),
        "loader": partial(loading, data, case.batch_size),
    }
    pairs = [("core", "plain"), ("core", "convolutions"), ("loader", "plain")]
    if case.network["name"] in RECIPES:
        # The recipe that is made for this network, its own augmentation, optimiser and whitening included.
        own = replace(RECIPES[case.network["name"]], epochs=case.epochs, batch_size=case.batch_size)
        ways["recipe"] = partial(rate, core, case.network, data, own)
        pairs.append(("recipe", "core"))
    if compiling:
        ways["compiled"] = partial(rate, compiled, case.network, data, recipe)
        pairs.append(("compiled", "plain"))
        # Inductor keeps on disk what it compiled: the first time takes longer than all later ones.
        ways["compiled"]()
    # The first steps of a process are slow.
    core(build(case.network), data.subset(np.arange(2 * case.batch_size)), replace(recipe, epochs=1))
    rates = by_turns(ways, runs)
    return [row(case.what, rates, way, against) for way, against in pairs]


def main() -> None:
    given = arguments(__doc__, runs=3)
    gpu = pick_device().type == "cuda"
    rows: list[dict[str, Any]] = []
    for case in GPU if gpu else CPU:
        if given.quick:
            case = replace(case, images=32, batch_size=16, epochs=1)
        rows += measured(case, given.runs, compiling=gpu)
    report(rows, "training.csv", write=not given.quick)


if __name__ == "__main__":
    main()
