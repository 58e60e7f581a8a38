"""Activation Clustering (Chen et al., "Detecting Backdoor Attacks on Deep Neural Networks by Activation Clustering", 2018).

The penultimate features of each class are split into two clusters; poison is expected to form the small, compact one.

Published code of a port, with the silhouette alone as the score, no reduction of dimensions, and k-means from its library's
default starts without a seed:
https://github.com/HanxunH/CognitiveDistillation/blob/6aba6f9/analysis/activation_clustering.py
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..compute.finite import check_finite
from ..core.hyperparameters import Count, Fraction
from ..core.seeding import derive
from ..data.scores import Assumption, Scores
from .detector import Detector, Suspect

# From a quarter of a class on, poison is no clear minority, and which of the two clusters is the smaller is left to chance.
ASSUMPTION = Assumption("takes the smaller of two clusters of a class for the poison", least_share=0.25)
EXACT = 10_000
"""Largest class with exact silhouettes."""


def score(
    suspect: Suspect,
    *,
    seed: int = 0,
    components: Count = 10,
    smaller_than: Fraction = 0.35,
) -> Scores:
    """Silhouette of a sample in its class's two-cluster split, positive in the smaller cluster, negative in the larger.

    Args:
        seed: seed for k-means and for the samples that distances are measured to.
        components: dimensions kept by PCA; the paper keeps 10, by ICA. 0, the features as they are, is not offered.
        smaller_than: share of its class below which the rule flags the smaller cluster; 0.35 in public implementations.

    The smaller cluster is the suspect one in the paper (section 4.3); of two equal ones neither is, and all score 0. Where
    half of a class is poison, as all2one at 10 % makes it with ten classes, that rule has nothing to go by. Past `EXACT`
    samples in a class, mean distances are those to a random part of each cluster: all pairs of 100,000 samples would take
    hours, and time should grow with the number of samples, not with its square.
    """
    # Here and not above: every detector's stage imports the table of detectors, and scikit-learn takes two seconds.
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    data, values = suspect.data, np.zeros(len(suspect.data), np.float32)
    flagged = np.zeros(len(data), bool)
    for label in np.unique(data.labels):
        members = np.flatnonzero(data.labels == label)
        rows = suspect.features.penultimate[members]
        check_finite("ac", rows, f"features (label {data.classes[label]})")
        if len(members) < 3:
            continue  # two clusters need three samples to tell anything; their score stays 0, the neutral value
        # A model that all but diverged has features whose squares overflow. Silhouettes do not depend on the scale.
        if (largest := np.abs(rows).max()) > 1e12:
            rows = rows / largest
        # Step 1 of the paper: few dimensions, as distances in hundreds of them hardly differ. A small class has fewer.
        kept = min(components, len(members), rows.shape[1])
        rows = PCA(kept, svd_solver="full").fit_transform(rows)
        # Step 2: two clusters. The seed is the class's own, so another class's size does not shift its split.
        drawn_from = derive(seed, "ac", int(label)) % 2**32
        clusters = KMeans(2, n_init=10, random_state=drawn_from).fit_predict(rows)
        if len(np.unique(clusters)) < 2:
            continue  # identical features cannot be split
        # Step 3: how well a sample sits in its cluster, and which cluster is the suspect one. The sign joins the two.
        silhouette = silhouettes(rows, clusters, np.random.default_rng(drawn_from))
        sizes = np.bincount(clusters, minlength=2)
        if sizes[0] == sizes[1]:
            continue  # which of two equal halves is numbered first is left to chance, so neither is suspect
        values[members] = np.where(clusters == sizes.argmin(), silhouette, -silhouette)
        if sizes.min() < smaller_than * len(members):
            flagged[members[clusters == sizes.argmin()]] = True
    rule = f"the smaller cluster of each class in which it has less than {smaller_than:.0%}"
    return Scores(values, forward_passes=1, assumption=ASSUMPTION, flagged=flagged, rule=rule)


def silhouettes(
    rows: NDArray[np.float32], clusters: NDArray[np.int32], rng: np.random.Generator, *, exact: int = EXACT
) -> NDArray[np.float64]:
    """Silhouette of each sample of a split into two (Rousseeuw 1987), float64 [n] in [-1, 1].

    Args:
        rows: features, [n, d].
        clusters: cluster of each sample, [n], 0 or 1, both present.
        rng: generator for the part of each cluster that distances are measured to, `exact` / 2 samples at most.
        exact: largest n with all distances measured.
    """
    from scipy.spatial.distance import cdist
    from sklearn.metrics import silhouette_samples

    if len(rows) <= exact:
        return silhouette_samples(rows, clusters)
    # Mean distance of every sample to either cluster, estimated from a random part of it, a block of rows at a time:
    # 4096 x 5000 distances take 160 MB, those of a class of 100,000 all at once 4 GB.
    means = np.empty((len(rows), 2))
    for cluster in (0, 1):
        members = np.flatnonzero(clusters == cluster)
        part = rng.permutation(members)[: exact // 2]
        for start in range(0, len(rows), 4096):
            means[start : start + 4096, cluster] = cdist(rows[start : start + 4096], rows[part]).sum(1)
        # A sample is not its own neighbour: where it was drawn itself, one distance fewer counts (its own, 0).
        drawn = np.isin(np.arange(len(rows)), part)
        means[:, cluster] /= np.maximum(len(part) - drawn, 1)
    # Rousseeuw's (b - a) / max(a, b): a the mean distance within, b that to the other cluster; 0 for a sample alone.
    own, other = means[np.arange(len(rows)), clusters], means[np.arange(len(rows)), 1 - clusters]
    alone = np.bincount(clusters, minlength=2)[clusters] == 1
    return np.where(alone, 0.0, (other - own) / np.maximum(np.maximum(own, other), 1e-12))


DETECTOR = Detector(score=score, texts=True)
