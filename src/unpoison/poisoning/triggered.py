"""Triggered test images as an artefact: for each trigger an overlay over the test split, stamped once and read by all.

Grading a model takes these images and the labels that the attacker wants; no trigger and no attack's code is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..core.arrays import Images, IntArray
from ..core.errors import UserError, keys_of
from ..core.files import new_folder
from ..core.manifest import Manifest, Name, read_manifest, write_manifest
from ..data.imageset import ImageSet, Overlay
from ..data.store import new_overlay, open_overlay
from .attacker import Held
from .policy import Policy
from .trigger import Trigger, stamp

FORMAT, DESCRIPTION = "unpoison-triggered-1", "triggered.json"


class TriggeredManifest(Manifest):
    """What `triggered.json` holds: the names of the triggers, each a folder."""

    triggers: list[Name]


@dataclass(frozen=True)
class Triggered:
    """The test images that ASR counts for one trigger.

    Attributes:
        test: clean test split.
        overlay: sorted `index` of those images, the images with the trigger, and the labels that the attacker wants.
    """

    test: ImageSet
    overlay: Overlay

    def __len__(self) -> int:
        return len(self.overlay.index)

    @property
    def true(self) -> IntArray:
        """The true labels of the triggered images."""
        return self.test.labels[self.overlay.index]

    def chunks(self) -> Iterator[tuple[Images, Images, ImageSet]]:
        """Clean and triggered images, uint8 [k, h, w, c], and the triggered ones with the attacker's labels, in stretches."""
        for rows in self.test.chunks(np.arange(len(self))):
            # Rows of the overlay, which only holds the triggered images; `index` leads back to the test split.
            images, labels = self.overlay.images[rows], self.overlay.labels[rows]
            yield self.test.gather(self.overlay.index[rows]), images, ImageSet(images, labels, self.test.classes)


def attacked(test: ImageSet, policy: Policy, trigger: Trigger) -> IntArray:
    """The test samples that ASR counts, sorted: those that the policy attacks and that can carry the trigger."""
    # Before the policy is looked at: even with no sample to stamp, a trigger kept for training is the wrong one here.
    trigger.check_complete()
    keys = np.flatnonzero(policy.attacked(test.labels))
    return keys[trigger.carried_by(test, keys)]


def triggered_of(test: ImageSet, policy: Policy, trigger: Trigger) -> Triggered:
    """The triggered images of one trigger in memory, without an artefact."""
    index = attacked(test, policy, trigger)
    labels = policy.new_labels(test.labels[index], len(test.classes))
    return Triggered(test, Overlay(index, stamp(trigger, test.gather(index), index, train=False), labels))


def write_triggered(
    folder: Path, test: ImageSet, attacker: Mapping[str, Held], made_from: dict[str, str]
) -> dict[str, int]:
    """Stamp the test split: a folder per trigger, by name; none for data of unknown origin.

    Args:
        folder: place of the artefact.
        test: clean test split.
        attacker: policy and trigger by the trigger's name.
        made_from: digest by name of the poisoned set that the triggers belong to.

    Returns:
        Number of images that carry each trigger, by its name.
    """
    counts = {}
    with new_folder(folder) as staging:
        for name, (policy, trigger) in attacker.items():
            with keys_of(name):
                index = attacked(test, policy, trigger)
            labels = policy.new_labels(test.labels[index], len(test.classes))
            with new_overlay(staging / name, test, index, labels, split="test") as overlay:
                # Row of the overlay and key of the sample differ: what a stamp depends on is the sample's place in the split.
                for keys in test.chunks(index):
                    stamped = stamp(trigger, test.gather(keys), keys, train=False)
                    overlay.write(np.searchsorted(index, keys), stamped)
            counts[name] = len(index)
        about = {"format": FORMAT, "triggers": list(attacker), "made_from": made_from}
        write_manifest(staging, DESCRIPTION, about)
    return counts


def read_triggered(folder: Path, base: Path) -> dict[str, Triggered]:
    """The triggered images by the trigger's name, in the order of the attack's triggers, read from disk on use.

    Raises:
        UserError: a file is missing, changed, of another format or of another base data set.
    """
    about = read_manifest(folder, DESCRIPTION, FORMAT, TriggeredManifest)
    if len(set(about.triggers)) < len(about.triggers):
        raise UserError(f"{folder / DESCRIPTION}: a trigger is listed twice, allowed: each once")
    return {name: Triggered(*open_overlay(base, "test", folder / name)) for name in about.triggers}
