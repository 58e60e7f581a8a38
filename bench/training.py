"""Training images/s of the core against the plain loop people write: same network, batch and epochs, in the same run.

    python bench/training.py                  # prints a table and adds it to bench/results/training.csv
    python bench/training.py --widths 16      # the narrow network only

The plain loop: a DataLoader (its default of no workers on a CPU, 4 with a GPU) with transforms on PIL images, one by one, fp32,
contiguous tensors, `torch.optim.SGD`. A rate is that of further epochs: a training of `1 + epochs` epochs less one of a single
epoch, so that neither building the data set nor compiling counts. What compiling costs at the start is a column of its own.
The variants take turns, and a ratio is one of neighbours, as the machine's speed may change from minute to minute.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from unpoison import models
from unpoison.compute.device import machine, pick_device
from unpoison.data.imageset import ImageSet
from unpoison.sources import digits
from unpoison.training.loop import fit
from unpoison.training.recipe import Recipe

RESULTS = Path(__file__).parent / "results" / "training.csv"
AUGMENT = ["crop", "flip"]


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


def measured(
    train: Callable[..., None], network: dict[str, Any], data: ImageSet, recipe: Recipe
) -> tuple[float, float]:
    """(images per second in further epochs, seconds that the first epoch took longer than one of those)."""
    seconds = []
    for epochs in (1, 1 + recipe.epochs):
        torch.manual_seed(0)
        model = models.build(num_classes=10, image_size=(32, 32), **network)
        start = time.perf_counter()
        train(model, data, replace(recipe, epochs=epochs))
        if pick_device().type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    each = (seconds[1] - seconds[0]) / recipe.epochs
    return len(data) / each, seconds[0] - each


def loading(data: ImageSet, recipe: Recipe) -> float:
    """Images per second that the plain loop's loader hands out when nobody trains."""
    loader = loader_of(data, recipe.batch_size)
    for _ in loader:
        pass
    start = time.perf_counter()
    for _ in loader:
        pass
    return len(data) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 64])
    arguments = parser.parse_args()
    gpu = pick_device().type == "cuda"
    rows = []
    for width in arguments.widths:
        network = {"name": "resnet18", "width": width, "stem": "conv3_pool" if width < 64 else "conv3"}
        images, epochs = (20480, 2) if gpu else (2560, 2) if width < 64 else (256, 1)
        data = ImageSet(*digits.build({"train": images})["train"], digits.CLASSES)
        recipe = Recipe(epochs=epochs, batch_size=128, augment=AUGMENT)
        # Inductor keeps on disk what it compiled: the first time takes longer than all later ones.
        measured(compiled, network, data, replace(recipe, epochs=1))
        rounds = [
            {train.__name__: measured(train, network, data, recipe) for train in (plain, core, compiled)}
            for _ in range(arguments.runs)
        ]
        rates = {name: [each[name][0] for each in rounds] for name in rounds[0]}
        for name in ("core", "compiled"):
            ratios = [fast / slow for fast, slow in zip(rates[name], rates["plain"], strict=True)]
            rows.append(
                {
                    "network": f"resnet18 width {width} {network['stem']}",
                    "core": name,
                    "plain_images_per_s": round(median(rates["plain"]), 1),
                    "core_images_per_s": round(median(rates[name]), 1),
                    "ratio": round(median(ratios), 2),
                    "ratio_min": round(min(ratios), 2),
                    "ratio_max": round(max(ratios), 2),
                    "first_epoch_extra_s": round(median(each[name][1] for each in rounds), 1),
                    "loader_images_per_s": round(loading(data, recipe), 1),
                    "runs": arguments.runs,
                    "machine": machine(),
                    "threads": torch.get_num_threads(),
                }
            )
            print(pd.DataFrame(rows[-1:]).to_string(index=False), flush=True)
    earlier = [pd.read_csv(RESULTS)] if RESULTS.is_file() else []
    pd.concat([*earlier, pd.DataFrame(rows)]).to_csv(RESULTS, index=False)


if __name__ == "__main__":
    main()
