"""The ground truth of a poisoned set: kept apart from it, read by grading alone. It needs no trigger's or attack's code."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.arrays import IntArray, Mask
from ..core.files import check_file, load_array, new_folder, read_manifest, write_manifest
from .policy import Policy

FORMAT, DESCRIPTION = "unpoison-truth-3", "truth.json"


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
    """

    attack: str
    parts: tuple[Part, ...]
    mask: Mask
    part: NDArray[np.int8]
    labels: IntArray

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
        return self.policy.in_training

    @property
    def names(self) -> list[str]:
        """The triggers' names: the attack's name, or numbered names where there are several."""
        # Numbers tell two triggers of one attack apart.
        if len(self.parts) == 1:
            return [self.attack]
        return [f"{number}_{part.attack}" for number, part in enumerate(self.parts)]

    def labels_given(self, classes: int) -> IntArray:
        """The training labels after the attack: int64 [n]."""
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
            for name in ("mask", "part", "labels"):
                np.save(staging / f"{name}.npy", getattr(truth, name))
            # For people who read the file; the arrays alone are read again.
            counts = {
                "samples": len(truth.mask),
                "poisoned": int(truth.mask.sum()),
                "cover": int(truth.cover.sum()),
            }
            parts = [{**part._asdict(), "policy": asdict(part.policy)} for part in truth.parts]
            about |= {"attack": truth.attack, "parts": parts, "counts": counts, "snapshot": truth.in_training}
        write_manifest(staging, DESCRIPTION, about)


def read_truth(folder: Path) -> Truth | None:
    """The truth that `write_truth` wrote, or None where nothing is known.

    Raises:
        UserError: a file is missing, changed, or of another format.
    """
    about = read_manifest(folder, DESCRIPTION, FORMAT)
    if about["attack"] == "none":
        return None
    mask, part, labels = (load_array(check_file(folder, about, f"{name}.npy")) for name in ("mask", "part", "labels"))
    parts = [Part(entry["attack"], Policy(**entry["policy"]), entry["arguments"]) for entry in about["parts"]]
    return Truth(about["attack"], tuple(parts), mask, part, labels)
