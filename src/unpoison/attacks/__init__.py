"""Attacks that poison data: one file per published attack, with `make` (from parameters) and `restore` (from disk)."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from ..hyperparameters import choose
from . import badnets, blended
from .trigger import Trigger, read_trigger

ATTACKS: dict[str, ModuleType] = {
    "badnets": badnets,
    "blended": blended,
}


def load_trigger(folder: Path) -> Trigger:
    """The trigger that `save_trigger` wrote."""
    name, settings, arrays = read_trigger(folder)
    trigger: Trigger = choose(name, ATTACKS, where=f"{folder / 'trigger.json'}: attack").restore(settings, arrays)
    return trigger
