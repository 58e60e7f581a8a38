"""What stages that train a classifier share: the network and the recipe of the parameters, and how a model is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import BASE

import pandas as pd

from parameters import PARAMS, Params, block, section
from unpoison import models
from unpoison.core.errors import ParameterError, file_of, keys_of
from unpoison.core.files import new_file
from unpoison.data.imageset import ImageSet
from unpoison.data.texts import read_vocabulary
from unpoison.training.loop import History
from unpoison.training.privacy import privacy_of, private
from unpoison.training.recipe import Recipe
from unpoison.training.recipes import APART, recipe_named


def network_of(params: Params) -> dict[str, Any]:
    """The section `model`: the network's name and arguments, as `models.build` takes them."""
    # A key that is null is as good as absent: the file lists arguments that only some networks have.
    network = {key: value for key, value in section(params, "model").items() if value is not None}
    name = network.pop("name", None)
    with file_of(PARAMS), keys_of("model"):
        return {"name": name, **models.network_arguments(name, network)}


def recipe_of(params: Params, name: str) -> Recipe:
    """The recipe that a section (`train`, `distill.train`) stands for; with `train.privacy` a private one."""
    values = section(params, name)
    # How several clients train together is no part of how one of them does.
    apart = {key: values.get(key) for key in APART} if name == "train" else {}
    with file_of(PARAMS), keys_of(name):
        recipe = recipe_named({key: value for key, value in values.items() if key not in apart})
        if (given := apart.get("privacy")) is None:
            return recipe
        given = block(given, f"{PARAMS}: train.privacy")
        if apart["federation"] is not None:
            raise ParameterError(
                "privacy: given, allowed with train.federation, which clips and adds noise itself: null"
            )
        with keys_of("privacy"):
            privacy = privacy_of(given)
        return private(recipe, privacy)


def fresh_model(
    network: Mapping[str, Any], data: ImageSet, *, seed: int, vocabulary: Sequence[str] | None = None
) -> models.Classifier:
    """The network for the images and classes of `data`, with fresh weights.

    Args:
        network: name and arguments, as `network_of` gives them.
        data: samples like those that it is for.
        seed: seed of the initial weights.
        vocabulary: words by their ids, of a network that is made for them; None: those of the base data set.
    """
    about: dict[str, Any] = {"image_size": data.image_size, "channels": data.channels, **network}
    if network["name"] in models.VOCABULARY_NETWORKS:
        about["vocabulary"] = read_vocabulary(BASE) if vocabulary is None else vocabulary
    return models.build(**about, num_classes=len(data.classes), seed=seed)


def write_curve(path: Path, history: History) -> None:
    """A row per epoch: epoch, loss, accuracy, learning rate."""
    with new_file(path) as staging:
        pd.DataFrame(history.epochs, columns=["epoch", "loss", "accuracy", "lr"]).to_csv(staging, index=False)
