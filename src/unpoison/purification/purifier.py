"""The type of a purifier: what its file hands to the rest of the project."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ..core.errors import UserError
from ..models.classifier import Classifier


@dataclass(frozen=True, kw_only=True)
class Purifier:
    """A published way to purify a model.

    Attributes:
        purify: `purify(model, reserve, *, seed, …) -> Classifier`, from the suspect classifier, which is left as it was,
            and the trusted images, to a new classifier. Its keyword-only arguments but the seed are the method's own
            parameters. One with `by` takes that as its third argument.
        by: what it builds on besides: `scores` of training samples (`data.scores.Scored`), or the `verdicts` on the model's classes
            (`data.verdicts.Verdict`).
        needs_trusted: the least number of trusted images it can work with.
        texts: whether it works on networks for texts (`data.texts`) as well.
    """

    purify: Callable[..., Classifier]
    by: Literal["scores", "verdicts"] | None = None
    needs_trusted: int = 1
    texts: bool = False

    @property
    def parameters(self) -> Callable[..., Classifier]:
        """The function whose keyword-only arguments are the purifier's own parameters."""
        return self.purify


def unsuited(method: str, model: Classifier, why: str) -> UserError:
    """The error for a network that a method cannot work on: "clp: vit_tiny given, which has no batch norm; allowed: …"."""
    return UserError(f"{method}: {model.description['name']} given, {why}")
