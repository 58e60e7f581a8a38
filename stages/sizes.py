"""What follows from the images' size and number where they are known before the images are read."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from common import BACKDOORED

import numpy as np

from parameters import FAMILIES, PARAMS, Params, own_parameters, with_variations
from prepare import MADE, Settings
from purifying import purified_of
from received import received_of, victim_network_of
from robust_methods import robust_of
from robust_networks import load_teacher, robust_network_of, student_network_of, teacher_network_of
from teacher import teacher_of
from training import fresh_model, network_of, recipe_of
from unpoison import models
from unpoison.core.errors import ParameterError, UserError, file_of, keys_of
from unpoison.data.imageset import ImageSet
from unpoison.models.classifier import Classifier
from unpoison.purification import PURIFIERS
from unpoison.robust import ROBUST
from unpoison.sources import digits
from unpoison.sources.published import PUBLISHED
from unpoison.training.checks import check_batch_of_one
from unpoison.training.privacy import PrivateRecipe
from unpoison.training.recipe import Recipe
from unpoison.training.shaping import mixing_of
from unpoison.training.whitening import whiten
from unpoison.variations.prior_training import PriorRecipe, check_recipe

# Side and channels of the sets whose images are all of one size.
SHAPES = {
    **{name: (made.side, made.channels) for name, made in MADE.items()},
    "cifar10": (32, 3),
    "cifar100": (32, 3),
    "mnist": (28, 1),
    "fashion_mnist": (28, 1),
    "svhn": (32, 3),
}


def training_size(data: Settings) -> tuple[int, int]:
    """The most training images that there can be, and the number of classes, 0 where it is not known."""
    if data.name in MADE:
        return data.digits_sizes["train"], len(MADE[data.name].classes)
    most, classes = sys.maxsize, 0
    if data.name in PUBLISHED:
        known = PUBLISHED[data.name]
        held_out = data.most("reserve") if data.reserve_from == "held_out" else 0
        apart = held_out + data.most("public") if data.trusted == "train" else 0
        most, classes = known.train - apart, known.classes
    return min(most, data.train_limit or most), classes


def check_sizes(params: Params, data: Settings, prior: PriorRecipe | None) -> None:
    """Raises UserError for what would stop a stage only when it has the images; `prior` is None where a run has none."""
    teacher, classes = teacher_of(params), _classes(params, data)
    side, channels = _shape(data)
    if side is None:
        return
    if prior is not None:
        with file_of(PARAMS), keys_of("prior"):
            check_recipe(prior, (side, side))
    blank, victim = _blank(2, side, channels), victim_network_of(params)
    # A model that was received is not trained.
    trained = [("train", "model", victim)] if received_of(params) is None else []
    if robust_of(params) and (robust := robust_network_of(params)) != network_of(params):
        trained.append(("train", "robust.model", robust))
    if with_variations(params):
        if teacher != BACKDOORED:
            load_teacher(teacher, _blank(2, side, channels, classes))
        student = student_network_of(params)
        as_victim = teacher == BACKDOORED and student == teacher_network_of(params)
        trained.append(("distill.train", "model" if as_victim else "distill.model", student))
    for name, place, network in trained:
        recipe = recipe_of(params, name)
        if place != "model":
            _check_built(place, network, blank)
        with file_of(PARAMS), keys_of(name), _of_network(place):
            _check_batches(network, recipe, blank)
            if recipe.whiten:
                whiten(_built(network, blank), blank)
    for name in purified_of(params):
        # Those that build on scores train on samples, of which there are more.
        images = 2 if PURIFIERS[name].by == "scores" else data.most("reserve")
        own = own_parameters(params, "purifiers", name, PURIFIERS[name].parameters)
        recipe = Recipe(batch_size=own.get("batch_size", Recipe.batch_size))
        with file_of(FAMILIES["purifiers"]), keys_of(name):
            _check_batches(victim, recipe, _blank(min(images, 2), side, channels))


def _shape(data: Settings) -> tuple[int | None, int]:
    """Side and channels of the images; no side where it is not known before they are read."""
    side, channels = SHAPES.get(data.name, (None, 3))
    return (data.image_size or side if data.name != "digits" else side), channels


def check_per_sample_networks(params: Params, data: Settings) -> None:
    """Raises UserError for a network with batch norm where gradients of single samples are taken."""
    private, chosen = isinstance(recipe_of(params, "train"), PrivateRecipe), robust_of(params)
    wanted = {"model": network_of(params)} if private else {}
    if chosen and (private or any(ROBUST[name].per_sample for name in chosen)):
        robust = robust_network_of(params)
        wanted |= {"model" if robust == network_of(params) else "robust.model": robust}
    side, channels = _shape(data)
    for place, network in wanted.items():
        try:
            # Of unknown images the size that most networks of the libraries were made for.
            model = _built(network, _blank(2, side or 224, channels))
        except UserError:
            if side is not None:
                raise
            continue  # it may take the images as they are; the training says the same before its first step
        if mixing := mixing_of(model):
            raise UserError(f"{PARAMS}: {place}: {mixing}")


def _classes(params: Params, data: Settings) -> tuple[str, ...]:
    """The classes' names: the data's where they are known, else those of the teacher. Raises UserError for another number."""
    teacher, (_, known) = teacher_of(params), training_size(data)
    if data.name == "digits" or teacher == BACKDOORED:
        return digits.CLASSES
    names = tuple(models.read_about(teacher).classes)
    if known not in (0, len(names)):
        raise UserError(f"{teacher / models.DESCRIPTION}: a model for {len(names)} classes, the data have {known}")
    return names


@contextmanager
def _of_network(place: str) -> Iterator[None]:
    """Say of a recipe's error which network it is about, where that is not the victim's."""
    try:
        yield
    except ParameterError as error:
        raise ParameterError(str(error) if place == "model" else f"{error} (for the network of {place})") from None


def _check_built(place: str, network: Mapping[str, Any], data: ImageSet) -> None:
    """Raises UserError for a network that cannot take the images: the victim is trained long before it would be built."""
    try:
        _built(network, data)
    except UserError as error:
        raise UserError(f"{PARAMS}: {place}: {error}") from None


def _check_batches(network: Mapping[str, Any], recipe: Recipe, data: ImageSet) -> None:
    """Raises ParameterError where batches of one image leave batch norm a single value to average over."""
    # Only then is a network built, which takes longer than all other checks together.
    if recipe.batch_size > 1 and len(data) != 1:
        return
    check_batch_of_one(_built(network, data), data, recipe)


def _blank(images: int, side: int, channels: int, classes: tuple[str, ...] = ("a", "b")) -> ImageSet:
    """Black images of the first class."""
    blank = np.broadcast_to(np.zeros((), np.uint8), (images, side, side, channels))
    return ImageSet(blank, np.zeros(images, np.int64), classes)


def _built(network: Mapping[str, Any], data: ImageSet) -> Classifier:
    """A network for images like these, without pretrained weights."""
    return fresh_model({key: value for key, value in network.items() if key != "pretrained"}, data, seed=0)
