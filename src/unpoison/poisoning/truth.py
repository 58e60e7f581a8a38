"""The ground truth of a poisoned set: kept apart from it, read by grading alone. It needs no trigger's or attack's code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..core.arrays import IntArray, Mask
from ..core.errors import UserError, file_of, keys_of
from ..core.files import new_folder
from ..core.hyperparameters import check
from ..core.manifest import Described, Manifest, check_file, check_made_from, read_manifest, write_manifest
from ..core.npy import load_array
from ..data.imageset import ImageSet
from ..data.store import Received
from .policy import Policy, check_classes

FORMAT, DESCRIPTION = "unpoison-truth-3", "truth.json"
MARKS = ("mask", "part", "labels", "given")
"""The arrays of a truth, each in a file of its name; the last one only where it is there."""


class PartManifest(Described):
    """A part as `truth.json` has it."""

    attack: str
    policy: dict[str, Any]
    arguments: dict[str, Any]


class TruthManifest(Manifest):
    """What `truth.json` holds; the parts and their counts where the attack is known."""

    attack: str
    parts: list[PartManifest] = Field(default_factory=list)
    counts: dict[str, int] = Field(default_factory=dict)
    snapshot: bool = False
    controlled: bool = False
    received: Received = "set"


class Part(NamedTuple):
    """One trigger's part in an attack.

    Attributes:
        attack: name of the trigger's attack.
        policy: samples and labels.
        arguments: the attack's own arguments.
    """

    attack: str
    policy: Policy
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Truth:
    """The record of an attack.

    Attributes:
        attack: name of the attack.
        parts: one part per trigger. Most attacks have one; `multi` has several.
        mask: poisoned training samples, bool [n]: stamped and with the label that the attacker wants.
        part: number of the trigger that stamped a sample, -1 for none, int8 [n]. Stamped samples that are not in `mask`
            are cover samples: their label is the true one.
        labels: labels before the attack, int64 [n].
        given: labels after the attack, int64 [n], where an attack chooses them sample by sample (`Trigger.labels`), or the
            policy is `complex`; None: poisoned samples have those of the policy.
        controlled: whether the attacker trains the model, and not only poisons what it is trained on.
        received: what the victim gets. Where that is a model, `mask` and `part` are of the images that the attacker stamps while he
            trains it.
    """

    attack: str
    parts: tuple[Part, ...]
    mask: Mask
    part: NDArray[np.int8]
    labels: IntArray
    given: IntArray | None = None
    controlled: bool = False
    received: Received = "set"

    @property
    def cover(self) -> Mask:
        """Training samples that are stamped and keep their label: bool [n]."""
        return (self.part >= 0) & ~self.mask

    @property
    def policy(self) -> Policy:
        """The first part's policy. All parts have the same label policy and the same way of stamping."""
        return self.parts[0].policy

    @property
    def in_training(self) -> bool:
        """Whether triggers are stamped while the victim trains: `mask` is then a snapshot, one draw or one view."""
        return self.controlled or self.policy.in_training

    @property
    def names(self) -> list[str]:
        """The triggers' names: the attack's name, or numbered names where there are several."""
        # Numbers tell two triggers of one attack apart.
        if len(self.parts) == 1:
            return [self.attack]
        return [f"{number}_{part.attack}" for number, part in enumerate(self.parts)]

    @property
    def stamped(self) -> IntArray:
        """The samples of the set that a victim receives which are stamped, poisoned and cover, sorted."""
        return np.flatnonzero((self.part >= 0) & (self.received != "model"))

    def labels_received(self, classes: int) -> IntArray:
        """The labels of the set that a victim receives: int64 [n]."""
        return self.labels if self.received == "model" else self.labels_given(classes)

    def labels_given(self, classes: int) -> IntArray:
        """The training labels after the attack: int64 [n]."""
        if self.given is not None:
            return self.given.copy()
        given = self.labels.copy()
        for number, part in enumerate(self.parts):
            # Covers are stamped as well, but outside the mask: they keep their label.
            poisoned = self.mask & (self.part == number)
            if part.policy.label_policy != "clean_label":
                given[poisoned] = part.policy.new_labels(self.labels[poisoned], classes)
        return given


def write_truth(folder: Path, truth: Truth | None, made_from: dict[str, str] | None = None) -> None:
    """Write the truth folder.

    Args:
        folder: place of the artefact.
        truth: record to write; None: nothing is known (data of unknown origin).
        made_from: digest by name of the poisoned set that it belongs to.
    """
    with new_folder(folder) as staging:
        about: dict[str, Any] = {"format": FORMAT, "attack": "none", "made_from": made_from or {}}
        # Data of unknown origin have a truth folder too, which says so, so that stages need no case of their own.
        if truth is not None:
            write_marks(staging, truth)
            # For people who read the file; the arrays alone are read again.
            counts = {
                "samples": len(truth.mask),
                "poisoned": int(truth.mask.sum()),
                "cover": int(truth.cover.sum()),
            }
            parts = [{**part._asdict(), "policy": part.policy.described()} for part in truth.parts]
            about |= {"attack": truth.attack, "parts": parts, "counts": counts, "snapshot": truth.in_training}
            about |= {"controlled": truth.controlled, "received": truth.received}
        write_manifest(staging, DESCRIPTION, about)


