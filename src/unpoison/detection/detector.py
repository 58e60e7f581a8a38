"""The type of a detector: what its file hands to the rest of the project."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..core.errors import UserError
from ..data.scores import Scores


def check_finite(method: str, values: NDArray[np.floating], of: str) -> None:
    """Raises UserError where a row of values [n, ...], `of` in the message, is not finite: the model has diverged."""
    if bad := int((~np.isfinite(values)).reshape(len(values), -1).any(1).sum()):
        raise UserError(
            f"{method}: {of} of {bad} of {len(values)} samples are not finite; allowed: those of a sound model"
        )


def _none(**arguments: object) -> int:
    return 0


@dataclass(frozen=True, kw_only=True)
class Detector:
    """A published detector.

    Attributes:
        score: `score(model, data, reserve, features, *, seed, …) -> Scores`, from the suspect classifier, the suspect
            training set, the trusted images, and the classifier's logits and features of the training set, to one score
            per training sample, higher = more suspicious. Its keyword-only arguments but the seed are the method's own
            parameters.
        needs_trusted: `needs_trusted(**own parameters)`, the least number of trusted images it can work with.
    """

    score: Callable[..., Scores]
    needs_trusted: Callable[..., int] = _none

    @property
    def parameters(self) -> Callable[..., Scores]:
        """The function whose keyword-only arguments are the detector's own parameters."""
        return self.score
