"""What a purifier is to the rest of the project: one typed value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..models.classifier import Classifier


@dataclass(frozen=True, kw_only=True)
class Purifier:
    """A published way to purify a model.

    Attributes:
        purify: `purify(model, reserve, *, seed, …) -> Classifier`: the suspect classifier and the trusted images to a new
            classifier; the input is left as it was. Its keyword-only arguments, without the seed, are the method's own
            parameters.
    """

    purify: Callable[..., Classifier]

    @property
    def parameters(self) -> Callable[..., Classifier]:
        """Whose keyword-only arguments are the purifier's own parameters."""
        return self.purify
