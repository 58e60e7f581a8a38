"""The type of a detector: what its file hands to the rest of the project, and what it is handed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..core.arrays import IntArray
from ..core.content_store import ContentStore
from ..core.files import sha256_json
from ..data.features import Features
from ..data.imageset import ImageSet
from ..data.scores import Scores
from ..models.classifier import Classifier


def _none(**arguments: object) -> int:
    return 0


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """What a detector may look at; the truth is not in it.

    Attributes:
        model: the suspect classifier, which a detector leaves as it was.
        data: the suspect training set, n images with their labels as received.
        features: the classifier's logits and penultimate features of `data`.
        reserve: trusted, labelled images.
        reserve_features: the classifier's logits and penultimate features of `reserve`.
        store: where a detector that is `sharded` keeps what it has done.
        made_from: JSON values that say what all of this is, by which it finds that again.
    """

    model: Classifier
    data: ImageSet
    features: Features
    reserve: ImageSet
    reserve_features: Features
    store: ContentStore = field(default_factory=lambda: ContentStore(None), repr=False)
    made_from: dict[str, Any] = field(default_factory=dict)

    @property
    def predicted(self) -> IntArray:
        """The label that the classifier gives to each training sample, int64 [n]."""
        return _largest(self.features, len(self.data))

    @property
    def reserve_predicted(self) -> IntArray:
        """The label that it gives to each trusted image, int64 [r]."""
        return _largest(self.reserve_features, len(self.reserve))

    def subset(self, index: IntArray) -> Suspect:
        """The same with the training samples `index` [k] alone, as a set of their own."""
        features = Features(self.features.logits[index], self.features.penultimate[index])
        made_from = {**self.made_from, "samples": sha256_json(index.tolist())}
        return replace(self, data=self.data.subset(index), features=features, made_from=made_from)


def _largest(features: Features, count: int) -> IntArray:
    largest: IntArray = features.logits[np.arange(count)].argmax(1)
    return largest


@dataclass(frozen=True, kw_only=True)
class Detector:
    """A published detector.

    Attributes:
        score: `score(suspect, *, seed, …) -> Scores`: one score per training sample, higher = more suspicious. Its
            keyword-only arguments but the seed are the method's own parameters.
        needs_trusted: `needs_trusted(**own parameters)`, the least number of trusted images it can work with.
        single_inputs: whether it can score images one by one, by what the model says of them, without labels and without
            others to compare them with: then it also works at test time.
        sharded: whether it scores in shards, which several workers can share.
        images: whether it works on images.
        texts: whether it works on texts (`data.texts`).
    """

    score: Callable[..., Scores]
    needs_trusted: Callable[..., int] = _none
    single_inputs: bool = False
    sharded: bool = False
    images: bool = True
    texts: bool = False

    @property
    def parameters(self) -> Callable[..., Scores]:
        """The function whose keyword-only arguments are the detector's own parameters."""
        return self.score
