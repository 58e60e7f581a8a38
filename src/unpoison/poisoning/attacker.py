"""The attacker's two artefacts: the triggers, for stamping the test split, and the needs of the hand in training.

They are kept apart so that a change of a parameter that only the test reads trains no network again.
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
"""The type of `attacks.restored`, which is passed in, as this folder knows no attack."""


class Held(NamedTuple):
    """A trigger and the policy that it serves."""

    policy: Policy
    trigger: Trigger


def write_triggers(folder: Path, poisoned: Poisoned | None, made_from: dict[str, str]) -> None:
    """Write the final triggers by name, whole; none for data of unknown origin.

    Args:
        folder: place of the artefact.
        poisoned: truth and triggers; None: nothing is known.
        made_from: digest by name of the poisoned set that they belong to.
    """
    with new_folder(folder) as staging:
        about: list[dict[str, Any]] = []
        if poisoned is not None:
            truth = poisoned.truth
            for name, part, trigger in zip(truth.names, truth.parts, poisoned.triggers, strict=True):
                save_trigger(staging / name, part.attack, trigger)
                # The policy says which test samples are attacked, and what label is asked for.
                about.append({"name": name, "policy": asdict(part.policy)})
        write_manifest(staging, DESCRIPTION, {"format": TRIGGERS, "triggers": about, "made_from": made_from})


def read_triggers(folder: Path, restore: Restore) -> tuple[dict[str, Held], dict[str, str]]:
    """The triggers that `write_triggers` wrote, by name, and what they were made from.

    Raises:
        UserError: a file is missing, changed or of another format.
    """
    about = read_manifest(folder, DESCRIPTION, TRIGGERS)
    held = {
        part["name"]: Held(Policy(**part["policy"]), restore(read_trigger(folder / part["name"])))
        for part in about["triggers"]
    }
    return held, about["made_from"]


def write_training(folder: Path, poisoned: Poisoned | None) -> None:
    """Write the artefact of the hand in training: empty, unless triggers are stamped while the victim trains."""
    with new_folder(folder) as staging:
        about: dict[str, Any] = {"format": TRAINING, "parts": []}
        if poisoned is not None and poisoned.truth.in_training:
            # Arrays of the truth and not its folder: training must not depend on an artefact that only graders read.
            truth = poisoned.truth
            for name in ("mask", "part", "labels"):
                np.save(staging / f"{name}.npy", getattr(truth, name))
            # Without the fields of the test, so that changing one does not change this artefact.
            for name, part, trigger in zip(truth.names, truth.parts, poisoned.triggers, strict=True):
                save_trigger(staging / name, part.attack, trigger, at_the_test=False)
            named = zip(truth.names, truth.parts, strict=True)
            parts = [{"name": name, "policy": asdict(part.policy)} for name, part in named]
            about |= {"attack": truth.attack, "parts": parts}
        write_manifest(staging, DESCRIPTION, about)


def read_training(folder: Path, restore: Callable[[], Restore]) -> Poisoned | None:
    """Truth and triggers that `write_training` wrote; None where nothing is stamped in training.

    Args:
        folder: place of the artefact.
        restore: function that returns the one that makes triggers; only called where there is a trigger, as it imports
            every attack.
    """
    about = read_manifest(folder, DESCRIPTION, TRAINING)
    if not about["parts"]:
        return None
    mask, number_of, labels = (
        load_array(check_file(folder, about, f"{name}.npy")) for name in ("mask", "part", "labels")
    )
    kept = [read_trigger(folder / part["name"]) for part in about["parts"]]
    # The attack's own arguments are not kept: the triggers hold all that stamping needs.
    pairs = zip(kept, about["parts"], strict=True)
    parts = [Part(description.attack, Policy(**part["policy"]), {}) for description, part in pairs]
    truth = Truth(about["attack"], tuple(parts), mask, number_of, labels)
    return Poisoned(truth, tuple(map(restore(), kept)))
