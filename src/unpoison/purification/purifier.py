"""The type of a purifier: what its file hands to the rest of the project."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..models.classifier import Classifier


@dataclass(frozen=True, kw_only=True)
class Purifier:
    """A published way to purify a model.

    Attributes:
        purify: `purify(model, reserve, *, seed, …) -> Classifier`, from the suspect classifier, which is left as it was,
            and the trusted images, to a new classifier. Its keyword-only arguments but the seed are the method's own
            parameters.
    """

    purify: Callable[..., Classifier]

    @property
    def parameters(self) -> Callable[..., Classifier]:
        """The function whose keyword-only arguments are the purifier's own parameters."""
        return self.purify
