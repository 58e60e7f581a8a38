"""Parameters of a scan, from the data alone: image size, network, length of training, detectors. docs/scan.md states the rules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.arrays import Images, IntArray
from ..core.errors import UserError
from ..sources.decode import DefectError, decode, resized
from ..sources.source import Source

LOOKED_AT = 256
"""Images that are decoded before the scan starts."""
SIDES = {2_000: 64, 20_000: 48}
"""Largest side in pixels by the most images that it is taken for; of more images 32."""
NETWORK: dict[str, Any] = {"name": "resnet18", "width": 16, "stem": "conv3_pool"}
"""The network of a scan: small enough for two cores, and a trigger is no harder to learn for it than for a large one."""
SMALL, SMALL_BATCH, BATCH = 1_000, 32, 128
STEPS, STEPS_PER_CLASS, FEWEST_EPOCHS = 180, 36, 8
"""Optimiser steps that a network needs until it has learned the labels of a small set, and the fewest epochs of any."""
MOST_VALUES = 20_000 * 32 * 32
"""Pixels of all images up to which Cognitive Distillation takes part, which optimises a mask for each image."""


@dataclass(frozen=True)
class Survey:
    """What is known of a data set before it is scanned.

    Attributes:
        path: folder or archive.
        classes: class names.
        counts: training images by class, int64 [classes].
        parts: images by part (`train`, `test`, …).
        side: shorter side in pixels of the middle one of the images looked at.
        sample: images looked at, uint8 [k, s, s, 3], in the size that `image_size_of` says.
        labels: their labels, int64 [k].
    """

    path: Path
    classes: tuple[str, ...]
    counts: IntArray
    parts: Mapping[str, int]
    side: int
    sample: Images
    labels: IntArray

    @property
    def total(self) -> int:
        return int(self.counts.sum())


def survey(source: Source, path: Path) -> Survey:
    """Look at a source: its counts, and some of its images.

    Raises:
        UserError: of the images looked at none can be used.
    """
    labels = source.labels["train"]
    # From all over, as a folder's neighbours are of one class.
    rows = np.unique(np.linspace(0, len(labels) - 1, min(LOOKED_AT, len(labels))).astype(np.int64))
    sides, kept, contents = list[int](), list[int](), list[bytes | Images]()
    for _, row, content in source.read({"train": rows}):
        try:
            pixels = content if not isinstance(content, bytes | str) else None
            if isinstance(content, bytes):
                pixels = decode(content, None, "crop")
        except DefectError:
            continue
        if pixels is not None and not isinstance(content, str):
            sides.append(min(pixels.shape[:2]))
            kept.append(row)
            contents.append(content)
    if not kept:
        raise UserError(
            f"DATA: {str(path)!r} given, of whose first {len(rows)} images none can be used; allowed: images"
        )
    side = int(np.median(sides))
    wanted = image_size_of(side, len(labels))
    sample = np.stack([_sized(content, wanted) for content in contents])
    counts = np.bincount(labels, minlength=len(source.classes))
    parts = {part: len(names) for part, names in source.names.items()}
    return Survey(path, source.classes, counts, parts, side, sample, labels[kept])


def image_size_of(side: int, total: int) -> int:
    """Pixels per side that images are scanned in: as they are, but no more than their number allows; at least 16."""
    most = next((largest for images, largest in SIDES.items() if total <= images), 32)
    return max(16, min(side, most))


def epochs_of(total: int, classes: int) -> int:
    """Epochs of a training by number of images and classes."""
    steps = max(STEPS, STEPS_PER_CLASS * classes)
    return max(FEWEST_EPOCHS, math.ceil(steps / math.ceil(total / batch_of(total))))


def batch_of(total: int) -> int:
    return SMALL_BATCH if total < SMALL else BATCH


def detectors_of(total: int, size: int) -> list[str]:
    """Detectors of a scan: those that need no trusted images, or hardly suffer from untrusted ones."""
    cheap = ["separation", "ac", "ss", "spectre", "strip"]
    return [*cheap, "cd"] if total * size * size <= MOST_VALUES else cheap


def overrides_of(found: Survey, *, trusted: Path | None, epochs: int, canary: bool) -> dict[str, Any]:
    """Every parameter that a scan depends on, so that nothing of an earlier run in the working copy is left in it.

    Args:
        found: what is known of the data.
        trusted: folder or archive of trusted images of the same classes; None: a reserve is drawn from the data.
        epochs: length of the training.
        canary: whether to plant canaries.
    """
    size = int(found.sample.shape[1])
    reserve: dict[str, Any] = {
        "data.reserve_from": "train",
        "data.reserve": min(600, max(50, found.total // 10), found.total),
    }
    if trusted is not None:
        reserve = {"data.reserve_from": "other", "data.reserve_path": str(trusted), "data.reserve": None}
    return {
        "data.name": "folder",
        "data.path": str(found.path),
        "data.layout": "auto",
        "data.image_size": size,
        "data.resize": "crop",
        "data.on_error": "skip",
        "data.train_limit": None,
        # Every image is trained on and scored.
        "data.test_share": 0.0,
        "data.reserve_path": "data/reserve_source",
        **reserve,
        "data.public": 0,
        "data.trusted": "train",
        "received": None,
        "attack.name": "none",
        "attack.surrogate.data": False,
        **{f"model.{key}": value for key, value in NETWORK.items()},
        "model.pretrained": None,
        "train.recipe": "small",
        "train.epochs": epochs,
        "train.batch_size": batch_of(found.total),
        "variations.enabled": False,
        "purify.methods": [],
        "purify.by": {},
        "stress.methods": [],
        "stress.reactivation": False,
        "robust.methods": [],
        "robust.by": {},
        "detect.methods": detectors_of(found.total, size),
        "detect.inputs": [],
        "detect.models": [],
        "detect.sample": None,
        "detect.canary": [0] if canary else [],
        # Untrusted images are no centre to measure from.
        "params/detectors.yaml:ss.centre": "class" if trusted is None else "reserve",
    }


def _sized(content: bytes | Images, side: int) -> Images:
    if isinstance(content, bytes):
        return decode(content, side, "crop")
    pixels = resized(content, side, "crop")
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
