"""Separation: the group of a class that stands farthest apart from its rest, without trusted images.

This project's own, for data of unknown origin, out of two published ideas: variation within classes is the same for all of
them (SCAn, Tang et al., USENIX Security 2021, section 4), and poison forms a group of its own in its class (AC, Chen et al.,
2018). SCAn estimates that variation from trusted images. Here it is estimated from the *other* classes as received, which poison
that goes to one class has not reached; and what is compared is how far a group stands apart, not how much better two means
explain the class, as that grows with every class that has two halves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..compute.finite import check_finite
from ..core.arrays import IntArray, Mask
from ..core.hyperparameters import Count, NonNegative
from ..core.seeding import derive, numpy_rng
from ..data.scores import Assumption, Scores
from .covariance import root_of_inverse
from .detector import Detector, Suspect

Real = NDArray[np.float64]

ASSUMPTION = Assumption("takes it that poison goes to few classes and is less than half of each", least_share=0.45)
CLUSTERS = (2, 3, 4, 6, 8)
"""Numbers of clusters that a class is split into; each cluster is a candidate. A small group is none of two halves."""
HALVES = 5
"""Draws of two halves, one of which gives the direction that the other is measured along."""


def score(
    suspect: Suspect,
    *,
    seed: int = 0,
    threshold: NonNegative = 4.2,
    components: Count = 10,
    least: Count = 6,
) -> Scores:
    """How far at least the most separate group of a sample's class stands apart, times the sample's membership in it (0 to 1).

    Args:
        seed: seed of the starts of the clusters and of the halves.
        threshold: separation above which the rule flags a group. Halves of a normal distribution are 2.7 standard
            deviations apart, the most separate groups of clean classes 2.0 to 4.1 (docs/scan.md).
        components: principal components of a class in which its groups are looked for.
        least: fewest samples of a group.

    A group's separation is the distance of its mean from that of the rest of the class, in standard deviations about the
    two, along the line through both. The line is found on one half of the class and measured on the other: along the best
    of a hundred directions any small class falls in two. Of that the lower bound counts, as some few samples of a class often
    lie far out by chance. Where a class is too small for a group, samples score by their distance
    from its mean, as a share of the largest.
    """
    values, flagged = np.zeros(len(suspect.data)), np.zeros(len(suspect.data), bool)
    for found in groups_of(suspect, seed=seed, components=components, least=least, what="separation"):
        values[found.members] = found.scores
        flagged[found.members] = found.belonging & (found.apart >= threshold)
    rule = f"the groups that stand at least {threshold:g} standard deviations apart from the rest of their class"
    return Scores(values.astype(np.float32), forward_passes=1, assumption=ASSUMPTION, flagged=flagged, rule=rule)


@dataclass(frozen=True)
class Group:
    """The most separate group of a class.

    Attributes:
        label: the class.
        members: samples of the class, int64 [m].
        belonging: which of them lie on the group's side, [m]; none where the class is too small for a group.
        scores: the group's separation times each sample's membership, or what takes its place, float64 [m].
        apart: lower bound of the separation; 0 without a group.
    """

    label: int
    members: IntArray
    belonging: Mask
    scores: Real
    apart: float


def groups_of(suspect: Suspect, *, seed: int, components: int, least: int, what: str) -> Iterator[Group]:
    """The most separate group of each class, class by class; arguments as for `score`, and the detector's name for errors."""
    rows, labels = suspect.features.penultimate[np.arange(len(suspect.data))].astype(np.float64), suspect.data.labels
    check_finite(what, rows, "features")
    for label, root in within_others(rows, labels).items():
        members = np.flatnonzero(labels == label)
        of_class = rows[members] @ root
        group = most_separate(of_class, components, least, derive(seed, "separation/clusters", label) % 2**32)
        if group is None:
            distances = np.linalg.norm(of_class - of_class.mean(0), axis=1)
            yield Group(label, members, np.zeros(len(members), bool), distances / max(distances.max(), 1e-12), 0.0)
            continue
        rng = numpy_rng(seed, "separation/halves", label)
        apart = at_least(held_out(of_class, group, components, rng), group)
        belongs = membership(of_class, group, components)
        # The largest membership is made 1, so that a class's largest score is its group's separation.
        yield Group(label, members, belongs > 0.5, apart * belongs / belongs.max(), apart)


