"""How much of a backdoor is left when triggered images are photographed: a run's victim on its test images after each change.

    python bench/camera.py --name badnets              # of the run in this working copy; adds to bench/results/camera.csv
    python bench/camera.py --name badnets --run FOLDER # of the run in another working copy
    python bench/camera.py --quick                     # a few images, prints only: whether it runs at all

Rotation, scale, shift, blur, brightness and JPEG at three strengths each (what they mean: `evaluation/camera.py`), and the
images as they are. A row for each:

    asr          share of the triggered test images of other classes that get the attacker's label
    acc          share of the clean test images that get their own, after the same change: what is lost to the change itself
    without      share of the same images without the trigger that get the attacker's label, after the same change
    tested       triggered images
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from pairs import ROOT, report
from unpoison import models
from unpoison.core.errors import UserError
from unpoison.core.manifest import is_made_from, made_from_of
from unpoison.data.imageset import ImageSet, Overlay
from unpoison.data.store import open_split
from unpoison.evaluation.camera import STRENGTHS, under_camera
from unpoison.models.classifier import Classifier
from unpoison.poisoning import triggered as triggered_
from unpoison.poisoning import truth
from unpoison.poisoning.triggered import Triggered, read_triggered

CHANGES = [("none", 0.0), *((change, strength) for change, strengths in STRENGTHS.items() for strength in strengths)]


def run_of(folder: Path) -> tuple[Classifier, ImageSet, dict[str, Triggered]]:
    """Victim, test split and triggered test images of one run.

    Raises:
        UserError: no run, or parts of different ones.
    """
    data, trained = folder / "data", folder / "models"
    present = made_from_of(data / "truth", truth.DESCRIPTION)
    for part, name in ((trained / "backdoored", models.DESCRIPTION), (data / "triggered", triggered_.DESCRIPTION)):
        if not is_made_from(part, name, **present):
            raise UserError(f"{part}: not made from the present {data / 'poisoned'}; run `dvc repro` there")
    test = open_split(data / "base", "test")
    return models.load(trained / "backdoored", test), test, read_triggered(data / "triggered", data / "base")


def first_of(triggered: Triggered, count: int) -> tuple[ImageSet, Triggered]:
    """The first images that carry the trigger, as a test split of their own."""
    overlay = triggered.overlay
    split = triggered.test.subset(overlay.index[:count])
    return split, Triggered(split, Overlay(np.arange(len(split)), overlay.images[:count], overlay.labels[:count]))


def rows(folder: Path, name: str | None, seed: int, quick: bool) -> list[dict[str, Any]]:
    """A row for each trigger and change."""
    model, test, triggers = run_of(folder)
    done = []
    for trigger, triggered in triggers.items():
        split, shown = first_of(triggered, 20) if quick else (test, triggered)
        for change, strength in CHANGES:
            graded = under_camera(model, split, shown, change, strength, seed=seed)
            about = {"name": name or trigger, "trigger": trigger, "change": change, "strength": strength}
            figures = {what: round(graded[what], 3) for what in ("asr", "without", "acc")}
            done.append({**about, **figures, "tested": len(shown), "seed": seed})
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=ROOT, help="a working copy with a finished run")
    parser.add_argument("--name", help="name of the run in the file; by default that of the trigger")
    parser.add_argument("--seed", type=int, default=0, help="of the directions of the changes")
    parser.add_argument("--quick", action="store_true", help="20 images, nothing written: whether it runs at all")
    given = parser.parse_args()
    try:
        found = rows(given.run, given.name, given.seed, given.quick)
    except UserError as error:
        sys.exit(f"error: {error}")
    if not found:
        sys.exit(f"error: {given.run / 'data' / 'triggered'}: no trigger, allowed: a run with an attack")
    report(found, "camera.csv", write=not given.quick)


if __name__ == "__main__":
    main()
