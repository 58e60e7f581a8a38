"""Training images/s of the core against the plain loop people write, on the same network, in the same run.

    python bench/training.py          # prints a table and writes bench/results/training.csv

The plain loop: DataLoader with the default workers, per-sample transforms on PIL images, fp32, contiguous tensors.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from unpoison import models
from unpoison.data import digits
from unpoison.data.imageset import ImageSet
from unpoison.training.device import pick_device
from unpoison.training.loop import fit
from unpoison.training.recipe import Recipe

RESULTS = Path(__file__).parent / "results" / "training.csv"


class PilImages(Dataset):
    def __init__(self, data: ImageSet) -> None:
        self.images = [Image.fromarray(image) for image in data.base]
        self.labels = data.labels.tolist()
        self.transform = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.ToTensor()])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def plain(model: models.Classifier, data: ImageSet, recipe: Recipe) -> None:
    device = pick_device()
    model.to(device).train()
    loader = DataLoader(PilImages(data), recipe.batch_size, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)
    for _ in range(recipe.epochs):
        for images, labels in loader:
            loss = F.cross_entropy(model(images.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()


def core(model: models.Classifier, data: ImageSet, recipe: Recipe) -> None:
    fit(model, data, recipe, seed=0, what="bench")


def rate(train: Callable[..., None], network: dict, data: ImageSet, recipe: Recipe) -> float:
    model = models.build(num_classes=10, image_size=(32, 32), **network)
    start = time.perf_counter()
    train(model, data, recipe)
    return recipe.epochs * len(data) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--images", type=int, default=2400)
    arguments = parser.parse_args()
    images, labels = digits.build({"train": arguments.images})["train"]
    data = ImageSet(images, labels, digits.CLASSES)
    recipe = Recipe(epochs=1, batch_size=128, augment=["crop"])
    rows = []
    for stem in ("conv3_pool", "conv3"):
        network = {"name": "resnet18", "width": 16, "stem": stem}
        rate(core, network, data, recipe)  # warm-up
        pairs = [(rate(plain, network, data, recipe), rate(core, network, data, recipe)) for _ in range(arguments.runs)]
        slow, fast = np.array(pairs).T
        rows.append(
            {
                "network": f"resnet18 width 16 {stem}",
                "plain_images_per_s": round(float(np.median(slow)), 1),
                "core_images_per_s": round(float(np.median(fast)), 1),
                "ratio": round(float(np.median(fast / slow)), 2),
                "ratio_min": round(float((fast / slow).min()), 2),
                "ratio_max": round(float((fast / slow).max()), 2),
                "runs": arguments.runs,
                "device": f"{pick_device().type}, {torch.get_num_threads()} threads",
                "torch": torch.__version__,
            }
        )
    table = pd.DataFrame(rows)
    RESULTS.parent.mkdir(exist_ok=True)
    table.to_csv(RESULTS, index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
