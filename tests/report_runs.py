"""Runs of a report, small and made by hand: what the tests of the report share."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from unpoison.data.drawings import Drawing, Picture
from unpoison.data.imageset import ImageSet, Overlay
from unpoison.data.problems import Problems
from unpoison.data.scores import Assumption, Scores
from unpoison.data.verdicts import Verdict
from unpoison.poisoning.policy import Policy
from unpoison.poisoning.triggered import Triggered
from unpoison.poisoning.truth import Part, Truth
from unpoison.reporting.run import Examined, ReportSettings, Run

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


def picture_of(width: int, height: int) -> bytes:
    """A white picture."""
    buffer = io.BytesIO()
    Image.new("L", (width, height), 255).save(buffer, "PNG")
    return buffer.getvalue()


ODD_CLASSES = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></table><h1>big</h1>",
    "unbroken" * 12,
    "several words in a name that goes on and on " * 3,
    "\u202egpj.exe\x1b[31m",
    "猫 🐈 ネコ",
    "=1+1 | *b* `c` $d$",
    " ",
    *(f"class{number:02d}" for number in range(20)),
)
"""More classes than a table shows, those with odd names in front."""


def rich_run(truth: bool = True) -> Run:
    """A run with something in every section: odd and long names, many suspects, problems, wide tables, two triggers."""
    count, classes = 60, ODD_CLASSES
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    labels = np.arange(count) % len(classes)
    mask = np.arange(count) % 7 == 3
    given = np.where(mask, 3, labels)
    data = ImageSet(images, given, classes)
    folders = "scans of 2019/" + "a-folder-without-a-space-" * 6 + "/"
    sources = [f"{folders if n % 3 else ''}{'x' * (200 if n % 5 == 0 else 2)}<b>{n:02d}.png" for n in range(count)]
    masks = {"index": np.arange(8), "masks": rng.random((8, 16, 16)).astype(np.float16)}
    rule = "the smaller cluster of each class in which it has less than a share of the samples that is far below a half"
    detectors = ("cd", "ac", "ss", "strip", "a_name_with_no_end_" * 3)
    scores = {
        name: Scores(
            (rng.normal(size=count) + 3 * mask).round(number % 2).astype(np.float32),
            1,
            masks if number == 0 else {},
            "What the masks show.",
            Assumption("takes poison for rare", 0.1),
            flagged=None if number == 1 else rng.random(count) < 0.2,
            rule="" if number == 1 else rule,
        )
        for number, name in enumerate(detectors)
    }
    test = ImageSet(images[:20], labels[:20], classes)
    attacked = np.flatnonzero(test.labels != 3)
    stamped = Overlay(attacked, 255 - images[attacked], np.full(len(attacked), 3))
    share = {
        "acc": 0.9,
        "acc_without_target": 0.8,
        "asr": 0.7,
        "ra": 0.2,
        "cross_acc": 0.5,
        "der": 0.6,
        "retuned_asr": 1.0,
    }
    quality = dict.fromkeys(("auroc", "ap", "tpr_at_1fpr", "tpr_at_5fpr", "precision_at_count"), 0.75)
    quality |= {"flagged": 4.0, "flagged_tpr": 0.75, "flagged_fpr": 0.125}
    about = {"name": "pets", "source": "a|folder" * 20, "counts": {"train": count, "test": 20}}
    parts = tuple(Part("badnets", Policy(target=3), {"size": size}) for size in (2, 4))
    known = Truth("multi", parts, mask, np.where(mask, 0, -1).astype(np.int8), labels)
    more: dict[str, Any] = {"metrics": {"backdoored": {"acc": 0.9}, "student": {"acc": 0.8}}}
    if truth:
        models = {
            "student": share | {"collapsed": {"class": 2.0, "share": 0.995}},
            "purified": dict.fromkeys(
                ("ft", "fst", "i_bau", "a_purifier_with_a_name_of_some_length_of_its_own"), share
            ),
            "robust": {"default_defence": share | {"found": {"suspects": 0.2, "woken": 0.5}}},
            "detection": dict.fromkeys(detectors, quality),
            "inputs": dict.fromkeys(("strip", "scale_up"), quality),
        }
        figures = [f"{name}.{key}" for name in (*detectors, "inputs.strip") for key in ("auroc", "ap", "tpr_at_1fpr")]
        more = {
            "truth": known,
            "triggered": dict.fromkeys(known.names, Triggered(test, stamped, stamped)),
            "metrics": metrics_of(known, clean=share, **models),
            "roc": pd.DataFrame({"fpr": [0, 0.01, 1], **{name: [0, 0.5, 1] for name in detectors}}),
            "intervals": pd.DataFrame({"level": [0.025, 0.975], **{name: [0.5, 1.0] for name in figures}}),
            "line": pd.DataFrame({"t": [0, 1], "ft.acc": [0.8, 0.9], "ft.asr": [0.1, 0.7]}),
        }
    pairs = np.stack([np.arange(12), np.arange(12) + count], axis=1)
    problems = Problems(
        pairs, np.linspace(0, 0.1, 12, dtype=np.float32), np.array([4, 5]), np.where(mask, 1, -1).astype(np.int64), 3
    )
    splits = {"train": count, "test": 20}
    curve = pd.DataFrame({"epoch": [1, 2], "accuracy": [0.5, 0.6], "loss": [1.0, 0.5]})
    patches = {
        "masks": np.full((len(classes), 16, 16), 0.5, np.float16),
        "patterns": images[: len(classes)].transpose(0, 3, 1, 2),
    }
    drawn = [
        Picture(name=name, png=picture_of(*size), caption=f"{name}: {caption}", wide=wide)
        for name, size, caption, wide in (
            ("a", (720, 600), "principal components", False),
            ("b", (720, 600), ODD_CLASSES[3], False),
            ("c", (870, 350), "mean activation of each neuron, " * 5, True),
        )
    ]
    drawings = {
        "embedding": Drawing(caption=f"What it shows. {ODD_CLASSES[4]}", pictures=drawn),
        "frequency": Drawing(caption="The figure frequency is left out: it needs a trigger, and none is known."),
    }
    anomaly = np.arange(len(classes), dtype=np.float32)[::-1].copy()
    return run_of(
        data=data,
        about=about,
        sources=sources,
        model=MODEL,
        variations=data,
        sampler={"method": "sdedit", "strength": 0.6},
        scores=scores,
        verdicts={"mm_bd": Verdict(anomaly, anomaly > 26, rule, 1200, "The patches.", patches)},
        examined=Examined(problems, data.followed_by(test), [*sources, *sources[:20]], splits),
        curves={"backdoored": curve, "student": curve},
        losses=np.ones((2, count), np.float32),
        drawings=drawings,
        settings={"samples": 4, "suspects": 14, "note": "A note. " * 20 + "unbroken" * 40},
        **more,
    )
