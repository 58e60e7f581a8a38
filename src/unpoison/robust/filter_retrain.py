"""Filter and retrain: what a detector takes for poison is left out, and a new network is trained on the rest, as Activation
Clustering (Chen et al., 2018) and Spectral Signatures (Tran et al., NeurIPS 2018) end.

BackdoorBench at f02e353 clusters and projects batches that are drawn anew afterwards, so that its flags belong to other samples.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..core.arrays import IntArray
from ..core.errors import ParameterError, UserError
from ..core.hyperparameters import Fraction
from ..data.imageset import ImageSet
from ..data.ranks import order
from ..data.scores import Scored, least_share
from ..models.classifier import Classifier
from ..training.loop import History, fit
from ..training.recipe import Recipe
from .robust import Keep, Robust, keep_nothing


def train(
    make_model: Callable[[], Classifier],
    data: ImageSet,
    scored: Scored,
    recipe: Recipe,
    keep: Keep = keep_nothing,
    *,
    seed: int = 0,
    removed: Fraction | None = None,
) -> tuple[Classifier, History]:
    """Train on the samples that were scored and not taken for poison. Samples that were not scored have no part in it.

    Args:
        make_model: maker of the network, freshly initialised.
        data: the training set as received.
        scored: samples of it with the scores and the verdict of a detector.
        recipe: recipe of the training.
        keep: where the training has its checkpoints.
        seed: seed for the order of the images and their augmentation.
        removed: share of the samples that is left out, those of the highest scores (0.15 with `ss` in BackdoorBench); null: what
            the detector's own rule flags.

    Raises:
        ParameterError: no share, of a detector without a rule of its own.
        UserError: a class of which no sample is left.
    """
    index = np.arange(len(data)) if scored.index is None else scored.index
    rest = left_of(data, index[~suspects(scored, removed)], f"scores/{scored.detector}")
    model = make_model()
    return model, fit(model, rest, recipe, seed=seed, what="filter_retrain", checkpoints=keep("filter_retrain"))


def left_of(data: ImageSet, kept: IntArray, source: str) -> ImageSet:
    """The samples `kept` [k] of a set. Raises UserError, which names the source of the choice, for a class without any."""
    rest = data.subset(kept)
    if len(emptied := np.setdiff1d(data.labels, rest.labels)):
        names = ", ".join(repr(data.classes[label]) for label in emptied)
        raise UserError(f"{source}: no sample left of class {names}; allowed: scores that leave some of each")
    return rest


def suspects(scored: Scored, removed: float | None) -> np.ndarray:
    """Mask of the samples that are taken for poison, bool [k]. Raises ParameterError where nothing says which."""
    if removed is None:
        if scored.flagged is None:
            raise ParameterError(
                f"removed: null given, allowed with scores/{scored.detector}, which has no rule of its own: a share of the samples"
            )
        return scored.flagged
    count = len(scored.values)
    if 0 < removed * count < 1:
        raise ParameterError(
            f"removed: {removed} given, allowed: 0, or at least {least_share(count)}, one of the {count} samples"
        )
    mask = np.zeros(count, bool)
    mask[order(scored.values)[: int(removed * count)]] = True
    return mask


ROBUST = Robust(train=train, inputs=("data",), by="scores", private=True)
