"""The type of a robust training method: what its file hands to the rest of the project."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..models.classifier import Classifier
from ..training.loop import History

RECEIVED = ("data", "reserve")
"""Inputs that every stage of the family has: the training set as received, and the trusted images."""


@dataclass(frozen=True, kw_only=True)
class Robust:
    """A published way to train on suspect data.

    Attributes:
        train: `train(make_model, *inputs, recipe, *, seed, …) -> (Classifier, History)`. `make_model()` gives the network
            with fresh weights, `recipe` says how to train it. Its keyword-only arguments but the seed are the method's own
            parameters.
        inputs: inputs of `train`, in the order of its arguments: `data` (the training set as received), `reserve` (trusted
            images), `variations` (of the training set), `backdoored` (the model trained on the set as it is).
    """

    train: Callable[..., tuple[Classifier, History]]
    inputs: tuple[str, ...] = RECEIVED

    @property
    def parameters(self) -> Callable[..., tuple[Classifier, History]]:
        """The function whose keyword-only arguments are the method's own parameters."""
        return self.train
