"""What a detector is to the rest of the project: one typed value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..data.scores import Scores


def _none(**arguments: object) -> int:
    return 0


@dataclass(frozen=True, kw_only=True)
class Detector:
    """A published detector.

    Attributes:
        score: `score(model, data, reserve, features, *, seed, …) -> Scores`: the suspect classifier, the suspect training
            set, the trusted images, the model's logits and features of the training set; one score per training sample,
            higher = more suspicious. Its keyword-only arguments, without the seed, are the method's own parameters.
        needs_trusted: `needs_trusted(**own parameters)`: how many trusted images it needs at least.
    """

    score: Callable[..., Scores]
    needs_trusted: Callable[..., int] = _none

    @property
    def parameters(self) -> Callable[..., Scores]:
        """Whose keyword-only arguments are the detector's own parameters."""
        return self.score
