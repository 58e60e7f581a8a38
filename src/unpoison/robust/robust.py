"""The type of a robust training method: what its file hands to the rest of the project."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from ..compute.checkpoints import Checkpoints
from ..core.errors import ParameterError
from ..models.classifier import Classifier
from ..training.loop import History

Keep = Callable[[str], Checkpoints | None]
"""The name of a phase of a training ("isolation") to its checkpoints, which the caller removes at the end; or to None."""


def keep_nothing(phase: str) -> None:
    """For a training that starts anew where it was killed."""


@contextmanager
def rate_of(key: str) -> Iterator[None]:
    """For a phase with a learning rate of the method's own: where it diverged, `key` is named in the place of the recipe's `lr`."""
    try:
        yield
    except ParameterError as error:
        if not str(error).startswith("lr: "):
            raise
        raise ParameterError(f"{key}{str(error).removeprefix('lr')}") from None


@dataclass(frozen=True, kw_only=True)
class Robust:
    """A published way to train on suspect data.

    Attributes:
        train: `train(make_model, *inputs, recipe, keep=keep_nothing, *, seed, …) -> (Classifier, History)`. `make_model()`
            gives the network with fresh weights, `recipe` says how to train it, `keep` where each phase has its checkpoints.
            Its keyword-only arguments but the seed are the method's own parameters. One with `by` takes that after its inputs.
        inputs: inputs of `train`, in the order of its arguments: `data` (the training set as received), `reserve` (trusted
            images), `variations` (of the training set), `backdoored` (the model trained on the set as it is).
        by: what it builds on besides: `scores` of training samples (`data.scores.Scored`).
    """

    train: Callable[..., tuple[Classifier, History]]
    inputs: tuple[str, ...] = ("data", "reserve")
    by: Literal["scores"] | None = None

    @property
    def made_elsewhere(self) -> list[str]:
        """Inputs that other stages make and a stage of the family does not depend on."""
        return sorted(set(self.inputs) - {"data", "reserve"})

    @property
    def parameters(self) -> Callable[..., tuple[Classifier, History]]:
        """The function whose keyword-only arguments are the method's own parameters."""
        return self.train
