"""SPECTRE (Hayase et al., "SPECTRE: Defending Against Backdoor Attacks Using Robust Covariance Estimation", ICML 2021).

Spectral signatures drown where poison is rare and the class varies more in other directions. Whitened by a covariance of its
clean samples alone, a class varies alike in all directions but those of poison, and quantum entropy scores find these.

Published code, in Julia: https://github.com/SewoongLab/spectre-defense
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..compute.finite import check_finite
from ..core.arrays import Mask
from ..core.hyperparameters import Count, Fraction, NonNegative
from ..core.seeding import numpy_rng
from ..data.ranks import order
from ..data.scores import Assumption, Scores
from .covariance import root_of_inverse
from .detector import Detector, Suspect

Real = NDArray[np.float64]

# What is left out is at most two thirds of a class: with a share of poison above a third, the core may be the poison.
ASSUMPTION = Assumption("takes poison for the smaller part of a class", least_share=1 / 3)
STEPS = 10
"""Steps of the robust estimate, each of which leaves out a part."""
PER_DIMENSION = 5
"""Fewest samples per dimension of a covariance."""


def score(
    suspect: Suspect,
    *,
    seed: int = 0,
    expected: Fraction = 0.05,
    most_dimensions: Count = 64,
    alpha: NonNegative = 4.0,
) -> Scores:
    """Quantum entropy score of a sample over the median of its class, after whitening by the class's robust covariance.

    Args:
        seed: seed for the normal features that a class is compared with.
        expected: share of the training set that could be poison, all of it in one class. A class's covariance leaves out
            twice, and the rule flags one and a half times as many samples, but no more than half of a class. The paper's
            experiments know the true number.
        most_dimensions: most principal components; their number is the square (1, 4, 9, …) with which what is flagged
            widens the rest of the class most, beside what it does in a class of normal features.
        alpha: how much the leading directions count more than others; 4 in the paper. 0: all alike.
    """
    data = suspect.data
    values, flagged, widths = np.zeros(len(data)), np.zeros(len(data), bool), {}
    for label in np.unique(data.labels):
        members = np.flatnonzero(data.labels == label)
        rows = suspect.features.penultimate[members].astype(np.float64)
        check_finite("spectre", rows, f"features (label {data.classes[label]})")
        budget = min(expected * len(data), len(members) / 3)
        found = _best(rows, budget, most_dimensions, alpha, numpy_rng(seed, "spectre/normal", int(label)))
        if found is None:
            continue  # too few samples for a covariance: their score stays 0, the neutral value
        widths[int(label)], scores, flagged[members] = found
        # What a robust covariance leaves out makes it too narrow, by another factor in each class: the median is one for all.
        values[members] = scores / max(np.median(scores), 1e-12)
    # The rule names one class, that which what it flags there widens most.
    if widths:
        flagged &= data.labels == max(widths, key=lambda label: widths[label])
    rule = f"in the class that they widen most, 1.5 times as many samples as {expected:.0%} of all, at most half of the class"
    return Scores(values.astype(np.float32), forward_passes=1, assumption=ASSUMPTION, flagged=flagged, rule=rule)


def _best(
    rows: Real, budget: float, most: int, alpha: float, rng: np.random.Generator
) -> tuple[float, Real, Mask] | None:
    """For the number of dimensions that is best: how much the flagged samples widen the rest, all scores, and the flagged."""
    rows = rows - rows.mean(0)
    _, spread, directions = np.linalg.svd(rows, full_matrices=False)
    # Directions without any spread, of channels that are off, cannot be whitened.
    rank = min(int((spread > 1e-6 * spread[0]).sum()), most, len(rows) // PER_DIMENSION)
    rows = rows @ directions[:rank].T
    # Whatever is taken out of the tails narrows the rest, the more of it and the more dimensions, the more: a class of normal
    # features and of the same size is the measure.
    normal = rng.normal(size=rows.shape)
    best = None
    for root in range(1, int(np.sqrt(rank)) + 1):
        (scores, flagged, width), (_, _, usual) = (_widened(x, root * root, budget, alpha) for x in (rows, normal))
        if best is None or width / usual > best[0]:
            best = width / usual, scores, flagged
    return best


def _widened(rows: Real, dimensions: int, budget: float, alpha: float) -> tuple[Real, Mask, float]:
    """Scores in the first dimensions, the samples with the largest ones, and how much these widen the rest in all."""
    scores = quantum_entropy(whitened(rows[:, :dimensions], budget), alpha)
    flagged = np.zeros(len(rows), bool)
    flagged[order(scores)[: int(1.5 * budget)]] = True
    return scores, flagged, widening(rows, ~flagged)


def whitened(rows: Real, budget: float) -> Real:
    """Rows [n, k] less a robust mean, in units of a robust covariance.

    Mean and covariance are those of what is left when the samples farthest from them are left out, step by step, twice the
    budget in all: a plain form of the filters that the paper takes from Diakonikolas et al. (2017).
    """
    kept = np.arange(len(rows))
    for step in range(1, STEPS + 1):
        mean, covariance = rows[kept].mean(0), np.atleast_2d(np.cov(rows[kept].T))
        centred = rows - mean
        distances = np.einsum("nd,de,ne->n", centred, np.linalg.pinv(covariance, hermitian=True), centred)
        kept = np.sort(order(-distances)[: len(rows) - int(2 * budget * step / STEPS)])
    mean, covariance = rows[kept].mean(0), np.atleast_2d(np.cov(rows[kept].T))
    return (rows - mean) @ root_of_inverse(covariance)


def quantum_entropy(rows: Real, alpha: float) -> Real:
    """Quantum entropy scores of whitened rows [n, k] (Dong et al. 2019): x' Q x / tr Q, Q = exp(alpha (S - I) / (|S| - 1)).

    S is the second moment of all rows, the identity but for what whitening did not see, and |S| its largest eigenvalue.
    """
    values, directions = np.linalg.eigh(rows.T @ rows / len(rows))
    # Exponents of at most alpha, and of 0 where the rows are as wide as they should be in every direction.
    excess = max(values[-1] - 1, 1e-9)
    weights = np.exp(alpha * np.clip((values - 1) / excess, -1, 1))
    return ((rows @ directions) ** 2 @ weights) / weights.sum()


def widening(rows: Real, rest: Mask) -> float:
    """Largest variance of rows [n, k], about the mean of a part and in units of that part's covariance."""
    part = (rows - rows[rest].mean(0)) @ root_of_inverse(np.atleast_2d(np.cov(rows[rest].T)))
    return float(np.linalg.eigvalsh(part.T @ part / len(part))[-1])


DETECTOR = Detector(score=score, texts=True)
