"""Detection: which training samples are suspicious.

Every method is `score(model, data, reserve, *, seed, …) -> Scores`, one score per sample, higher = more suspicious.
"""

from __future__ import annotations

from collections.abc import Callable

from ..data.scores import Scores
from . import ac, cd, ss, strip

DETECTORS: dict[str, Callable[..., Scores]] = {
    "cd": cd.score,
    "ac": ac.score,
    "ss": ss.score,
    "strip": strip.score,
}