def within_others(rows: Real, labels: IntArray) -> dict[int, Real]:
    """By class the symmetric root of the inverse covariance within all other classes, [d, d].

    Args:
        rows: features, [n, d].
        labels: labels, [n].

    The covariance is shrunk towards a multiple of the identity (Ledoit and Wolf, "A well-conditioned estimator for
    large-dimensional covariance matrices", 2004), as there may be fewer samples than features. Of a single class there are
    no others, and its own takes their place.
    """
    # Here and not above: every detector's stage imports the table of detectors, and scikit-learn takes two seconds.
    from sklearn.covariance import ledoit_wolf_shrinkage

    classes, which, counts = np.unique(labels, return_inverse=True, return_counts=True)
    means = np.stack([rows[which == place].mean(0) for place in range(len(classes))])
    centred = rows - means[which]
    shrinkage = float(ledoit_wolf_shrinkage(centred, assume_centered=True))
    scatter, identity, roots = centred.T @ centred, np.eye(rows.shape[1]), {}
    for place, label in enumerate(classes):
        own = centred[which == place]
        others = len(rows) - counts[place]
        covariance = (scatter - own.T @ own) / others if others else scatter / len(rows)
        scale = np.trace(covariance) / len(covariance)
        roots[int(label)] = root_of_inverse((1 - shrinkage) * covariance + shrinkage * scale * identity)
    return roots


def most_separate(rows: Real, components: int, least: int, seed: int) -> Mask | None:
    """The candidate with the largest separation, [n], at least `least` samples and at most ASSUMPTION's share; or None."""
    from sklearn.cluster import KMeans

    points = _reduced(rows, rows, components)
    best, farthest = None, 0.0
    for count in CLUSTERS:
        if len(np.unique(points, axis=0)) <= count:
            break
        clusters = KMeans(count, n_init=5, random_state=seed).fit_predict(points)
        for cluster in range(count):
            group: Mask = clusters == cluster
            if not least <= group.sum() <= ASSUMPTION.least_share * len(rows):
                continue
            apart = separation(points @ _between(points, group), group)
            if apart > farthest:
                best, farthest = group, apart
    return best


def held_out(rows: Real, group: Mask, components: int, rng: np.random.Generator) -> float:
    """Mean separation of a group along lines that were found without the samples that are measured."""
    found = []
    for _ in range(HALVES):
        first = np.zeros(len(rows), bool)
        first[rng.permutation(len(rows))[::2]] = True
        for half in (first, ~first):
            # A half with one of the group has no line, or nothing to measure.
            if min((group & half).sum(), (group & ~half).sum()) > 1:
                points = _reduced(rows, rows[half], components)
                line = _between(points[half], group[half])
                found.append(separation((points @ line)[~half], group[~half]))
    return float(np.mean(found)) if found else 0.0


def at_least(apart: float, group: Mask) -> float:
    """One-sided 95 % lower bound of a separation, 0 or more, by the sizes of the group and of the rest.

    Hedges and Olkin, "Statistical Methods for Meta-Analysis", 1985, chapter 5: the variance of a difference of means in
    standard deviations.
    """
    few, rest = int(group.sum()), int((~group).sum())
    variance = (few + rest) / (few * rest) + apart**2 / (2 * (few + rest))
    return max(0.0, apart - 1.645 * float(np.sqrt(variance)))


def membership(rows: Real, group: Mask, components: int) -> Real:
    """How far a sample lies on the group's side of the middle between group and rest, squashed to (0, 1), [n]."""
    points = _reduced(rows, rows, components)
    line = _between(points, group)
    places = points @ line
    middle = (places[group].mean() + places[~group].mean()) / 2
    # In standard deviations: one beyond the middle is .88, two are .98.
    units = (places - middle) / max(_deviation(places, group), 1e-12)
    shares: Real = 1 / (1 + np.exp(-np.clip(2 * units, -50, 50)))
    return shares


def separation(places: Real, group: Mask) -> float:
    """Distance of the two means of places [n] on a line, in standard deviations about them."""
    return float((places[group].mean() - places[~group].mean()) / max(_deviation(places, group), 1e-12))


def _deviation(places: Real, group: Mask) -> float:
    spread = places[group].var() * group.sum() + places[~group].var() * (~group).sum()
    return float(np.sqrt(spread / len(places)))


def _between(points: Real, group: Mask) -> Real:
    line: Real = points[group].mean(0) - points[~group].mean(0)
    return line


def _reduced(rows: Real, part: Real, components: int) -> Real:
    """Rows [n, d] in the principal components of a part of them."""
    centre = part.mean(0)
    centred = part - centre
    # The leading eigenvectors of the d x d Gram matrix, which is cheaper than a decomposition of all rows; `eigh` sorts upwards.
    directions = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :components]
    return (rows - centre) @ directions


DETECTOR = Detector(score=score, texts=True)
