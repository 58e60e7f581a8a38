"""The attacker's two artefacts: the triggers, for stamping the test split, and the needs of the hand in training.

They are kept apart so that a change of a parameter that only the test reads trains no network again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from ..core.errors import UserError, file_of
from ..core.files import new_folder
from ..core.manifest import Described, Manifest, Name, check_made_from, read_manifest, write_manifest
from ..data.store import Received
from .poisoned import Poisoned, Teaching
from .policy import Policy
from .trigger import DESCRIPTION as TRIGGER
from .trigger import Kept, Trigger, read_trigger, save_trigger
from .truth import Part, Truth, check_given, policy_of, read_marks, write_marks

TRIGGERS, TRAINING = "unpoison-triggers-1", "unpoison-attacker-1"
DESCRIPTION = "attacker.json"


class HeldManifest(Described):
    """A trigger as `attacker.json` has it: the folder that it lies in, and the policy that it serves."""

    name: Name
    policy: dict[str, Any]


class TriggersManifest(Manifest):
    """What `attacker.json` holds in the artefact of the triggers."""

    triggers: list[HeldManifest]


class TeachingManifest(Described):
    """What the attacker does to the training besides stamping, as `attacker.json` has it."""

    attack: Name
    arguments: dict[str, Any]
    code: dict[str, str]


class TrainingManifest(Manifest):
    """What `attacker.json` holds in the artefact of the hand in training; no parts where there is none."""

    parts: list[HeldManifest]
    attack: str = ""
    received: Received = "set"
    teaching: list[TeachingManifest] = Field(default_factory=list)


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
                about.append({"name": name, "policy": part.policy.described()})
        write_manifest(staging, DESCRIPTION, {"format": TRIGGERS, "triggers": about, "made_from": made_from})


def write_trained(folder: Path, poisoned: Poisoned | None, made_from: dict[str, str]) -> None:
    """Write those triggers that were trained with the victim, without what only the test needs; most attacks have none.

    Args:
        folder: place of the artefact.
        poisoned: truth and triggers as they are after the training; None: the attacker had no hand in it.
        made_from: digest by name of the poisoned set and the victim that they belong to.
    """
    with new_folder(folder) as staging:
        about: list[dict[str, Any]] = []
        if poisoned is not None:
            truth = poisoned.truth
            for name, part, trigger in zip(truth.names, truth.parts, poisoned.triggers, strict=True):
                if trigger.trained:
                    save_trigger(staging / name, part.attack, trigger, at_the_test=False)
                    about.append({"name": name, "policy": part.policy.described()})
        # Without a digest where there is none: another victim is then no other artefact.
        write_manifest(
            staging, DESCRIPTION, {"format": TRIGGERS, "triggers": about, "made_from": made_from if about else {}}
        )


def read_triggers(
    folder: Path, restore: Restore, *, trained: Path | None = None
) -> tuple[dict[str, Held], dict[str, str]]:
    """The triggers that `write_triggers` wrote, by name, and what they were made from: the victim too, where it trained one.

    Args:
        folder: place of the artefact.
        restore: function that makes triggers.
        trained: place of what `write_trained` wrote: those are in it as they are after the training; None: as before it.

    Raises:
        UserError: a file is missing, changed or of another format; the trained ones belong to another poisoned set, or one of
            them is not there.
    """
    about = read_manifest(folder, DESCRIPTION, TRIGGERS, TriggersManifest)
    final: set[str] = set()
    made_from = about.made_from
    if trained is not None:
        after = read_manifest(trained, DESCRIPTION, TRIGGERS, TriggersManifest)
        final = {entry.name for entry in after.triggers}
        if final:
            check_made_from(trained, DESCRIPTION, poisoned=made_from.get("poisoned", ""))
            made_from = made_from | after.made_from
    held = {}
    for number, entry in enumerate(about.triggers):
        trigger = _restored(folder, entry, restore, trained if entry.name in final else None)
        if trained is not None and trigger.trained and entry.name not in final:
            raise UserError(f"{trained}: without {entry.name}, which is trained with the victim; run the stage again")
        held[entry.name] = Held(_policy(folder, f"triggers.{number}", entry), trigger)
    return held, made_from


def write_training(folder: Path, poisoned: Poisoned | None, made_from: dict[str, str]) -> None:
    """Write the artefact of the hand in training: empty, unless the attacker has one.

    Args:
        folder: place of the artefact.
        poisoned: truth and triggers; None: nothing is known.
        made_from: digest by name of the poisoned set that they belong to.
    """
    with new_folder(folder) as staging:
        about: dict[str, Any] = {"format": TRAINING, "parts": [], "made_from": made_from}
        if poisoned is not None and poisoned.truth.in_training:
            # Arrays of the truth and not its folder: training must not depend on an artefact that only graders read.
            truth = poisoned.truth
            write_marks(staging, truth)
            # Without the fields of the test, so that changing one does not change this artefact.
            for name, part, trigger in zip(truth.names, truth.parts, poisoned.triggers, strict=True):
                save_trigger(staging / name, part.attack, trigger, at_the_test=False)
            named = zip(truth.names, truth.parts, strict=True)
            parts = [{"name": name, "policy": part.policy.described()} for name, part in named]
            about |= {"attack": truth.attack, "parts": parts}
            about |= {"received": truth.received, "teaching": [taught._asdict() for taught in poisoned.teaching]}
        write_manifest(staging, DESCRIPTION, about)


def read_training(folder: Path, restore: Callable[[], Restore], *, poisoned: str | None = None) -> Poisoned | None:
    """Truth and triggers that `write_training` wrote; None where nothing is stamped in training.

    Args:
        folder: place of the artefact.
        restore: function that returns the one that makes triggers; only called where there is a trigger, as it imports
            every attack.
        poisoned: digest of the poisoned set that it must belong to; None: any.

    Raises:
        UserError: a file is missing, changed or of another format, or belongs to another poisoned set.
    """
    about = read_manifest(folder, DESCRIPTION, TRAINING, TrainingManifest)
    if poisoned is not None:
        check_made_from(folder, DESCRIPTION, poisoned=poisoned)
    if not about.parts:
        return None
    marks = read_marks(folder, about, len(about.parts))
    attacks = [read_trigger(folder / entry.name).attack for entry in about.parts]
    # The attack's own arguments are not kept: the triggers hold all that stamping needs.
    parts = [
        Part(attack, _policy(folder, f"parts.{number}", entry), {})
        for number, (attack, entry) in enumerate(zip(attacks, about.parts, strict=True))
    ]
    check_given(folder / DESCRIPTION, parts, marks[-1])
    make = restore()
    triggers = tuple(_restored(folder, entry, make) for entry in about.parts)
    teaching = tuple(Teaching(**taught.model_dump()) for taught in about.teaching)
    return Poisoned(Truth(about.attack, tuple(parts), *marks, True, about.received), triggers, teaching)


def _policy(folder: Path, key: str, entry: HeldManifest) -> Policy:
    return policy_of(folder / DESCRIPTION, f"{key}.policy", entry.policy)


def _restored(folder: Path, entry: HeldManifest, restore: Restore, trained: Path | None = None) -> Trigger:
    """The trigger that lies in a folder of the artefact, with the values that it has in that of the trained ones."""
    place = folder / entry.name
    kept = read_trigger(place)
    if trained is not None:
        kept = Kept(kept.attack, kept.values | read_trigger(trained / entry.name).values)
    with file_of(place / TRIGGER):
        return restore(kept)
