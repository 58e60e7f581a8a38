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
from ..sources.splits import MOST

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

    def vouched(self, trusted: Path | None) -> bool:
        """Whether there are trusted images: those given, or a `reserve` part of the data."""
        return trusted is not None or "reserve" in self.parts


def survey(source: Source, path: Path) -> Survey:
    """Look at a source: its counts, and some of its images.

    Raises:
        UserError: of the images looked at none can be used.
    """
    labels = source.labels["train"]
    # From all over, as a folder's neighbours are of one class.
    rows = np.unique(np.linspace(0, len(labels) - 1, min(LOOKED_AT, len(labels))).astype(np.int64))
    sides, kept, small = list[int](), list[int](), list[Images]()
    for _, row, content in source.read({"train": rows}):
        if isinstance(content, str):
            continue
        try:
            pixels = decode(content, None, "crop") if isinstance(content, bytes) else content
        except DefectError:
            continue
        sides.append(min(pixels.shape[:2]))
        kept.append(row)
        # Reduced at once: two hundred photographs as they are would take gigabytes.
        small.append(resized(pixels, max(SIDES.values()), "crop"))
    if not kept:
        raise UserError(
            f"DATA: {str(path)!r} given, none of whose {len(rows)} images looked at can be used; allowed: images"
        )
    side = int(np.median(sides))
    wanted = image_size_of(side, len(labels))
    sample = np.stack([_coloured(resized(pixels, wanted, "crop")) for pixels in small])
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
    """Detectors of a scan. Only `strip` asks for trusted images, and says less where nothing vouches for them."""
    cheap = ["separation", "transplant", "ac", "ss", "spectre", "strip"]
    return [*cheap, "cd"] if total * size * size <= MOST_VALUES else cheap


def overrides_of(found: Survey, *, trusted: Path | None, epochs: int, canary: bool) -> dict[str, Any]:
    """The parameters of a scan that differ from the committed ones, or may.

    Args:
        found: what is known of the data.
        trusted: folder or archive of trusted images of the same classes; None: a reserve is drawn from the data.
        epochs: length of the training.
        canary: whether to plant canaries.
    """
    size = int(found.sample.shape[1])
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
        **reserve_of(found, trusted),
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
        "visualise.models": [],
        "visualise.figures": [],
        # Untrusted images are no centre to measure from.
        "params/detectors.yaml:ss.centre": "reserve" if found.vouched(trusted) else "class",
    }


def reserve_of(found: Survey, trusted: Path | None) -> dict[str, Any]:
    """Where the images come from that others are compared with: `trusted`, the data's own `reserve` part, or the data."""
    if trusted is not None:
        return {"data.reserve_from": "other", "data.reserve_path": str(trusted), "data.reserve": None}
    own = {"data.reserve_path": "data/reserve_source"}
    if "reserve" in found.parts:
        return {**own, "data.reserve_from": "held_out", "data.reserve": None}
    return {
        **own,
        "data.reserve_from": "train",
        "data.reserve": min(MOST["reserve"], max(50, found.total // 10), found.total),
    }


def _coloured(pixels: Images) -> Images:
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
