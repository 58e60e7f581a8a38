"""Several detectors against trusted images, this project's own: a sample is as suspicious as the one that finds it oddest says.

Scores of different detectors have no common scale, but each can say how many trusted images look as odd as a sample does: a share
that means the same for all. Detectors that look at whole classes, of which trusted images are no example, count by their own rules.
"""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from annotated_types import Gt, Le
from numpy.typing import NDArray

from ..compute.finite import check_finite
from ..core.errors import ParameterError
from ..data.features import Features
from ..data.scores import Scores
from . import ac, beatrix, scan, spectre, ss
from .detector import Detector, Suspect

CALIBRATED: dict[str, Detector] = {
    "ac": ac.DETECTOR,
    "ss": ss.DETECTOR,
    "spectre": spectre.DETECTOR,
    "beatrix": beatrix.DETECTOR,
}
"""Detectors whose scores are compared with those of trusted images."""
RULED: dict[str, Detector] = {"scan": scan.DETECTOR, "ac": ac.DETECTOR}
"""Detectors whose own rules count."""
FalseAlarms = Annotated[float, Gt(0), Le(0.5)]
LEAST = 50
"""Fewest trusted images."""


def needs_trusted(*, false_alarms: float = 0.05) -> int:
    """Fewest trusted images that have one in the share of false alarms."""
    return max(LEAST, math.ceil(1 / false_alarms))


def score(suspect: Suspect, *, seed: int = 0, false_alarms: FalseAlarms = 0.05) -> Scores:
    """One less the share of trusted images that look as odd to the detector that finds the sample oddest; 1 where a rule flags it.

    Detectors that are calibrated see the trusted images, with their labels, among the samples; those whose rules count do not, as
    the same images twice would tip the scales of a class. Samples of equal shares are told apart by the mean over the detectors.

    Args:
        seed: seed of the detectors.
        false_alarms: share of the trusted images that would be flagged.

    Raises:
        ParameterError: too few trusted images for the share of false alarms.
    """
    count, trusted = len(suspect.data), len(suspect.reserve)
    if trusted < (least := needs_trusted(false_alarms=false_alarms)):
        raise ParameterError(f"ensemble: {trusted} images given, allowed: at least {least} in the trusted reserve")
    both = _with_trusted(suspect)
    found = {name: one.score(both, seed=seed) for name, one in CALIBRATED.items()}
    ruled = {name: one.score(suspect, seed=seed) for name, one in RULED.items()}
    shares = np.stack([shares_as_high(scores.values, count) for scores in found.values()])
    oddest = shares.min(0)
    flagged = oddest[:count] <= np.quantile(oddest[count:], false_alarms, method="lower")
    for scores in ruled.values():
        if scores.flagged is not None:
            oddest[:count][scores.flagged] = 0
            flagged = flagged | scores.flagged
    # The mean share, which is at most 1, counts for less than a step of the least one.
    values = 1 - oddest[:count] - shares.mean(0)[:count] / (trusted + 1) ** 2
    rule = f"as odd as the oddest {100 * false_alarms:.3g} % of the trusted images, or flagged by {' or '.join(RULED)}"
    passes = 1 + sum(one.forward_passes - 1 for one in (*found.values(), *ruled.values()))
    return Scores(values.astype(np.float32), forward_passes=passes, flagged=flagged, rule=rule)


def _with_trusted(suspect: Suspect) -> Suspect:
    """The same with the trusted images behind the samples."""
    data, reserve = suspect.data, suspect.reserve
    rows = [
        (of.logits[np.arange(len(one))], of.penultimate[np.arange(len(one))])
        for of, one in ((suspect.features, data), (suspect.reserve_features, reserve))
    ]
    logits, penultimate = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    for values, what in ((logits, "logits"), (penultimate, "features")):
        check_finite("ensemble", values, what)
    return Suspect(
        model=suspect.model,
        data=data.followed_by(reserve),
        features=Features(logits, penultimate),
        reserve=reserve,
        reserve_features=suspect.reserve_features,
    )


def shares_as_high(values: NDArray[np.float32], count: int) -> NDArray[np.float64]:
    """Of each score the share of the trusted images' that are as high or higher, where it is one itself, [n].

    Args:
        values: scores, those of trusted images behind the first `count`.
        count: number of the others.
    """
    trusted = np.sort(values[count:])
    # A sample that is none of them counts as one more.
    more = np.arange(len(values)) < count
    return (len(trusted) - np.searchsorted(trusted, values, side="left") + more) / (len(trusted) + more)


DETECTOR = Detector(score=score, needs_trusted=needs_trusted)
