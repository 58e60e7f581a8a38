"""Triggered test images as an artefact: for each trigger an overlay over the test split, stamped once and read by all.

Whoever grades a model reads images and the labels that the attacker wants; no trigger and no attack's code is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..core.arrays import Images, IntArray
from ..core.files import new_folder, read_manifest, write_manifest
from ..data.imageset import ImageSet, Overlay
from ..data.store import new_overlay, open_overlay
from .attacker import Held
from .policy import Policy
from .trigger import Trigger, stamp

FORMAT, DESCRIPTION = "unpoison-triggered-1", "triggered.json"


@dataclass(frozen=True)
class Triggered:
    """The test images that ASR counts for one trigger.

    Attributes:
        test: the clean test split.
        overlay: `index` of those images, sorted; they with the trigger; the labels that the attacker wants.
    """

    test: ImageSet
    overlay: Overlay

    def __len__(self) -> int:
        return len(self.overlay.index)

    @property
    def true(self) -> IntArray:
        """Their true labels."""
        return self.test.labels[self.overlay.index]

    def chunks(self) -> Iterator[tuple[Images, Images, ImageSet]]:
        """A stretch at a time: clean and triggered images, uint8 [k, h, w, c], and these with the wanted labels."""
        for rows in self.test.chunks(np.arange(len(self))):
            images, wanted = self.overlay.images[rows], self.overlay.labels[rows]
            yield self.test.gather(self.overlay.index[rows]), images, ImageSet(images, wanted, self.test.classes)


def attacked(test: ImageSet, policy: Policy, trigger: Trigger) -> IntArray:
    """The test samples that ASR counts, sorted: those the policy attacks that can carry the trigger."""
    trigger.check_complete()
    keys = np.flatnonzero(policy.attacked(test.labels))
    return keys[trigger.carried_by(test, keys)]


def triggered_of(test: ImageSet, policy: Policy, trigger: Trigger) -> Triggered:
    """The same in memory, without an artefact."""
    index = attacked(test, policy, trigger)
    wanted = policy.new_labels(test.labels[index], len(test.classes))
    return Triggered(test, Overlay(index, stamp(trigger, test.gather(index), index, train=False), wanted))


def write_triggered(
    folder: Path, test: ImageSet, attacker: Mapping[str, Held], made_from: dict[str, str]
) -> dict[str, int]:
    """Stamp the test split: a folder per trigger, by name; none for data of unknown origin.

    Args:
        made_from: name to digest, of the poisoned set that the triggers belong to.

    Returns:
        Trigger's name to how many images carry it.
    """
    counts = {}
    with new_folder(folder) as staging:
        for name, (policy, trigger) in attacker.items():
            index = attacked(test, policy, trigger)
            wanted = policy.new_labels(test.labels[index], len(test.classes))
            with new_overlay(staging / name, test, index, wanted, split="test") as overlay:
                for keys in test.chunks(index):
                    stamped = stamp(trigger, test.gather(keys), keys, train=False)
                    overlay.write(np.searchsorted(index, keys), stamped)
            counts[name] = len(index)
        about = {"format": FORMAT, "triggers": list(attacker), "made_from": made_from}
        write_manifest(staging, DESCRIPTION, about)
    return counts


def read_triggered(folder: Path, base: Path) -> dict[str, Triggered]:
    """Trigger's name to its images, in the order of the attack's triggers, read from disk as they are used.

    Raises:
        UserError: a file is missing, changed, of another format or of another base data set.
    """
    about = read_manifest(folder, DESCRIPTION, FORMAT)
    return {name: Triggered(*open_overlay(base, "test", folder / name)) for name in about["triggers"]}
