"""Triggered test images as an artefact: for each trigger an overlay over the test split, stamped once and read by all.

Grading a model takes these images and the labels that the attacker wants; no trigger and no attack's code is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field

from ..core.arrays import Images, IntArray
from ..core.errors import UserError, keys_of
from ..core.files import new_folder
from ..core.manifest import Manifest, Name, read_manifest, write_manifest
from ..data.imageset import ImageSet, Overlay
from ..data.store import Attributes, new_overlay, open_overlay
from .attacker import Held
from .policy import Policy, own_labels
from .trigger import AT_THE_TEST, Trigger, stamp, stamp_crossed

FORMAT, DESCRIPTION, CROSSED = "unpoison-triggered-1", "triggered.json", "crossed"


class TriggeredManifest(Manifest):
    """What `triggered.json` holds: the names of the triggers, each a folder; those with crossed images have one in `crossed`."""

    triggers: list[Name]
    crossed: list[Name] = Field(default_factory=list)


@dataclass(frozen=True)
class Triggered:
    """The test images that ASR counts for one trigger.

    Attributes:
        test: clean test split.
        overlay: sorted `index` of those images, the images with the trigger, and the labels that the attacker wants.
        crossed: the same images stamped as cover samples are (`Trigger.cross`), with their true labels; None where the attack
            stamps covers as it does poison.
    """

    test: ImageSet
    overlay: Overlay
    crossed: Overlay | None = None

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

    def crossed_chunks(self) -> Iterator[ImageSet]:
        """The crossed images with their true labels, in stretches; none where there are none."""
        if self.crossed is not None:
            for rows in self.test.chunks(np.arange(len(self))):
                yield ImageSet(self.crossed.images[rows], self.crossed.labels[rows], self.test.classes)


def attacked(test: ImageSet, policy: Policy, trigger: Trigger, own: IntArray | None = None) -> IntArray:
    """The test samples that ASR counts, sorted: those that the policy attacks and that can carry the trigger.

    Args:
        test: clean test split.
        policy, trigger: the attacker's.
        own: labels that the samples bring with them, as `policy.own_labels` gives them.
    """
    # Before the policy is looked at: even with no sample to stamp, a trigger kept for training is the wrong one here.
    trigger.check_complete()
    keys = np.flatnonzero(policy.attacked(test.labels, own))
    return keys[trigger.carried_by(test, keys)]


def _aimed(
    test: ImageSet, policy: Policy, trigger: Trigger, attributes: Attributes | None
) -> tuple[IntArray, IntArray]:
    """The test samples that ASR counts, sorted, and the labels that the attacker wants for them: int64 [k] each."""
    own = own_labels(policy, attributes, len(test.classes))
    index = attacked(test, policy, trigger, own)
    return index, policy.new_labels(test.labels[index], len(test.classes), None if own is None else own[index])


def triggered_of(test: ImageSet, policy: Policy, trigger: Trigger, attributes: Attributes | None = None) -> Triggered:
    """The triggered images of one trigger in memory, without an artefact; arguments as for `write_triggered`."""
    index, labels = _aimed(test, policy, trigger, attributes)
    crossed = None
    if trigger.crosses:
        crossed = Overlay(index, stamp_crossed(trigger, test, index, epoch=AT_THE_TEST), test.labels[index])
    return Triggered(test, Overlay(index, stamp(trigger, test.gather(index), index, train=False), labels), crossed)


def write_triggered(
    folder: Path,
    test: ImageSet,
    attacker: Mapping[str, Held],
    made_from: dict[str, str],
    attributes: Attributes | None = None,
) -> dict[str, int]:
    """Stamp the test split: a folder per trigger, by name; none for data of unknown origin.

    Args:
        folder: place of the artefact.
        test: clean test split.
        attacker: policy and trigger by the trigger's name.
        made_from: digest by name of the poisoned set that the triggers belong to.
        attributes: attributes of the test samples; None: there are none, and no policy may ask for them.

    Returns:
        Number of images that carry each trigger, by its name.
    """
    counts = {}
    with new_folder(folder) as staging:
        for name, (policy, trigger) in attacker.items():
            with keys_of(name):
                index, labels = _aimed(test, policy, trigger, attributes)
            with new_overlay(staging / name, test, index, labels, split="test") as overlay:
                # Row of the overlay and key of the sample differ: what a stamp depends on is the sample's place in the split.
                for keys in test.chunks(index):
                    stamped = stamp(trigger, test.gather(keys), keys, train=False)
                    overlay.write(np.searchsorted(index, keys), stamped)
            if trigger.crosses:
                with new_overlay(staging / CROSSED / name, test, index, test.labels[index], split="test") as overlay:
                    for keys in test.chunks(index):
                        rows = np.searchsorted(index, keys)
                        overlay.write(rows, stamp_crossed(trigger, test, keys, epoch=AT_THE_TEST))
            counts[name] = len(index)
        crossed = [name for name, (_, trigger) in attacker.items() if trigger.crosses]
        about = {"format": FORMAT, "triggers": list(attacker), "made_from": made_from}
        about |= {"crossed": crossed} if crossed else {}
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
    if unknown := sorted(set(about.crossed) - set(about.triggers)):
        raise UserError(f"{folder / DESCRIPTION}: crossed: {unknown[0]} given, allowed: names of its triggers")
    found = {}
    for name in about.triggers:
        test, overlay = open_overlay(base, "test", folder / name)
        crossed = None
        if name in about.crossed:
            crossed = open_overlay(base, "test", folder / CROSSED / name)[1]
            if not (
                np.array_equal(crossed.index, overlay.index)
                and np.array_equal(crossed.labels, test.labels[crossed.index])
            ):
                raise UserError(
                    f"{folder / CROSSED / name}: not the triggered images with their true labels; run the stage again"
                )
        found[name] = Triggered(test, overlay, crossed)
    return found
