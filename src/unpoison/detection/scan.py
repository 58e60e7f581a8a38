"""SCAn (Tang et al., "Demon in the Variant: Statistical Analysis of DNNs for Robust Backdoor Contamination Detection", USENIX
Security 2021).

A sample's features are its class's mean and a variation that all classes share. Where poison is in a class, two means
explain it better than one, and a likelihood ratio says by how much.

Published code of a port, in which the single mean is shrunk by the covariance within classes where the derivation has the
one between them; all ratios are thousands of times as large there:
https://github.com/SCLBD/BackdoorBench/blob/f02e353/detection_pretrain/scan.py
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..compute.finite import check_finite
from ..core.arrays import IntArray, Mask
from ..core.errors import ParameterError
from ..core.hyperparameters import NonNegative
from ..core.seeding import derive
from ..data.scores import Assumption, Scores
from .covariance import root_of_inverse
from .detector import Detector, Suspect

Real = NDArray[np.float64]

ASSUMPTION = Assumption("takes it that poison goes to few classes: a class is compared with the median of all", 0.0)
LEAST = 20
"""Fewest trusted images that covariances are estimated from."""
MOST = 100
"""Most steps of the estimate of covariances, as in the published code."""


def score(suspect: Suspect, *, seed: int = 0, threshold: NonNegative = 7.389) -> Scores:
    """The likelihood ratio of a sample's class, times its membership (0 to 1) in the class's suspicious subgroup.

    Args:
        seed: seed for the starts of the split of a class.
        threshold: anomaly index of a class above which the rule flags its suspicious subgroup; e² in the paper.

    Trusted images take part in the split of their class, and the subgroup with fewer of them is the suspicious one; of two
    with as many, the smaller.
    """
    data, reserve = suspect.data, suspect.reserve
    if len(reserve) < LEAST:
        raise ParameterError(f"scan: {len(reserve)} images given, allowed: at least {LEAST} in the trusted reserve")
    rows = suspect.features.penultimate[np.arange(len(data))].astype(np.float64)
    trusted = suspect.reserve_features.penultimate[np.arange(len(reserve))].astype(np.float64)
    check_finite("scan", rows, "features")
    check_finite("scan", trusted, "features of trusted images")
    # The two covariances come from trusted images alone, the split of a class from both kinds.
    between, within = covariances(trusted, reserve.labels)
    root = root_of_inverse(within)
    centre = np.concatenate([rows, trusted]).mean(0)
    rows, trusted = rows - centre, trusted - centre
    labels, label_of = np.unique(data.labels, return_inverse=True)
    ratios, membership, suspicious = np.zeros(len(labels)), np.zeros(len(data)), np.zeros(len(data), bool)
    for place, label in enumerate(labels):
        members, clean = np.flatnonzero(label_of == place), trusted[reserve.labels == label]
        both = np.concatenate([rows[members], clean])
        one = null_mean(both, between, within) @ root
        # From here on in units of the variation within classes, in which all directions are alike.
        both = both @ root
        side = split(both, derive(seed, "scan/split", int(label)) % 2**32)
        if side.all() or not side.any():
            continue  # a single sample, or equal ones: one mean explains the class
        ratios[place] = likelihood_ratio(both, side, one)
        # Which of the two is poison: the one with fewer trusted images, then with fewer of all.
        fewer = min((False, True), key=lambda name: (np.sum(side[len(members) :] == name), np.sum(side == name)))
        margin = _nearer(both, side == fewer)[: len(members)]
        # Squashed to (0, 1) by a function that, unlike a probability, still tells large margins apart.
        membership[members] = (1 + margin / (1 + np.abs(margin))) / 2
        suspicious[members] = side[: len(members)] == fewer
    flagged = suspicious & (anomaly_index(ratios) > threshold)[label_of]
    rule = f"the subgroup with fewer trusted images, of classes with an anomaly index above {threshold:g}"
    values = (ratios[label_of] * membership).astype(np.float32)
    return Scores(values, forward_passes=1, assumption=ASSUMPTION, flagged=flagged, rule=rule)


def covariances(rows: Real, labels: IntArray, *, tolerance: float = 1e-5) -> tuple[Real, Real]:
    """Covariances of the classes' means and of the variation within classes, float64 [d, d] twice.

    Expectation maximisation (section 4.2 of the paper; the joint model of Chen et al., "Bayesian Face Revisited", 2012):
    means are estimated given the covariances, and covariances given the means.

    Args:
        rows: features of clean samples, [n, d].
        labels: their labels, [n].
        tolerance: change of both covariances, in Frobenius norm, at which the iteration ends.
    """
    rows = rows - rows.mean(0)
    classes, which, counts = np.unique(labels, return_inverse=True, return_counts=True)
    sums = np.stack([rows[which == place].sum(0) for place in range(len(classes))])
    means = sums / counts[:, None]
    between, within = np.atleast_2d(np.cov(means[which].T)), np.atleast_2d(np.cov((rows - means[which]).T))
    for _ in range(MOST):
        # A class's mean given its samples, as `null_mean`.
        means = np.stack([_shrunk(total, count, between, within) for total, count in zip(sums, counts, strict=True)])
        last = between, within
        between, within = np.atleast_2d(np.cov(means[which].T)), np.atleast_2d(np.cov((rows - means[which]).T))
        if np.linalg.norm(between - last[0]) + np.linalg.norm(within - last[1]) <= tolerance:
            break
    return between, within


def null_mean(rows: Real, between: Real, within: Real) -> Real:
    """The mean of a class of one group given its samples [n, d], whose prior is the covariance between classes: [d]."""
    return _shrunk(rows.sum(0), len(rows), between, within)


def _shrunk(total: Real, count: int, between: Real, within: Real) -> Real:
    """The posterior mean between (count between + within)^-1 total."""
    return between @ np.linalg.pinv(count * between + within, hermitian=True) @ total


def split(rows: Real, seed: int) -> Mask:
    """The class in two so that samples lie closest to the means of their subgroups: the subgroup of each, [n].

    Args:
        rows: features of the class, [n, d], in units of the variation within classes.
        seed: seed of the starts; the best of ten, where the published code has one.
    """
    # Here and not above: every detector's stage imports the table of detectors, and scikit-learn takes two seconds.
    from sklearn.cluster import KMeans

    if len(np.unique(rows, axis=0)) < 2:
        return np.zeros(len(rows), bool)
    side: Mask = KMeans(2, n_init=10, random_state=seed).fit_predict(rows) == 1
    return side


def _nearer(rows: Real, side: Mask) -> Real:
    """How much nearer a sample is to the mean of the subgroup `side` than to that of the rest, in squared distance: [n]."""
    own, rest = (((rows - rows[part].mean(0)) ** 2).sum(1) for part in (side, ~side))
    return rest - own


def likelihood_ratio(rows: Real, side: Mask, mean: Real) -> float:
    """Twice the log-likelihood ratio per sample of two subgroups against one group around `mean`; rows as in `split`."""
    means = np.where(side[:, None], rows[side].mean(0), rows[~side].mean(0))
    return float((((rows - mean) ** 2).sum(1) - ((rows - means) ** 2).sum(1)).mean())


def anomaly_index(ratios: Real) -> Real:
    """How far above the median a class's ratio lies, in units of 1.4826 times the median deviation, [classes]."""
    above = ratios - np.median(ratios)
    return above / np.maximum(1.4826 * np.median(np.abs(above)), np.finfo(np.float64).tiny)


def _needs_trusted(*, threshold: float = 7.389) -> int:
    return LEAST


DETECTOR = Detector(score=score, needs_trusted=_needs_trusted, texts=True)
