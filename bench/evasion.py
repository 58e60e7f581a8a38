"""Whether each of Blind's evasion losses lowers what the detector it is against sees: plain Blind beside Blind with the evasion.

    python bench/evasion.py                # prints a table and adds it to bench/results/evasion.csv
    python bench/evasion.py --seeds 3      # means over seeds 0, 1 and 2
    python bench/evasion.py --quick        # a few images, prints only: whether it runs at all

2,400 digits, ResNet-18 of width 16 (`conv3_pool`, whose last map is 2 x 2), 8 epochs of the recipe `small` with batches of 64,
a copy of every image. Of each model:

    acc, asr       share of test images that get their label, and of triggered ones of other classes that get the target
    nc_index       Neural Cleanse's anomaly index of the target; it flags from 2 on
    nc_mask        the norm of the target's mask over the median one
    cam            share of the Grad-CAM map that lies on the quarter of the image that the patch is in, over triggered images
    sentinet       AUROC of SentiNet's scores, triggered test images against clean ones
    ss             AUROC of Spectral Signatures' scores, triggered among clean test images of the target class, one to four

A detector that tells nothing has AUROC 0.5. Neural Cleanse, by far the dearest, looks at the first two models alone.
"""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import numpy as np
import torch

from pairs import of_seeds
from unpoison import models
from unpoison.attacks import SINGLE, hand_of
from unpoison.compute.device import pick_device
from unpoison.compute.inference import features_of, logits_of
from unpoison.crafting.attack import intent
from unpoison.crafting.context import Context
from unpoison.crafting.craft import craft
from unpoison.crafting.evasion import inside
from unpoison.data.imageset import ImageSet
from unpoison.detection import sentinet, ss
from unpoison.detection.detector import Suspect
from unpoison.evaluation.metrics import accuracy, detection_metrics
from unpoison.inspection import neural_cleanse
from unpoison.models.classifier import Classifier
from unpoison.poisoning.trigger import stamp
from unpoison.sources import digits
from unpoison.training.loop import fit
from unpoison.training.recipes import recipe_named

EVASIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "neural_cleanse": {"evasion": ["neural_cleanse"]},
    "neural_cleanse, 0.3": {"evasion": ["neural_cleanse"], "scales": [1.0, 0.9, 0.3]},
    "sentinet": {"evasion": ["sentinet"]},
    "spectral": {"evasion": ["spectral"]},
}
# Batch norm averages over a pass: images and copies apart, as published, or together.
WAYS = {
    f"{name}{', together' * together}": {**own, "together": together}
    for together in (False, True)
    for name, own in EVASIONS.items()
}
TARGET = 0


def suspect_of(model: Classifier, data: ImageSet, reserve: ImageSet) -> Suspect:
    return Suspect(
        model=model,
        data=data,
        features=features_of(model, data),
        reserve=reserve,
        reserve_features=features_of(model, reserve),
    )


def joined(clean: ImageSet, triggered: ImageSet) -> tuple[ImageSet, np.ndarray]:
    images, labels = (np.concatenate(both) for both in ((clean.base, triggered.base), (clean.labels, triggered.labels)))
    return ImageSet(images, labels, clean.classes), np.arange(len(labels)) >= len(clean)


def cam_share(model: Classifier, triggered: ImageSet) -> float:
    """Mean share of the map, for the target, in its top right quarter, where the patch is."""
    images = (triggered.tensor(np.arange(len(triggered))) / 255).to(pick_device())
    model.to(pick_device()).eval()
    with inside(model) as passed:
        logits = model(images)
    (back,) = torch.autograd.grad(logits[:, TARGET].sum(), passed[0].raw)
    maps, back = (model.backbone.spatial(of.detach()) for of in (passed[0].raw, back))
    heat = (back.mean((2, 3), keepdim=True) * maps).sum(1).clamp(min=0)
    rows, columns = heat.shape[1:]
    quarter = heat[:, : rows // 2, columns // 2 :].sum((1, 2)) / heat.sum((1, 2)).clamp(min=1e-12)
    return float(quarter.mean())


@cache
def images(quick: bool) -> tuple[ImageSet, ImageSet, ImageSet]:
    """Training images, test images and trusted ones."""
    sizes = {"train": 128, "test": 100, "reserve": 60} if quick else {"train": 2400, "test": 1200, "reserve": 300}
    splits = digits.build(sizes)
    return tuple(ImageSet(*splits[name], digits.CLASSES) for name in ("train", "test", "reserve"))  # type: ignore[return-value]


def measured(way: str, seed: int, quick: bool) -> dict[str, Any]:
    train, test, reserve = images(quick)
    context, wanted = Context(train=train, seed=seed), intent("blind", SINGLE["blind"], {"target": TARGET}, WAYS[way])
    poisoned = craft("blind", [wanted], context)
    model = models.build("resnet18", num_classes=10, image_size=(32, 32), width=16, stem="conv3_pool", seed=seed)
    recipe = recipe_named({"recipe": "small", "epochs": 2 if quick else 8, "batch_size": 64})
    start = time.perf_counter()
    fit(model, train, recipe, seed=seed, what="evasion", hand=hand_of(poisoned, train, seed=seed))
    seconds = time.perf_counter() - start
    keys = np.flatnonzero(test.labels != TARGET)
    stamped = stamp(poisoned.triggers[0], test.gather(keys), keys, train=False)
    triggered = ImageSet(stamped, np.full(len(keys), TARGET), test.classes)
    found: dict[str, Any] = {
        "way": way,
        "seed": seed,
        "acc": accuracy(logits_of(model, test), test.labels),
        "asr": accuracy(logits_of(model, triggered), triggered.labels),
        "cam": cam_share(model, triggered),
    }
    some = np.random.default_rng(seed).permutation(len(keys))
    mixed, mask = joined(test.subset(np.arange(min(100, len(test)))), triggered.subset(np.sort(some[:100])))
    scores = sentinet.score(suspect_of(model, mixed, reserve), seed=seed, overlays=30)
    found["sentinet"] = detection_metrics(scores.values, mask)["auroc"]
    clean = test.subset(np.flatnonzero(test.labels == TARGET))
    mixed, mask = joined(clean, triggered.subset(np.sort(some[: max(1, len(clean) // 4)])))
    found["ss"] = detection_metrics(ss.score(suspect_of(model, mixed, reserve), seed=seed).values, mask)["auroc"]
    if "sentinet" not in way and "spectral" not in way:
        verdict = neural_cleanse.inspect(
            model, reserve, seed=seed, epochs=2 if quick else 60, batch_size=50, sample=100
        )
        norms = verdict.aux["masks"].astype(np.float32).sum((1, 2))
        found["nc_index"] = float(verdict.anomaly[TARGET])
        found["nc_mask"] = float(norms[TARGET] / np.median(norms))
    found["seconds"] = seconds
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in found.items()}


if __name__ == "__main__":
    # The whole takes a quarter of an hour for each seed.
    of_seeds(__doc__, WAYS, "evasion.csv", measured)
