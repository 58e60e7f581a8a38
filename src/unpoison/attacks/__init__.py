"""Attacks that poison data: one file per published attack."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from ..core.hyperparameters import choose
from ..poisoning.trigger import Trigger, read_trigger
from . import (
    adaptive_blend,
    adaptive_patch,
    badnets,
    blended,
    ctrl,
    dfst,
    feature_collision,
    ftrojan,
    lc,
    lf,
    nashville,
    semantic,
    sig,
    ssba,
    tact,
    trojan,
)

ATTACKS: dict[str, ModuleType] = {
    "badnets": badnets,
    "blended": blended,
    "sig": sig,
    "trojan": trojan,
    "lc": lc,
    "lf": lf,
    "ssba": ssba,
    "nashville": nashville,
    "dfst": dfst,
    "feature_collision": feature_collision,
    "ctrl": ctrl,
    "ftrojan": ftrojan,
    "adaptive_blend": adaptive_blend,
    "adaptive_patch": adaptive_patch,
    "tact": tact,
    "semantic": semantic,
}


def load_trigger(folder: Path) -> tuple[str, Trigger]:
    """The attack's name, and the trigger that `save_trigger` wrote."""
    name, settings, arrays = read_trigger(folder)
    module: ModuleType = choose(name, ATTACKS, where=f"{folder / 'trigger.json'}: attack")
    return name, module.TRIGGER.restore(settings, arrays)
