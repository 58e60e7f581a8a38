"""The type of an inspector: what its file hands to the rest of the project."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..compute.device import batch_size
from ..core.errors import UserError
from ..data.verdicts import Verdict
from ..models.classifier import Classifier

PASS = 512  # images of 32 px in a pass, of all the classes that are worked on together


def check_classes(method: str, model: Classifier) -> None:
    """Raises UserError where a model has fewer than three classes: of two, neither stands out from the others."""
    if (classes := model.head.out_features) < 3:
        raise UserError(f"{method}: {classes} classes given, allowed: 3 or more, for one to stand out from the others")


def groups(model: Classifier, each: int) -> tuple[Tensor, ...]:
    """The classes of a model, int64 [a] by group: as many together as fill a pass with `each` images of every class."""
    height, width = model.description["image_size"]
    together = max(1, batch_size((height, width), PASS) // each)
    return torch.arange(model.head.out_features).split(together)


def span(targets: Tensor) -> str:
    """A group's classes in words, for progress."""
    return f"classes {int(targets[0])} to {int(targets[-1])}"


def _none(**arguments: object) -> int:
    return 0


@dataclass(frozen=True, kw_only=True)
class Inspector:
    """A published way to tell a backdoored model from a clean one, and its target from other classes.

    Attributes:
        inspect: `inspect(model, reserve, *, seed, …) -> Verdict`, from the suspect classifier, which is left as it was, and
            the trusted images. Its keyword-only arguments but the seed are the method's own parameters.
        needs_trusted: `needs_trusted(**own parameters)`, the least number of trusted images it can work with.
        reverses: whether its verdict holds a trigger for each class.
    """

    inspect: Callable[..., Verdict]
    needs_trusted: Callable[..., int] = _none
    reverses: bool = False

    @property
    def parameters(self) -> Callable[..., Verdict]:
        """The function whose keyword-only arguments are the inspector's own parameters."""
        return self.inspect
