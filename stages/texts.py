"""Which parts of the pipeline work on texts: what there is for images alone, or for texts alone, is refused in one line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import detect
import federated
import poison
import prepare
import purifying
import stress_settings
import visualise
from by_artefact import artefacts_of
from parameters import FAMILIES, PARAMS, Params, methods_of, own_parameters, with_variations
from robust_methods import robust_of
from training import fresh_model, network_of, recipe_of
from unpoison.attacks import SINGLE
from unpoison.core.errors import UserError, file_of, keys_of
from unpoison.data.imageset import ImageSet
from unpoison.data.texts import CHANNELS, SPECIAL
from unpoison.detection import DETECTORS
from unpoison.models import TEXT_NETWORKS
from unpoison.models.words import vectors_of
from unpoison.purification import PURIFIERS
from unpoison.sources.texts import TextSettings
from unpoison.training.privacy import PrivateRecipe


def check_kind(params: Params, data: prepare.Settings) -> None:
    """Raises UserError for the first part of a run that does not work on what `data.name` gives, texts or images."""
    if data.name == "text":
        _check_file(data)
        _check_for_images(params, data)
        _check_network(params, data)
    elif (name := network_of(params)["name"]) in TEXT_NETWORKS:
        raise _refused("model.name", name, "of images: a network for images")
    texts = data.name == "text"
    for wanted in poison.settings(params).intents:
        if not (wanted.method.texts if texts else wanted.method.images):
            raise _refused("attack.name", wanted.attack, _allowed(texts, {"none": True, **_attacks(texts)}))
    methods = {name: detector.texts if texts else detector.images for name, detector in DETECTORS.items()}
    _check_list("detect.methods", methods_of(params, "detect", DETECTORS), methods, texts)
    inputs = {name: fits for name, fits in methods.items() if DETECTORS[name].single_inputs}
    _check_list("detect.inputs", detect.settings(params).inputs, inputs, texts)


def _check_file(data: prepare.Settings) -> None:
    path = Path(data.path)
    if path.exists() and not path.is_file():
        raise _refused("data.path", data.path, "with data.name text: a CSV file")
    if data.image_size is not None:
        raise _refused("data.image_size", data.image_size, "with data.name text: null")
    if data.reserve_from == "other":
        raise _refused("data.reserve_from", data.reserve_from, "with data.name text: held_out, train")


def _check_for_images(params: Params, data: prepare.Settings) -> None:
    """Refuse what works on images alone, or was not made to work on texts."""
    given, recipe = detect.settings(params), recipe_of(params, "train")
    nothing: dict[str, tuple[Any, str]] = {
        "received": (params.get("received"), "null"),
        "train.privacy": ("a block" if isinstance(recipe, PrivateRecipe) else None, "null"),
        "train.federation": (None if federated.federation_of(params) is None else "a block", "null"),
        "robust": (robust_of(params), "no methods: [], {}"),
        "purify.by": (artefacts_of(params, "purify", purifying.BY_ARTEFACT), "{}"),
        "stress.methods": (stress_settings.settings(params).methods, "[]"),
        "detect.models": (given.models, "[]"),
        "detect.canary": (given.canary, "[]"),
        "visualise.figures": (visualise.settings(params).figures, "[]"),
    }
    if with_variations(params):
        raise _refused("variations.enabled", "true", "with data.name text: false")
    for key, (value, allowed) in nothing.items():
        if value:
            raise _refused(key, value, f"with data.name text: {allowed}")
    tuned = methods_of(params, "purify", PURIFIERS)
    _check_list("purify.methods", tuned, {name: method.texts for name, method in PURIFIERS.items()}, True)
    for name in tuned:
        own = own_parameters(params, "purifiers", name, PURIFIERS[name].parameters)
        if own.get("augment"):
            raise UserError(
                f"{FAMILIES['purifiers']}: {name}.augment: {own['augment']} given, allowed with data.name text: []"
            )
    for wanted in poison.settings(params).intents:
        if wanted.around is not None:
            raise _refused("attack.name", wanted.around.plan, "with data.name text: attacks that poison data alone")
        if wanted.policy.in_training:
            raise _refused("attack.poison_first", "false", "with data.name text: true, and random_poisoning: false")
    if recipe.augment or recipe.whiten:
        key, value = ("augment", list(recipe.augment)) if recipe.augment else ("whiten", "true")
        raise _refused(f"train.{key}", value, "with data.name text: none, as with train.recipe: text")


def _check_network(params: Params, data: prepare.Settings) -> None:
    """Build the network once, which shows what does not fit, before any text is read."""
    network, settings = network_of(params), TextSettings(**data.text)
    if network["name"] not in TEXT_NETWORKS:
        raise _refused("model.name", network["name"], f"with data.name text: {', '.join(TEXT_NETWORKS)}")
    blank = np.zeros((1, 1, settings.length, CHANNELS), np.uint8)
    with file_of(PARAMS), keys_of("model"):
        # The words of the data set are not known yet.
        few = (*SPECIAL, *settings.words)
        model = fresh_model(network, ImageSet(blank, np.zeros(1, np.int64), ("a", "b")), seed=0, vocabulary=few)
    # Of words that the network has no vector of, every one would be the unknown one.
    words = vectors_of(model)
    if words is not None and words < settings.vocabulary:
        raise _refused("model.tokens", words, f"with data.text.vocabulary {settings.vocabulary}: at least as many")


def _attacks(texts: bool) -> dict[str, bool]:
    return {name: method.texts if texts else method.images for name, method in SINGLE.items()}


def _check_list(key: str, given: list[str], fits: Mapping[str, bool], texts: bool) -> None:
    for name in given:
        if not fits[name]:
            raise _refused(key, name, _allowed(texts, fits))


def _allowed(texts: bool, fits: Mapping[str, bool]) -> str:
    kind = "with data.name text" if texts else "of images"
    return f"{kind}: {', '.join(name for name, fit in fits.items() if fit) or 'none'}"


def _refused(key: str, given: Any, allowed: str) -> UserError:
    return UserError(f"{PARAMS}: {key}: {given} given, allowed {allowed}")
