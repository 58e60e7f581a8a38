"""A poisoned training set as its attacker has it: the truth and the triggers together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..core.arrays import Images, IntArray
from ..data.imageset import ImageSet, Overlay
from ..data.store import new_overlay
from .trigger import SNAPSHOT, Trigger, stamp, stamp_crossed
from .truth import Truth


class Teaching(NamedTuple):
    """What an attack does to the training besides stamping, by name.

    Attributes:
        attack: name of the attack, or of the plan.
        arguments: its parameters that matter there.
        code: digests of the code that does it.
    """

    attack: str
    arguments: dict[str, Any]
    code: dict[str, str]


@dataclass(frozen=True)
class Poisoned:
    """A poisoned training set, not yet stamped.

    Attributes:
        truth: samples that are stamped, the trigger that stamps them and the labels they get.
        triggers: one trigger for each part of `truth`.
        teaching: what is done to the training besides stamping: by the attack, then by the plan that it is part of.
    """

    truth: Truth
    triggers: tuple[Trigger, ...]
    teaching: tuple[Teaching, ...] = ()

    def stamped(self, train: ImageSet, keys: IntArray) -> Images:
        """Training images as the trigger of each sample leaves them, uint8 [len(keys), h, w, c]."""
        images = train.gather(keys)
        for number, trigger in enumerate(self.triggers):
            # A trigger that optimised its images knows no others, so it may be asked for its own samples only.
            carriers, mask = self.truth.part[keys] == number, self.truth.mask[keys]
            covers = carriers & ~mask & trigger.crosses
            if covers.any():
                images[covers] = stamp_crossed(trigger, train, keys[covers], epoch=SNAPSHOT)
            if (same := carriers & ~covers).any():
                images[same] = stamp(trigger, images[same], keys[same], train=True)
        return images

    def received(self, train: ImageSet) -> ImageSet:
        """The training set as a victim receives it, in memory."""
        index, labels = self.truth.stamped, self.truth.labels_received(len(train.classes))
        overlay = Overlay(index, self.stamped(train, index), labels[index])
        # Without a digest: a set in memory is no artefact that assets could be kept for.
        return ImageSet(train.base, labels, train.classes, "", overlay)

    def write_overlay(self, folder: Path, train: ImageSet) -> None:
        """Write what a victim receives, as an overlay over the training set; it says nothing about an attack."""
        index, labels = self.truth.stamped, self.truth.labels_received(len(train.classes))
        with new_overlay(folder, train, index, labels[index], received=self.truth.received) as overlay:
            # A stretch at a time: memory holds a few MiB of images, whatever the size of the set.
            for keys in train.chunks(index):
                overlay.write(np.searchsorted(index, keys), self.stamped(train, keys))
