"""What follows from the images' size and number where they are known before the images are read."""

from __future__ import annotations

import sys

import numpy as np

from parameters import FAMILIES, PARAMS, Params, own_parameters, with_variations
from prepare import Settings
from purifying import purified_of
from training import fresh_model, network_of, recipe_of
from unpoison.core.errors import file_of, keys_of
from unpoison.data.imageset import ImageSet
from unpoison.models.classifier import Classifier
from unpoison.purification import PURIFIERS
from unpoison.sources import digits
from unpoison.sources.published import PUBLISHED
from unpoison.training.checks import check_batch_of_one
from unpoison.training.recipe import Recipe
from unpoison.training.whitening import whiten
from unpoison.variations.prior_training import PriorRecipe, check_recipe

# Side and channels of the sets whose images are all of one size.
SHAPES = {
    "digits": (digits.SIDE, 3),
    "cifar10": (32, 3),
    "cifar100": (32, 3),
    "mnist": (28, 1),
    "fashion_mnist": (28, 1),
    "svhn": (32, 3),
}


def training_size(data: Settings) -> tuple[int, int]:
    """The most training images that there can be, and the number of classes, 0 where it is not known."""
    if data.name == "digits":
        return data.digits_sizes["train"], len(digits.CLASSES)
    most, classes = sys.maxsize, 0
    if data.name in PUBLISHED:
        known = PUBLISHED[data.name]
        held_out = data.most("reserve") if data.reserve_from == "held_out" else 0
        apart = held_out + data.most("public") if data.trusted == "train" else 0
        most, classes = known.train - apart, known.classes
    return min(most, data.train_limit or most), classes


def check_sizes(params: Params, data: Settings, prior: PriorRecipe) -> None:
    """Raises UserError for what would stop a stage only when it has the images."""
    side, channels = SHAPES.get(data.name, (None, 3))
    side = data.image_size or side if data.name != "digits" else side
    if side is None:
        return
    if with_variations(params):
        with file_of(PARAMS), keys_of("prior"):
            check_recipe(prior, (side, side))
    for name in ("train", "distill.train") if with_variations(params) else ("train",):
        recipe = recipe_of(params, name)
        with file_of(PARAMS), keys_of(name):
            _check_batches(params, recipe, 2, side, channels)
            if recipe.whiten:
                blank = _blank(2, side, channels)
                whiten(_network(params, blank), blank)
    for name in purified_of(params):
        # Those that build on scores train on samples, of which there are more.
        images = 2 if PURIFIERS[name].by == "scores" else data.most("reserve")
        own = own_parameters(params, "purifiers", name, PURIFIERS[name].parameters)
        recipe = Recipe(batch_size=own.get("batch_size", Recipe.batch_size))
        with file_of(FAMILIES["purifiers"]), keys_of(name):
            _check_batches(params, recipe, images, side, channels)


def _check_batches(params: Params, recipe: Recipe, images: int, side: int, channels: int) -> None:
    """Raises ParameterError where batches of one image leave batch norm a single value to average over."""
    # Only then is a network built, which takes longer than all other checks together.
    if recipe.batch_size > 1 and images != 1:
        return
    data = _blank(min(images, 2), side, channels)
    check_batch_of_one(_network(params, data), data, recipe)


def _blank(images: int, side: int, channels: int) -> ImageSet:
    """Black images of two classes."""
    blank = np.broadcast_to(np.zeros((), np.uint8), (images, side, side, channels))
    return ImageSet(blank, np.zeros(images, np.int64), ("a", "b"))


def _network(params: Params, data: ImageSet) -> Classifier:
    """The parameters' network for images like these, without pretrained weights."""
    network = {key: value for key, value in network_of(params).items() if key != "pretrained"}
    return fresh_model(network, data, seed=0)
