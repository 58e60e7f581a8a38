"""Images/s of Cognitive Distillation and STRIP against plain implementations of them: in the same run.

    python bench/detection.py            # prints a table and adds it to bench/results/detection.csv
    python bench/detection.py --quick    # whether it runs

An untrained network of the default run's shape. Plain Cognitive Distillation: batches of the same size and as many steps, with
`torch.optim.Adam` and all gradients by autograd, those of the weights too. Plain STRIP: one image at a time, its overlays as one
batch. Both with contiguous tensors, and the network as it is, batch norm and all. That the two give the same scores is tested
(`tests/test_detection.py`).

Where the working directory holds a run (`dvc repro`), also Cognitive Distillation as params/detectors.yaml has it against the plain
one with the published 100 steps of 0.1, on a sample of the run's training set: the ratio of speeds, AUROC of both, and Spearman of
the scores, beside that of the plain ones of two rounds, which have other random colours.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor

from pairs import ROOT, arguments, by_turns, report, row, timed
from unpoison import models
from unpoison.compute.device import pick_device
from unpoison.data.features import Features
from unpoison.data.imageset import ImageSet
from unpoison.data.store import open_poisoned, open_split
from unpoison.detection import DETECTORS
from unpoison.detection.detector import Suspect
from unpoison.detection.sample import draw_sample
from unpoison.evaluation.metrics import detection_metrics
from unpoison.models import Classifier
from unpoison.poisoning.truth import read_truth
from unpoison.sources import digits

BATCH = 256
# Steps: the speed of a step does not depend on how many there are. Overlays: the default run's.
SETTINGS = {"cd": {"steps": 10}, "strip": {"overlays": 24}}
IMAGES = {"cd": 256, "strip": 256}
RUN = {"images": 512, "rounds": 3}  # of the run's training set; the plain procedure takes most of the time
NO_FEATURES = Features(np.zeros((0, 10), np.float32), np.zeros((0, 128), np.float32))  # neither detector looks at them


def loaded(some: ImageSet) -> Tensor:
    """Images as people load them: float [n, c, h, w] in [0, 1], contiguous."""
    return (torch.from_numpy(some.gather(np.arange(len(some)))).permute(0, 3, 1, 2).float() / 255).contiguous()


def plain_cd(
    model: Classifier, images: Tensor, steps: int, lr: float = 0.1, gamma: float = 0.01, beta: float = 10.0
) -> NDArray[np.float32]:
    """Scores of images float [n, c, h, w]."""
    scores = []
    for batch in images.split(BATCH):
        with torch.no_grad():
            target = model(batch)
        theta = torch.ones_like(batch[:, :1]).requires_grad_()
        optimizer = torch.optim.Adam([theta], lr=lr, betas=(0.1, 0.1))
        for _ in range(steps):
            mask = (torch.tanh(theta) + 1) / 2
            colour = torch.rand(*batch.shape[:2], 1, 1, device=batch.device)
            logits = model(batch * mask + (1 - mask) * colour)
            norm = mask.abs().sum((1, 2, 3))
            vertical = (mask[:, :, 1:] - mask[:, :, :-1]).square().sum((1, 2, 3))
            horizontal = (mask[:, :, :, 1:] - mask[:, :, :, :-1]).square().sum((1, 2, 3))
            variation = (vertical + horizontal) / mask[0].numel()
            loss = ((logits - target).abs().mean(1) + gamma * norm + beta * variation).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scores.append(-((torch.tanh(theta.detach()) + 1) / 2).mean((1, 2, 3)).cpu())
    return torch.cat(scores).numpy()


@torch.no_grad()
def plain_strip(model: Classifier, images: Tensor, overlays: Tensor) -> NDArray[np.float32]:
    """Scores of images float [n, c, h, w] with overlays [k, c, h, w]."""
    scores = []
    for image in images:
        probabilities = torch.softmax(model((image + overlays).clamp(0, 1)), 1)
        entropies = -(probabilities * torch.log(probabilities + 1e-12)).sum(1)
        scores.append(-entropies.mean().item())
    return np.array(scores, np.float32)


def ways_of(name: str, images: int) -> dict[str, Callable[[], float]]:
    """Rates of a detector and of its plain implementation, on `images` images."""
    settings, device = SETTINGS[name], pick_device()
    splits = digits.build({"train": images, "reserve": 100})
    data, reserve = (ImageSet(*splits[part], digits.CLASSES) for part in ("train", "reserve"))
    network = {"name": "resnet18", "width": 16, "stem": "conv3_pool"}
    ours, plain = (models.build(num_classes=10, image_size=(32, 32), **network).eval() for _ in range(2))
    plain.to(device)
    # No more trusted images than the scores need: those of a rule's threshold are no part of the plain implementation.
    reserve = reserve.subset(np.arange(settings.get("overlays", 0)))
    suspect = Suspect(model=ours, data=data, features=NO_FEATURES, reserve=reserve, reserve_features=NO_FEATURES)

    def ours_once() -> Any:
        return DETECTORS[name].score(suspect, seed=0, **settings)

    def plain_once() -> Any:
        if name == "cd":
            return plain_cd(plain, loaded(data).to(device), **settings)
        return plain_strip(plain, loaded(data).to(device), loaded(reserve).to(device))

    return {"plain": lambda: images / timed(plain_once), "ours": lambda: images / timed(ours_once)}


def row_of_the_run(images: int, rounds: int, *, plain_steps: int = 100) -> dict[str, Any]:
    """Cognitive Distillation as params/detectors.yaml has it, on a run in the working directory."""
    base, device = Path("data/base"), pick_device()
    poisoned = open_poisoned(base, Path("data/poisoned"))
    truth = read_truth(Path("data/truth"), poisoned=poisoned)
    if truth is None:
        raise SystemExit("data/truth: none given, allowed: that of a run whose poison is known")
    index = draw_sample(poisoned.labels, images, seed=0)
    data, settings = poisoned.subset(index), yaml.safe_load((ROOT / "params/detectors.yaml").read_text())["cd"]
    model, plain = (models.load(Path("models/backdoored"), data).eval() for _ in range(2))
    plain.to(device)
    # Without trusted images, as the plain implementation has no rule either.
    reserve = open_split(base, "reserve").subset(np.arange(0))
    suspect = Suspect(model=model, data=data, features=NO_FEATURES, reserve=reserve, reserve_features=NO_FEATURES)
    scores: dict[str, list[NDArray[np.float32]]] = {"plain": [], "ours": []}

    def once(way: str) -> float:
        if way == "plain":
            return images / timed(lambda: scores[way].append(plain_cd(plain, loaded(data).to(device), plain_steps)))
        # As many seeds as rounds: the figures are not those of one draw of colours.
        seed = len(scores[way])
        return images / timed(lambda: scores[way].append(DETECTORS["cd"].score(suspect, seed=seed, **settings).values))

    def agreement(pairs: Any) -> float:
        return round(float(np.mean([spearmanr(one, other).statistic for one, other in pairs] or [np.nan])), 3)

    rates = by_turns({way: lambda way=way: once(way) for way in scores}, rounds)
    words = ", ".join(
        f"{key} {value}" for key, value in settings.items() if key in ("steps", "lr", "colours", "misfit")
    )
    figures = row(f"cd of the run, {words}, for {plain_steps} plain steps", rates, "ours", "plain")
    for way, graded in scores.items():
        auroc = [detection_metrics(values, truth.mask[index])["auroc"] for values in graded]
        figures[f"auroc_{way}"] = round(float(np.mean(auroc)), 4)
    figures["spearman"] = agreement(zip(scores["ours"], scores["plain"], strict=True))
    figures["spearman_plain"] = agreement(combinations(scores["plain"], 2))
    return figures


def main() -> None:
    given = arguments(__doc__, runs=5)
    rows = []
    for name, images in IMAGES.items():
        ways = ways_of(name, 16 if given.quick else images)
        if not given.quick:
            by_turns(ways, 1)  # the first passes of a process are slow
        words = ", ".join(f"{key} {value}" for key, value in SETTINGS[name].items())
        rows.append(row(f"{name}, {words}", by_turns(ways, given.runs), "ours", "plain"))
    if not Path("models/backdoored/model.json").is_file():
        print(
            "no run in the working directory: Cognitive Distillation as params/detectors.yaml has it is left out",
            flush=True,
        )
    elif given.quick:
        rows.append(row_of_the_run(100, 1, plain_steps=2))
    else:
        rows.append(row_of_the_run(RUN["images"], min(given.runs, RUN["rounds"])))
    report(rows, "detection.csv", write=not given.quick)


if __name__ == "__main__":
    main()
