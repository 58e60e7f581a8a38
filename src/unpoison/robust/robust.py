"""The type of a robust training method: what its file hands to the rest of the project."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from ..compute.checkpoints import Checkpoints
from ..core.errors import ParameterError
from ..models.classifier import Classifier
from ..training.loop import History

Share = Annotated[float, Gt(0), Le(1)]
"""A part of a whole, or all of it."""
Value = Annotated[float, Ge(-1e6), Le(1e6)]
"""A value of a stamp's pixels that `model.json` may hold."""
Keep = Callable[[str], Checkpoints | None]
"""The name of a phase of a training ("isolation") to its checkpoints, which the caller removes at the end; or to None."""


def keep_nothing(phase: str) -> None:
    """For a training that starts anew where it was killed."""


@contextmanager
def own_keys(**names: str) -> Iterator[None]:
    """For a phase whose recipe is the method's own: an error about a recipe's key names the parameter that it came from.

    Args:
        names: the method's parameters by the recipe's keys (`lr="unlearn_lr"`).
    """
    try:
        yield
    except ParameterError as error:
        key, _, rest = str(error).partition(": ")
        if key not in names:
            raise
        raise ParameterError(f"{names[key]}: {rest}") from None


@dataclass(frozen=True, kw_only=True)
class Robust:
    """A published way to train on suspect data.

    Attributes:
        train: `train(make_model, *inputs, recipe, keep=keep_nothing, *, seed, …) -> (Classifier, History)`. `make_model()`
            gives the network with fresh weights, `recipe` says how to train it, `keep` where each phase has its checkpoints.
            Its keyword-only arguments but the seed are the method's own parameters. One with `by` takes that after its inputs.
        inputs: inputs of `train`, in the order of its arguments: `data` (the training set as received), `reserve` (trusted
            images), `variations` (of the training set), `backdoored` (the model trained on the set as it is), `public` (trusted,
            unlabelled images).
        by: what it builds on besides: `scores` of training samples (`data.scores.Scored`).
        trusted: `trusted(**own parameters)`, the least number of trusted images for a method with the `reserve`; None: one.
        per_sample: whether it takes gradients of single samples, for which a network must have no batch norm.
        private: whether it takes a private recipe: its one training is by the recipe's own loss, of each sample once.
    """

    train: Callable[..., tuple[Classifier, History]]
    inputs: tuple[str, ...] = ("data", "reserve")
    by: Literal["scores"] | None = None
    trusted: Callable[..., int] | None = None
    per_sample: bool = False
    private: bool = False

    @property
    def made_elsewhere(self) -> list[str]:
        """Inputs that other stages make and a stage of the family does not depend on."""
        return sorted(set(self.inputs) - {"data", "reserve"})

    @property
    def parameters(self) -> Callable[..., tuple[Classifier, History]]:
        """The function whose keyword-only arguments are the method's own parameters."""
        return self.train

    def needs_trusted(self, **own: Any) -> int:
        """The least number of trusted images, by the method's own parameters."""
        if "reserve" not in self.inputs:
            return 0
        return 1 if self.trusted is None else self.trusted(**own)