def read_truth(folder: Path, *, poisoned: ImageSet | None = None, classes: int | None = None) -> Truth | None:
    """The truth that `write_truth` wrote, or None where nothing is known.

    Args:
        folder: folder of the artefact.
        poisoned: poisoned set that it must belong to; None: any.
        classes: number of classes of the data set, where the poisoned set is not at hand; None: any.

    Raises:
        UserError: a file is missing, changed, or of another format; arrays that contradict each other or the description;
            the truth of another poisoned set.
    """
    path = folder / DESCRIPTION
    about = read_manifest(folder, DESCRIPTION, FORMAT, TruthManifest)
    if poisoned is not None:
        check_made_from(folder, DESCRIPTION, poisoned=poisoned.digest)
        classes = len(poisoned.classes)
    if about.attack == "none":
        return None
    parts = []
    for number, entry in enumerate(about.parts):
        policy = policy_of(path, f"parts.{number}.policy", entry.policy, classes)
        parts.append(Part(entry.attack, policy, entry.arguments))
    marks = read_marks(folder, about, len(parts))
    check_given(path, parts, marks[-1])
    truth = Truth(about.attack, tuple(parts), *marks, about.controlled, about.received)
    # Written for people who read the file, and so a second opinion on the arrays.
    counts = {"samples": len(truth.mask), "poisoned": int(truth.mask.sum()), "cover": int(truth.cover.sum())}
    if about.counts != counts or about.snapshot != truth.in_training:
        raise UserError(f"{path}: counts {about.counts}"[:300] + f", the arrays say {counts}; run the stage again")
    # What the victim received says the same once more: its labels, and which samples have another image.
    if poisoned is not None and not (
        np.array_equal(truth.labels_received(len(poisoned.classes)), poisoned.labels)
        and (poisoned.overlay is None or np.array_equal(truth.stamped, poisoned.overlay.index))
    ):
        raise UserError(f"{folder}: not the samples and labels of the present poisoned set; run the stage again")
    return truth


def write_marks(folder: Path, truth: Truth) -> None:
    """Write the arrays of a truth, a file each; the given labels where the attack chose them."""
    for name in MARKS:
        if (values := getattr(truth, name)) is not None:
            np.save(folder / f"{name}.npy", values)


def read_marks(folder: Path, about: Manifest, parts: int) -> tuple[Mask, NDArray[np.int8], IntArray, IntArray | None]:
    """The arrays of a truth: poisoned samples, their triggers' numbers, their labels before the attack, and the given ones.

    Raises:
        UserError: a file is missing or changed; arrays of other types or lengths; numbers of triggers or labels that do
            not exist; a given label that differs from the true one where nothing is poisoned.
    """
    if not parts:
        raise UserError(f"{folder}: no trigger is described, allowed: one for each part of the attack")
    mask: Mask = load_array(check_file(folder, about, "mask.npy"), np.bool_, ("n",))
    size = (len(mask),)
    part: NDArray[np.int8] = load_array(check_file(folder, about, "part.npy"), np.int8, size)
    labels: IntArray = load_array(check_file(folder, about, "labels.npy"), np.int64, size)
    if ((part < -1) | (part >= parts) | (mask & (part < 0))).any():
        raise UserError(
            f"{folder / 'part.npy'}: allowed: 0 to {parts - 1}, the number of the trigger, for stamped samples, which all "
            "poisoned ones are, and -1 for others"
        )
    if (labels < 0).any():
        raise UserError(f"{folder / 'labels.npy'}: {labels.min()} found, allowed: labels from 0")
    given: IntArray | None = None
    if "given.npy" in about.files:
        given = load_array(check_file(folder, about, "given.npy"), np.int64, size)
        if (given < 0).any() or ((given != labels) & ~mask).any():
            raise UserError(
                f"{folder / 'given.npy'}: allowed: labels from 0, and the true ones of samples that are not poisoned"
            )
    return mask, part, labels, given


def check_given(path: Path, parts: Sequence[Part], given: IntArray | None) -> None:
    """Raises UserError where a policy gives each sample a label of its own, and none are kept beside the description at `path`."""
    if given is None and any(part.policy.label_policy == "complex" for part in parts):
        raise UserError(
            f"{path}: label_policy: complex found without given.npy, allowed: with the label of each sample"
        )


def policy_of(path: Path, key: str, values: dict[str, Any], classes: int | None = None) -> Policy:
    """The policy that a description holds under `key`. Raises UserError for what is none, or none for as many classes."""
    with file_of(path), keys_of(key):
        policy = Policy(**check(values, Policy))
        if classes is not None:
            check_classes(policy, classes)
        return policy
