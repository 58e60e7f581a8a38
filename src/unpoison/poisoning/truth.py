"""The ground truth of a poisoned set: kept apart from it, read by the attacker's stages and by the grading alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..attacks import load_trigger
from ..core.errors import UserError
from ..core.files import check_file, load_array, new_folder, read_json, write_manifest
from ..data.imageset import ImageSet
from .policy import IntArray, Policy
from .trigger import Images, Trigger, save_trigger, stamp

DESCRIPTION = "truth.json"


class Part(NamedTuple):
    """A trigger, the attack it is of, and its policy. Most attacks have one part; `multi` has several."""

    attack: str
    policy: Policy
    trigger: Trigger


class Triggered(NamedTuple):
    """Some test images before and after a trigger, uint8 [n, h, w, c]; the attacker's labels and the true ones [n]."""

    clean: Images
    images: Images
    wanted: IntArray
    true: IntArray


@dataclass(frozen=True)
class Truth:
    """What the attacker knows.

    Attributes:
        attack: the attack's name.
        parts: its triggers.
        mask: bool [n], which training samples are poisoned: stamped and with the label the attacker wants.
        part: int8 [n], the number of the trigger that stamped a sample, -1 for none. Stamped samples that are not in
            `mask` are cover samples: their label is the true one.
        labels: int64 [n], the labels before the attack.
    """

    attack: str
    parts: tuple[Part, ...]
    mask: NDArray[np.bool_]
    part: NDArray[np.int8]
    labels: IntArray

    @property
    def cover(self) -> NDArray[np.bool_]:
        """Which training samples are stamped and keep their label: bool [n]."""
        return (self.part >= 0) & ~self.mask

    @property
    def policy(self) -> Policy:
        """The first part's policy: all parts have the same, but for the target."""
        return self.parts[0].policy

    @property
    def in_training(self) -> bool:
        """Whether triggers are stamped while the victim trains: `mask` is then a snapshot, one draw or one view."""
        return self.policy.in_training

    def labels_given(self, classes: int) -> IntArray:
        """The training labels after the attack: int64 [n]."""
        given = self.labels.copy()
        for number, part in enumerate(self.parts):
            mine = self.mask & (self.part == number)
            if part.policy.label_policy != "clean_label":
                given[mine] = part.policy.new_labels(self.labels[mine], classes)
        return given

    def stamped(self, train: ImageSet, keys: IntArray) -> Images:
        """Training images as the trigger of each sample leaves them, uint8 [len(keys), h, w, c]."""
        images = train.gather(keys)
        for number, part in enumerate(self.parts):
            mine = self.part[keys] == number
            if mine.any():
                images[mine] = stamp(part.trigger, images[mine], keys[mine], train=True)
        return images

    def attacked(self, test: ImageSet, part: Part) -> IntArray:
        """The test samples that ASR counts for a part, sorted."""
        keys = np.flatnonzero(part.policy.attacked(test.labels))
        return keys[part.trigger.carried_by(test, keys)]

    def triggered(self, test: ImageSet, part: Part) -> Iterator[Triggered]:
        """All that ASR counts for a part, a stretch at a time; nothing where no test image can carry the trigger."""
        for some in test.chunks(self.attacked(test, part)):
            clean, true = test.gather(some), test.labels[some]
            wanted = part.policy.new_labels(true, len(test.classes))
            yield Triggered(clean, stamp(part.trigger, clean, some, train=False), wanted, true)


def write_truth(folder: Path, truth: Truth | None) -> None:
    """Write the truth folder; `None` says that nothing is known (data of unknown origin)."""
    with new_folder(folder) as staging:
        about: dict[str, Any] = {"format": "unpoison-truth-2", "attack": "none"}
        if truth is not None:
            for name in ("mask", "part", "labels"):
                np.save(staging / f"{name}.npy", getattr(truth, name))
            for number, part in enumerate(truth.parts):
                save_trigger(staging / f"trigger-{number}", part.attack, part.trigger)
            counts = {
                "samples": len(truth.mask),
                "poisoned": int(truth.mask.sum()),
                "cover": int(truth.cover.sum()),
            }
            policies = [asdict(part.policy) for part in truth.parts]
            about |= {"attack": truth.attack, "policies": policies, "counts": counts, "snapshot": truth.in_training}
        write_manifest(staging, DESCRIPTION, about)


def read_truth(folder: Path) -> Truth | None:
    """The truth that `write_truth` wrote.

    Raises:
        UserError: a file is missing, changed, or of another format.
    """
    about = read_json(folder / DESCRIPTION)
    if about.get("format") != "unpoison-truth-2":
        raise UserError(f"{folder / DESCRIPTION}: format {about.get('format')!r} found, allowed: 'unpoison-truth-2'")
    if about["attack"] == "none":
        return None
    mask, part, labels = (load_array(check_file(folder, about, f"{name}.npy")) for name in ("mask", "part", "labels"))
    parts = []
    for number, policy in enumerate(about["policies"]):
        attack, trigger = load_trigger(folder / f"trigger-{number}")
        parts.append(Part(attack, Policy(**policy), trigger))
    return Truth(about["attack"], tuple(parts), mask, part, labels)
