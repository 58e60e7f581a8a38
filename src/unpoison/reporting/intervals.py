"""How far a share of n images may lie from that of all images like them, and how a figure is written with its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from .run import Run

Z = 1.959963984540054
"""The standard normal distribution's 0.975 quantile: 95 % lie within as much of 0 on either side."""
EXPLAINED = "In brackets: 95 % intervals by Wilson's formula, as if the images had been drawn at random."


def wilson(share: float, count: float) -> tuple[float, float]:
    """The 95 % score interval of a share: E. B. Wilson, Probable inference, the law of succession, and statistical inference,
    JASA 22 (1927), 209-212. Unlike share ± z·sqrt(share(1 - share)/n) it stays within [0, 1] and has a width at 0 and at 1.

    Args:
        share: what part of them it is, in [0, 1].
        count: number of images. Of none a share may be any, 0 to 1.
    """
    if not count:
        return 0.0, 1.0
    spread = Z * Z / count
    middle = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt((share * (1 - share) + spread / 4) / count) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def bracketed(value: float, low: float, high: float) -> str:
    """A figure with the ends of its interval, all to three places: `0.950 [.936, .961]`."""
    ends = [f"{end:.3f}".removeprefix("0") for end in (low, high)]
    # A cell may break in front of the interval, not within it.
    return f"{value:.3f} [{ends[0]},\u00a0{ends[1]}]"


def share_of(value: float | None, count: float | None) -> str:
    """A share with its interval; alone where the number of images is not known, a dash where there is no share."""
    if value is None:
        return "–"
    return bracketed(value, *wilson(value, count)) if count is not None and count > 0 else f"{value:.3f}"


def images_behind(run: Run) -> Mapping[str, float]:
    """Number of test images that each share of a model is of, by its key in the metrics; without those not known."""
    found: dict[str, float] = {"acc": run.about["counts"].get("test", 0)}
    if run.truth is None or run.metrics is None:
        return found
    found |= dict.fromkeys(("asr", "ra", "retuned_asr", "reactivated_asr"), float(run.metrics["attack"]["tested"]))
    if run.triggered:
        found["cross_acc"] = sum(len(images) for images in run.triggered.values() if images.crossed is not None)
        # As it is graded: where no class is the target, none is left out.
        targets = [part.policy.target for part in run.truth.parts if part.policy.has_target]
        labels = next(iter(run.triggered.values())).test.labels
        found["acc_without_target"] = int((~np.isin(labels, targets)).sum())
    return found
