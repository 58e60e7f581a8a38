"""Check the whole of `params.yaml` before any stage touches an output."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import detect
import distill_student
import generate_variations
import poison
import prepare
import purify
import report
import train_backdoored
import train_prior
from common import PARAMS, Params, leave, load_params, method_arguments, section, seed_of
from unpoison.attacks import ATTACKS, multi
from unpoison.core.errors import UserError
from unpoison.crafting.assets import AssetStore
from unpoison.crafting.craft import choose
from unpoison.data.imageset import ImageSet
from unpoison.poisoning.policy import check_classes
from unpoison.sources import digits

SECTIONS = ("seed", "data", "attack", "model", "train", "prior", "variations", "distill", "purify", "detect", "report")


def check_all(params: Params) -> None:
    """Raises UserError for the first thing that would stop a stage."""
    for name in params:
        if name not in SECTIONS:
            raise UserError(f"{PARAMS}: {name}: unknown key, allowed: {', '.join(SECTIONS)}")
    seed = seed_of(params)
    data = prepare.settings(params)
    if data.name == "digits":
        for split, size in data.digits_sizes.items():
            if 0 < size < len(digits.CLASSES):
                raise UserError(f"{PARAMS}: data.{split}: {size} given, allowed: 0 or at least 10, one per class")
    elif data.name in ("folder", "imagenet") and not Path(data.path).exists():
        raise UserError(f"{PARAMS}: data.path: {data.path!r} given, which does not exist; allowed: a folder or archive")
    _check_attack(params, data, seed)
    for stage in (train_backdoored, train_prior, generate_variations, distill_student, report):
        stage.settings(params)
    strength, most = generate_variations.settings(params).strength, train_prior.settings(params).max_strength
    if strength > most:
        raise UserError(f"{PARAMS}: variations.strength: {strength} given, allowed: up to prior.max_strength {most}")
    _check_methods(params, "purify", purify.PURIFIERS)
    _check_methods(params, "detect", detect.DETECTORS)
    if section(params, "purify")["methods"] and not data.reserve:
        raise UserError(f"{PARAMS}: data.reserve: 0 given, allowed: at least 10, purify.methods needs it")
    overlays = section(params, "detect").get("strip", {}).get("overlays", 0)
    if "strip" in section(params, "detect")["methods"] and overlays > data.reserve:
        raise UserError(
            f"{PARAMS}: detect.strip.overlays: {overlays} given, allowed: 1 to {data.reserve}, data.reserve"
        )
    if not data.public:
        raise UserError(f"{PARAMS}: data.public: 0 given, allowed: at least 10, the prior is trained on it")


def _check_attack(params: Params, data: prepare.Settings, seed: int) -> None:
    """The attack as far as it can be checked before the data are read: in full for the digits, whose shape is known."""
    for attack, module in ATTACKS.items():
        poison.checked(params, f"attack.{attack}", module.make)
    poison.checked(params, "attack.multi", multi.options)
    chosen = poison.settings(params)
    if data.name != "digits":
        return
    labels = np.arange(data.digits_sizes["train"]) % len(digits.CLASSES)
    blank = np.broadcast_to(np.zeros((), np.uint8), (len(labels), digits.SIDE, digits.SIDE, 3))
    scene = chosen.scene(ImageSet(blank, labels, digits.CLASSES), seed, AssetStore(None))
    for wanted in chosen.intents:
        where = f"{poison.WHERE}.{wanted.attack}"
        check_classes(wanted.policy, len(digits.CLASSES), where=poison.WHERE)
        if not ATTACKS[wanted.attack].ASSETS:
            ATTACKS[wanted.attack].make(replace(scene, target=wanted.policy.target, where=where), **wanted.arguments)
    choose(chosen.intents, [None] * len(chosen.intents), labels, len(digits.CLASSES), seed=seed, where=poison.WHERE)


def _check_methods(params: Params, family: str, methods: Mapping[str, Callable[..., Any]]) -> None:
    """The list of methods, and every method's block, used or not."""
    block = section(params, family)
    chosen = block.pop("methods", None)
    if not isinstance(chosen, list) or not chosen or len(set(map(str, chosen))) != len(chosen):
        raise UserError(f"{PARAMS}: {family}.methods: {chosen!r} given, allowed: a list out of {', '.join(methods)}")
    for method in [*chosen, *block]:
        if method not in methods:
            where = f"{family}.methods" if method in chosen else f"{family}.{method}"
            raise UserError(f"{PARAMS}: {where}: {method!r} given, allowed: {', '.join(methods)}")
        method_arguments(params, family, method, methods)


if __name__ == "__main__":
    try:
        check_all(load_params())
    except UserError as error:
        sys.exit(f"error: {error}")
    leave()
