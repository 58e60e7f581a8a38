"""The ground truth of a poisoned set: kept apart from it, read by the attacker's stage and by the grading alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.files import check_file, load_array, new_folder, read_json, write_manifest
from ..data.imageset import ImageSet
from ..errors import UserError
from . import load_trigger
from .policy import IntArray, Policy
from .trigger import Images, Trigger, save_trigger

DESCRIPTION = "truth.json"


@dataclass(frozen=True)
class Truth:
    """What the attacker knows.

    Attributes:
        attack: the attack's name.
        mask: bool [n], which training samples are poisoned.
        labels: int64 [n], the labels before the attack.
        policy: label policy and share.
        trigger: stamps an image at test time.
    """

    attack: str
    mask: NDArray[np.bool_]
    labels: IntArray
    policy: Policy
    trigger: Trigger

    def triggered(self, test: ImageSet, keys: IntArray | None = None) -> tuple[Images, IntArray, IntArray]:
        """Test samples, stamped; the attacker's labels for them; their true labels. All that ASR counts by default."""
        keys = np.flatnonzero(self.policy.attacked(test.labels)) if keys is None else keys
        true = test.labels[keys]
        return self.trigger(test.gather(keys), keys), self.policy.new_labels(true, len(test.classes)), true


def write_truth(folder: Path, truth: Truth | None) -> None:
    """Write the truth folder; `None` says that nothing is known (data of unknown origin)."""
    with new_folder(folder) as staging:
        about: dict[str, Any] = {"format": "unpoison-truth-1", "attack": "none"}
        if truth is not None:
            np.save(staging / "mask.npy", truth.mask)
            np.save(staging / "labels.npy", truth.labels)
            save_trigger(staging / "trigger", truth.attack, truth.trigger)
            counts = {"poisoned": int(truth.mask.sum()), "samples": len(truth.mask)}
            about = {**about, "attack": truth.attack, "policy": asdict(truth.policy), "counts": counts}
        write_manifest(staging, DESCRIPTION, about)


def read_truth(folder: Path) -> Truth | None:
    about = read_json(folder / DESCRIPTION)
    if about.get("format") != "unpoison-truth-1":
        raise UserError(f"{folder / DESCRIPTION}: format {about.get('format')!r} found, allowed: 'unpoison-truth-1'")
    if about["attack"] == "none":
        return None
    mask, labels = (load_array(check_file(folder, about, f"{name}.npy")) for name in ("mask", "labels"))
    return Truth(about["attack"], mask, labels, Policy(**about["policy"]), load_trigger(folder / "trigger"))
