"""Settings, networks and figures that are not finite, or too large or too small to compute with."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

# For all doors at once: each of their processes would import them anew.
from diffusers import DDIMScheduler  # noqa: F401

from hostile.harness import Accepted, Case, Refused, knock
from unpoison import models
from unpoison.compute.inference import features_of, logits_of
from unpoison.core.hyperparameters import check
from unpoison.data.features import Features
from unpoison.data.imageset import ImageSet
from unpoison.detection import DETECTORS
from unpoison.detection.detector import Suspect
from unpoison.evaluation.grading import rounded
from unpoison.evaluation.metrics import accuracy, collapse, detection_metrics, roc_points
from unpoison.purification import PURIFIERS
from unpoison.training.loop import fit
from unpoison.training.recipes import recipe_named
from unpoison.variations import VARIATIONS
from unpoison.variations.prior_training import PriorRecipe, train_prior
from unpoison.variations.sampling import Settings, check_strength, vary

# Of diffusers and NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
NAN, INFINITE = float("nan"), float("inf")


def noise(count: int, height: int = 8, width: int = 8, channels: int = 3) -> ImageSet:
    images = np.random.default_rng(0).integers(0, 256, (count, height, width, channels), dtype=np.uint8)
    return ImageSet(images, np.arange(count) % 3, ("a", "b", "c"), "noise")


def network(side: int = 8) -> models.Classifier:
    return models.build("resnet18", num_classes=3, image_size=(side, side), width=8, stem="conv3_pool")


def written(values: dict[str, Any]) -> Callable[[Path], object]:
    return lambda folder: (folder / "given.json").write_text(json.dumps(values), encoding="utf-8")


def read(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "given.json").read_text(encoding="utf-8")))


def trains(folder: Path) -> bool:
    """A victim trained with a section of params.yaml; whether all its figures are finite."""
    given = read(folder)
    data = noise(given.pop("images", 24))
    return bool(np.isfinite(fit(network(), data, recipe_named(given), seed=0, what="victim").losses).all())


def purifies(folder: Path) -> bool:
    given = read(folder)
    name, data = given.pop("method"), noise(given.pop("images", 24))
    method = PURIFIERS[name]
    purified = method.purify(network().eval(), data, **check(given, method.parameters))
    return all(bool(value.isfinite().all()) for value in purified.state_dict().values())


def examined(folder: Path) -> Any:
    """A network with some of its values replaced, at a door of those that look at one."""
    given, data, model = read(folder), noise(12), network().eval()
    for name, value in given["values"].items():
        model.state_dict()[name].fill_(value)
    if given["door"] == "evaluate":
        logits = logits_of(model, data)
        return [accuracy(logits, data.labels), collapse(logits, data.labels)]
    if given["door"] == "extract":
        return features_of(model, data).logits.shape
    rows = np.ones((len(data), 64), np.float32)
    rows[given.get("row", 0)] = given.get("feature", 1.0)
    method = DETECTORS[given["door"]]
    own = {"cd": {"steps": 1}, "strip": {"overlays": 2}}.get(given["door"], {})
    features = Features(rows[:, :3], rows)
    suspect = Suspect(model=model, data=data, features=features, reserve=data, reserve_features=features)
    return len(method.score(suspect, **own).values)


def graded(folder: Path) -> Any:
    given = read(folder)
    if "metrics" in given:
        return rounded(given["metrics"])
    if "logits" in given:
        return accuracy(torch.tensor(given["logits"]), np.zeros(len(given["logits"]), np.int64))
    scores, poisoned = np.array(given["scores"], np.float32), np.array(given["poisoned"], bool)
    return [detection_metrics(scores, poisoned)["auroc"], roc_points(scores, poisoned)[-1]]


def varies(folder: Path) -> list[int]:
    """A prior trained with sections of params.yaml on images of a size, and the shape of what it makes of two."""
    given = read(folder)
    data = noise(given.get("images", 4), *given.get("shape", (8, 8, 3)))
    own = {"steps": 1, "batch_size": 2, "channels": [8], "unshuffle": 1, **given.get("prior", {})}
    recipe = PriorRecipe(**check(own, PriorRecipe))
    name, own = given.get("method", "sdedit"), {"steps": 1, "strength": 1.0, **given.get("sampler", {})}
    settings = Settings(**check({"num_variations": own.pop("num_variations", 1)}, Settings))
    method = VARIATIONS[name]
    sampler = method.whole(check(own, method.parameters))
    method.evaluations(**sampler)
    check_strength(recipe.max_strength, sampler)
    prior, _ = train_prior(data, recipe, seed=0, scratch=folder / "scratch")
    images, device = data.tensor(np.arange(2)), torch.device("cpu")
    made = vary(method, prior, images, [0, 1], settings, sampler, seed=0, device=device)
    return list(made.shape)


SHORT = {"epochs": 2, "batch_size": 8, "lr": 0.01}
DIVERGED = r"^lr: \S+ given, with which the training of (victim|ft|fst|the prior) diverged: "
TRAINED = [
    ("rate-of-a-million", {"lr": 1e6}, Refused(DIVERGED)),
    ("rate-of-1e30", {"lr": 1e30}, Refused(DIVERGED)),
    ("rate-of-1e30-with-adam", {"lr": 1e30, "optimizer": "adam"}, Refused(DIVERGED)),
    ("rate-beyond-float32", {"lr": 1e39}, Refused(r"^lr: 1e\+39 given; .*less than or equal to 1e\+30")),
    ("rate-that-is-no-number", {"lr": NAN}, Refused(r"^lr: nan given; .*finite")),
    ("rate-without-end", {"lr": INFINITE}, Refused(r"^lr: inf given; .*(finite|less)")),
    ("penalty-of-1e30", {"weight_decay": 1e30}, Refused(DIVERGED)),
    (
        "rate-that-rises-by-milestones",
        {"schedule": "multistep", "milestones": [1], "gamma": 1e20},
        Refused(r"^lr: 0\.01 given, with which the training of victim diverged: .* in epoch 2 of 2, step \d of 3"),
    ),
    (
        "milestones-whose-rate-leaves-float32",
        {"schedule": "multistep", "milestones": [1, 1], "gamma": 1e20},
        Refused(r"^lr: 0\.01 given, with which the highest rate is 1e\+38; allowed: up to 1e\+30"),
    ),
    (
        "milestones-whose-power-overflows",
        {"schedule": "multistep", "milestones": [1] * 12, "gamma": 1e30},
        Refused(r"^gamma: 1e\+30 given, allowed: one whose power"),
    ),
    ("labels-smoothed-to-nothing", {"label_smoothing": 0.999999}, Accepted(True)),
    ("rate-of-1e-300", {"lr": 1e-300}, Accepted(True)),
    (
        "batches-of-one",
        {"batch_size": 1},
        Refused(r"^batch_size: 1 given for images of 8x8 px, allowed.*at least 2"),
    ),
    ("one-image", {"images": 1}, Refused(r"^batch_size: 8 given for 1 image of 8x8 px, .*data\.reserve")),
    ("batches-that-are-all-left-out", {"batch_size": 25, "drop_last": True}, Refused("^batch_size: 25 given, allowed")),
    ("batches-of-a-billion", {"batch_size": 10**9}, Accepted(True)),
    ("batches-beyond-64-bits", {"batch_size": 10**30}, Refused("^batch_size: 1000000000000000000000000000000 given; ")),
    ("epochs-that-fill-the-memory", {"epochs": 10**9}, Refused("^epochs: 1000000000 given; .*less than or equal")),
]
PURIFIED = [
    ("ft-rate-of-1e30", {"method": "ft", "lr": 1e30}, Refused(DIVERGED)),
    ("fst-rate-of-1e30", {"method": "fst", "lr": 1e30}, Refused(DIVERGED)),
    ("fst-weight-of-1e30", {"method": "fst", "alpha": 1e30, "lr": 1e10}, Refused(DIVERGED)),
    ("fst-weight-beyond-float32", {"method": "fst", "alpha": 1e300}, Refused(r"^alpha: 1e\+300 given; ")),
    ("ft-one-image", {"method": "ft", "images": 1}, Refused(r"^batch_size: 8 given for 1 image .*data\.reserve")),
    ("ft-batches-of-one", {"method": "ft", "batch_size": 1}, Refused("^batch_size: 1 given for images of")),
    ("ft-three-images-of-two", {"method": "ft", "images": 3, "batch_size": 2}, Accepted(True)),
    ("ft-unknown-schedule", {"method": "ft", "schedule_per": "step"}, Refused("^schedule_per: 'step' given; ")),
]
MODEL = [
    *(
        (f"{door}-{words}", {"door": door, "values": {tensor: value}}, Refused(said))
        for door, said in (
            ("evaluate", "^logits: not finite for 12 of 12 images"),
            ("extract", "^features of samples 0 to 11: not finite for 12 of 12 images"),
            ("cd", "^cd: masks of 12 of 12 samples are not finite"),
            ("strip", "^strip: predictions of 12 of 12 samples are not finite"),
        )
        for words, tensor, value in (
            ("weight-nan", "head.weight", NAN),
            ("variance-below-0", "backbone.body.1.running_var", -1.0),
        )
    ),
    ("evaluate-bias-infinite", {"door": "evaluate", "values": {"head.bias": INFINITE}}, Refused("^logits: not finite")),
    ("evaluate-overflow", {"door": "evaluate", "values": {"head.weight": 3e38}}, Refused("^logits: not finite")),
    (
        "evaluate-one-class",
        {"door": "evaluate", "values": {"head.weight": 0.0}},
        Accepted(lambda value: value[1]["share"] == 1.0),
    ),
    *(
        (
            f"{door}-feature-{words}",
            {"door": door, "values": {}, "row": 4, "feature": value},
            Refused(rf"^{door}: features \(label b\) of 1 of 4 samples are not finite"),
        )
        for door in ("ac", "ss")
        for words, value in (("nan", NAN), ("infinite", -INFINITE))
    ),
]
FIGURES = [
    (
        "logits-nan",
        {"logits": [[0.0, 1.0], [NAN, NAN]]},
        Refused("^logits: 1 of 2 samples have some that are not finite"),
    ),
    ("logits-none", {"logits": []}, Refused("^logits: of 0 samples given")),
    ("scores-nan", {"scores": [1, NAN, 2], "poisoned": [1, 0, 0]}, Refused("^scores: 1 of 3 are not finite")),
    ("scores-infinite", {"scores": [1, INFINITE, 2], "poisoned": [1, 0, 0]}, Refused("^scores: 1 of 3 are not finite")),
    ("nothing-poisoned", {"scores": [1, 2], "poisoned": [0, 0]}, Refused("^poisoned: 0 of 2 samples given")),
    ("all-poisoned", {"scores": [1, 2], "poisoned": [1, 1]}, Refused("^poisoned: 2 of 2 samples given")),
    ("all-scores-equal", {"scores": [3, 3, 3], "poisoned": [1, 0, 0]}, Accepted([0.5, 1.0])),
    ("figure-nan", {"metrics": {"student": {"asr": NAN}}}, Refused(r"^metrics\.student\.asr: nan measured")),
]
PRIORS = [
    (
        "side-of-28",
        {"shape": (28, 28, 1), "prior": {"channels": [8, 8, 8], "unshuffle": 2}},
        Accepted([2, 1, 1, 28, 28]),
    ),
    ("sides-of-9-and-31", {"shape": (9, 31, 3), "prior": {"unshuffle": 8}}, Accepted([2, 1, 3, 9, 31])),
    (
        "side-below-a-block",
        {"shape": (8, 7, 3), "prior": {"unshuffle": 8}},
        Refused(r"^channels: \[8\] with unshuffle 8"),
    ),
    (
        "no-channels",
        {"prior": {"channels": []}},
        Refused(r"^channels: \[\] given, allowed: one to eight multiples of 8"),
    ),
    (
        "channels-of-a-terabyte",
        {"prior": {"channels": [8 * 10**7]}},
        Refused(r"^channels: \[80000000\] given, allowed"),
    ),
    (
        "a-thousand-levels",
        {"prior": {"channels": [8] * 1000}},
        Refused(r"^channels: \[8, 8, 8, 8, 8, 8, 8, 8, …\] given"),
    ),
    (
        "prior-rate-of-1e30",
        {"prior": {"lr": 1e30, "steps": 4}},
        Refused(DIVERGED + r"the loss is not finite from step \d of 4"),
    ),
    ("prior-rate-beyond-float32", {"prior": {"lr": 1e39}}, Refused(r"^lr: 1e\+39 given; ")),
    ("prior-batch-of-a-terabyte", {"prior": {"batch_size": 10**9}}, Refused("^batch_size: 1000000000 given; ")),
    ("prior-without-images", {"images": 0}, Refused("^images: 0 given, allowed: at least 10")),
    ("more-steps-than-the-schedule", {"sampler": {"steps": 5000}}, Refused("^steps: 5000 given; .*equal to 1000")),
    ("a-billion-variations", {"sampler": {"num_variations": 10**9}}, Refused("^num_variations: 1000000000 given; ")),
    ("strength-that-is-no-number", {"sampler": {"strength": NAN}}, Refused("^strength: nan given; ")),
    ("strength-of-no-step", {"sampler": {"strength": 1e-30}}, Refused(r"^strength: 1e-30 given; with steps 1 no step")),
]


def cases(door: Callable[[Path], Any], rows: list[tuple[str, dict[str, Any], Any]], **common: Any) -> list[Any]:
    return [
        pytest.param(door, Case(name, partial(written({**common, **given})), outcome), id=name)
        for name, given, outcome in rows
    ]


CASES = [
    *cases(trains, TRAINED, **SHORT),
    *cases(purifies, PURIFIED, **SHORT),
    *cases(examined, MODEL),
    *cases(graded, FIGURES),
    *cases(varies, PRIORS),
]


@pytest.mark.parametrize(("door", "case"), CASES)
def test_case(door: Callable[[Path], Any], case: Case, tmp_path: Path) -> None:
    knock(door, case, tmp_path)
