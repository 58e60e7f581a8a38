"""What an attacker keeps: his triggers, for the stamping of the test, and apart from them what his hand in training needs.

The two are artefacts of their own, so that a parameter of the test alone trains nothing again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..core.files import check_file, load_array, new_folder, read_manifest, write_manifest
from .poisoned import Poisoned
from .policy import Policy
from .trigger import Kept, Trigger, read_trigger, save_trigger
from .truth import Part, Truth

TRIGGERS, TRAINING = "unpoison-triggers-1", "unpoison-attacker-1"
DESCRIPTION = "attacker.json"

Restore = Callable[[Kept], Trigger]
"""`attacks.restored`: this folder knows no attack."""


class Held(NamedTuple):
    """A trigger and the policy it serves."""

    policy: Policy
    trigger: Trigger


def write_triggers(folder: Path, poisoned: Poisoned | None, made_from: dict[str, str]) -> None:
    """The final triggers by name, whole; none for data of unknown origin.

    Args:
        made_from: name to digest, of the poisoned set that they belong to.
    """
    with new_folder(folder) as staging:
        about: list[dict[str, Any]] = []
        if poisoned is not None:
            truth = poisoned.truth
            for name, part, trigger in zip(truth.names, truth.parts, poisoned.triggers, strict=True):
                save_trigger(staging / name, part.attack, trigger)
                about.append({"name": name, "policy": asdict(part.policy)})
        write_manifest(staging, DESCRIPTION, {"format": TRIGGERS, "triggers": about, "made_from": made_from})


def read_triggers(folder: Path, restore: Restore) -> tuple[dict[str, Held], dict[str, str]]:
    """What `write_triggers` wrote. Raises UserError for a file that is missing, changed or of another format."""
    about = read_manifest(folder, DESCRIPTION, TRIGGERS)
    held = {
        part["name"]: Held(Policy(**part["policy"]), restore(read_trigger(folder / part["name"])))
        for part in about["triggers"]
    }
    return held, about["made_from"]


def write_training(folder: Path, poisoned: Poisoned | None) -> None:
    """What the hand in training needs: nothing, unless triggers are stamped while the victim trains."""
    with new_folder(folder) as staging:
        about: dict[str, Any] = {"format": TRAINING, "parts": []}
        if poisoned is not None and poisoned.truth.in_training:
            truth = poisoned.truth
            for name in ("mask", "part", "labels"):
                np.save(staging / f"{name}.npy", getattr(truth, name))
            for name, part, trigger in zip(truth.names, truth.parts, poisoned.triggers, strict=True):
                save_trigger(staging / name, part.attack, trigger, at_the_test=False)
            parts = [{"name": n, "policy": asdict(p.policy)} for n, p in zip(truth.names, truth.parts, strict=True)]
            about |= {"attack": truth.attack, "parts": parts}
        write_manifest(staging, DESCRIPTION, about)


def read_training(folder: Path, restore: Callable[[], Restore]) -> Poisoned | None:
    """What `write_training` wrote; None where nothing is stamped in training.

    Args:
        restore: gives the function that makes triggers; only called where there is one, as it imports every attack.
    """
    about = read_manifest(folder, DESCRIPTION, TRAINING)
    if not about["parts"]:
        return None
    mask, number_of, labels = (
        load_array(check_file(folder, about, f"{name}.npy")) for name in ("mask", "part", "labels")
    )
    kept = [read_trigger(folder / part["name"]) for part in about["parts"]]
    parts = [Part(one.attack, Policy(**part["policy"]), {}) for one, part in zip(kept, about["parts"], strict=True)]
    truth = Truth(about["attack"], tuple(parts), mask, number_of, labels)
    return Poisoned(truth, tuple(map(restore(), kept)))
