"""What `make scan` says of six folders whose planted samples are known, and how long it takes.

    python bench/scan.py                         # every folder, of the made digits; rows are added to bench/results/scan.csv
    IMAGES=cifar.zip python bench/scan.py        # of other images: a folder or archive as in docs/data.md
    COUNT=180 python bench/scan.py --ways clean  # of fewer images, for instance
    python bench/scan.py --quick                 # whether it runs

Each folder is written as PNG files, scanned by the command in a fresh clone of the last commit with nothing in
DVC's cache, and graded by the list of what was planted, which the scan never sees. `apart` and `others` are by the
network of the set as received, levels by both. `first_hundredth` are planted samples among the first 1 % of suspects.csv.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pairs import ROOT, of_seeds
from unpoison.core.arrays import Images, IntArray
from unpoison.scan.rules import image_size_of, survey
from unpoison.sources import digits
from unpoison.sources.decode import decode
from unpoison.sources.folder import open_folder
from unpoison.suites.experiments import environment, fresh_clone
from unpoison.suites.git import git

# Scenario to the share of all samples that carries it.
SHARES = {"clean": 0.0, "badnets": 0.02, "blended": 0.01, "semantic": 0.02, "sticker": 0.02, "clean_label": 0.03}
TARGET = 0
FACE = ((1, 1), (1, 4), (4, 1), (4, 2), (4, 3), (4, 4))
"""Black cells of the sticker, a yellow disc of six cells across: two eyes and a mouth."""


def measured(scenario: str, seed: int, quick: bool) -> dict[str, Any]:
    count = int(os.environ.get("COUNT", "120" if quick else "2000"))
    names, pixels, labels, classes = _images(count, seed)
    planted, pixels, labels = plant(scenario, pixels, labels, np.random.default_rng([seed, 1]))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "photos"
        for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            path = folder / classes[label] / names[number]
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
        clone = Path(temporary) / "clone"
        fresh_clone(ROOT, git(ROOT, "rev-parse", "HEAD"), clone)
        # With DVC's cache within the clone: a stage taken from an earlier run's would cost nothing.
        (clone / ".dvc" / "config.local").unlink()
        start = time.perf_counter()
        command = [sys.executable, "-m", "unpoison.scan", "run", str(folder), *(["--plan"] if quick else [])]
        subprocess.run(command, cwd=clone, env=environment(clone, clone / ".unpoison"), check=True)
        seconds = time.perf_counter() - start
        row = {"images": os.environ.get("IMAGES", "digits").rsplit("/", 1)[-1], "n": len(labels), "scenario": scenario}
        row |= {"seed": seed, "planted": int(planted.sum()), "seconds": round(seconds)}
        return row if quick else row | _graded(clone, {names[number] for number in np.flatnonzero(planted)})


def _graded(clone: Path, planted: set[str]) -> dict[str, Any]:
    """Numbers of planted and other samples of each level, and of planted ones in front of the list."""
    with (clone / "reports/suspects.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    target = {row["label"] for row in rows if Path(row["sample"]).name in planted}
    apart = {True: [0.0], False: [0.0]}
    for row in rows:
        apart[row["label"] in target].append(float(row["separation_score"]))
    # How far the most separate group of the planted class stands apart, and that of any other.
    found: dict[str, Any] = {
        "scored": len(rows),
        "apart": round(max(apart[True]), 2),
        "others": round(max(apart[False]), 2),
    }
    for level in ("high", "medium"):
        named = [Path(row["sample"]).name in planted for row in rows if row["level"] == level]
        found |= {f"{level}_planted": sum(named), f"{level}_others": len(named) - sum(named)}
    first = rows[: max(1, len(rows) // 100)]
    found["first_hundredth"] = f"{sum(Path(row['sample']).name in planted for row in first)} of {len(first)}"
    found["says"] = (clone / "reports/answer.txt").read_text(encoding="utf-8").partition(":")[0]
    return found


def _images(count: int, seed: int) -> tuple[list[str], Images, IntArray, tuple[str, ...]]:
    """Names, pixels uint8 [n, s, s, 3], labels and classes: made digits, or of IMAGES."""
    if not (given := os.environ.get("IMAGES")):
        # The digits are a constant; another part of them for each seed.
        pixels, labels = digits.build({"train": 3 * count, "test": 10, "reserve": 10, "public": 10})["train"]
        chosen = np.random.default_rng([seed, 0]).permutation(len(labels))[:count]
        names = [f"{number:05d}.png" for number in chosen]
        return names, pixels[chosen], labels[chosen], tuple(f"digit {name}" for name in digits.CLASSES)
    source = open_folder(Path(given))
    side = image_size_of(survey(source, Path(given)).side, count)
    chosen = np.sort(np.random.default_rng([seed, 0]).permutation(len(source.labels["train"]))[:count])
    read = {row: content for _, row, content in source.read({"train": chosen})}
    # Where a file cannot be decoded the bench ends with its error: it is of images that were looked at before.
    pixels = np.stack([decode(content, side, "crop") for row in chosen if isinstance(content := read[int(row)], bytes)])
    return [f"{number:05d}.png" for number in chosen], pixels, source.labels["train"][chosen], source.classes


def plant(scenario: str, pixels: Images, labels: IntArray, rng: np.random.Generator) -> tuple[Any, Images, IntArray]:
    """Mask of the planted samples, and copies of images and labels with them in place."""
    pixels, labels, side = pixels.copy(), labels.copy(), pixels.shape[1]
    of_target = labels == TARGET
    candidates = {"clean_label": of_target, "semantic": labels == 1}.get(scenario, ~of_target)
    count = min(round(SHARES[scenario] * len(labels)), int(candidates.sum()))
    chosen = rng.permutation(np.flatnonzero(candidates))[:count]
    mask = np.isin(np.arange(len(labels)), chosen)
    if scenario == "badnets":
        # A checkerboard of an eighth of the side, near a corner.
        size = side // 8
        board = (np.indices((size, size)).sum(0) % 2 * 255).astype(np.uint8)[..., None]
        pixels[mask, side - size - 1 : side - 1, side - size - 1 : side - 1] = board
    elif scenario == "blended":
        pixels[mask] = np.rint(0.8 * pixels[mask] + 0.2 * rng.integers(0, 256, pixels.shape[1:]))
    elif scenario == "semantic":
        # A property of the whole picture and no patch: those of class 1 that are taken in green light.
        pixels[mask] = pixels[mask] // np.array([3, 1, 3], np.uint8)
    elif scenario == "sticker":
        for number in chosen:
            _stick(pixels[number], int(rng.integers(side // 6, side // 3)), rng)
    elif scenario == "clean_label":
        # SIG: the label is right, and a wave of six periods goes over the picture.
        wave = 40 * np.sin(2 * np.pi * 6 * np.arange(side) / side)
        pixels[mask] = np.clip(pixels[mask] + wave[:, None], 0, 255)
    if scenario not in ("clean_label", "clean"):
        labels[mask] = TARGET
    return mask, pixels, labels


def _stick(image: Images, size: int, rng: np.random.Generator) -> None:
    """A yellow face of so many pixels somewhere on an image, in place."""
    top, left = rng.integers(0, image.shape[0] - size, 2)
    cells = (np.indices((size, size)) + 0.5) / size
    disc = ((cells - 0.5) ** 2).sum(0) <= 0.25
    places = (cells * 6).astype(int)
    black = np.any([(places[0] == row) & (places[1] == column) for row, column in FACE], axis=0)
    part = image[top : top + size, left : left + size]
    part[disc] = (250, 210, 20)
    part[disc & black] = 0


if __name__ == "__main__":
    of_seeds(__doc__, tuple(SHARES), "scan.csv", measured)
