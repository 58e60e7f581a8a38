"""Activation Clustering (Chen et al., "Detecting Backdoor Attacks on Deep Neural Networks by Activation Clustering", 2018).

Per class, the penultimate features are split in two clusters; poison is expected to form the small, compact one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..core.hyperparameters import Count
from ..core.seeding import derive
from ..data.features import Features
from ..data.imageset import ImageSet
from ..data.scores import Assumption, Scores
from ..models.classifier import Classifier
from .detector import Detector

ASSUMPTION = Assumption("takes the smaller of two clusters of a class for the poison", least_share=0.25)
EXACT = 10_000
"""Classes up to this size get exact silhouettes."""


def score(
    model: Classifier,
    data: ImageSet,
    reserve: ImageSet,
    features: Features,
    *,
    seed: int = 0,
    components: Count = 10,
) -> Scores:
    """Silhouette of a sample in its class's two-cluster split, positive in the smaller cluster, negative in the larger.

    Args:
        model: not used.
        data: the suspect training set; its labels say the class.
        reserve: not used.
        features: of the suspect classifier.
        seed: of k-means.
        components: dimensions kept by PCA (10 in the paper, which uses ICA; 0 is not offered).

    The smaller cluster is the suspect one in the paper (section 4.3): where half of a class is poison, as all2one at
    10 % makes it with ten classes, the rule has nothing to go by. The public CD code scores the silhouette alone.
    Past `EXACT` samples in a class, mean distances are those to a random part of each cluster: all pairs of 100,000
    samples would take hours, and time is to grow with the samples, not with their square.
    """
    # Here and not above: every detector's stage imports the table of detectors, and scikit-learn takes two seconds.
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    values = np.zeros(len(data), np.float32)
    for label in np.unique(data.labels):
        members = np.flatnonzero(data.labels == label)
        if len(members) < 3:
            continue  # two clusters need three samples to tell anything; their score stays 0, the neutral value
        rows = features.penultimate[members]
        kept = min(components, len(members), rows.shape[1])
        rows = PCA(kept, svd_solver="full").fit_transform(rows)
        drawn_from = derive(seed, "ac", int(label)) % 2**32
        clusters = KMeans(2, n_init=10, random_state=drawn_from).fit_predict(rows)
        if len(np.unique(clusters)) < 2:
            continue  # identical features cannot be split
        silhouette = silhouettes(rows, clusters, np.random.default_rng(drawn_from))
        smaller = int(np.bincount(clusters, minlength=2).argmin())
        values[members] = np.where(clusters == smaller, silhouette, -silhouette)
    return Scores(values, forward_passes=1, assumption=ASSUMPTION)


def silhouettes(
    rows: NDArray[np.float32], clusters: NDArray[np.int32], rng: np.random.Generator, *, exact: int = EXACT
) -> NDArray[np.float64]:
    """Silhouette of each sample of a split in two (Rousseeuw 1987).

    Args:
        rows: [n, d].
        clusters: [n], 0 or 1, both present.
        rng: draws the part of each cluster that distances are measured to, `exact` / 2 samples at most.
        exact: up to that many samples, all distances are measured.
    """
    from scipy.spatial.distance import cdist
    from sklearn.metrics import silhouette_samples

    if len(rows) <= exact:
        return silhouette_samples(rows, clusters)
    means = np.empty((len(rows), 2))
    for cluster in (0, 1):
        members = np.flatnonzero(clusters == cluster)
        part = rng.permutation(members)[: exact // 2]
        for start in range(0, len(rows), 4096):
            means[start : start + 4096, cluster] = cdist(rows[start : start + 4096], rows[part]).sum(1)
        # A sample is no neighbour of its own: where it was drawn, one distance fewer was measured (its own, 0).
        drawn = np.isin(np.arange(len(rows)), part)
        means[:, cluster] /= np.maximum(len(part) - drawn, 1)
    own, other = means[np.arange(len(rows)), clusters], means[np.arange(len(rows)), 1 - clusters]
    alone = np.bincount(clusters, minlength=2)[clusters] == 1
    return np.where(alone, 0.0, (other - own) / np.maximum(np.maximum(own, other), 1e-12))


DETECTOR = Detector(score=score)
