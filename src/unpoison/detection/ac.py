"""Activation Clustering (Chen et al., "Detecting Backdoor Attacks on Deep Neural Networks by Activation Clustering", 2018).

Per class, the penultimate features are split in two clusters; poison is expected to form the small, compact one.
"""

from __future__ import annotations

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_samples

from ..data.imageset import ImageSet
from ..hyperparameters import Count
from ..models.classifier import Classifier
from ..seeding import derive
from ..training.inference import features_of
from .scores import Scores


def score(
    model: Classifier,
    data: ImageSet,
    reserve: ImageSet,
    *,
    seed: int = 0,
    components: Count = 10,
) -> Scores:
    """Silhouette of a sample in its class's two-cluster split, positive in the smaller cluster, negative in the larger.

    Args:
        model: the suspect classifier.
        data: the suspect training set; its labels say the class.
        reserve: not used.
        seed: of k-means.
        components: dimensions kept by PCA (10 in the paper, which uses ICA; 0 is not offered).

    The smaller cluster is the suspect one in the paper (section 4.3): where half of a class is poison, as all2one at
    10 % makes it with ten classes, the rule has nothing to go by. The public CD code scores the silhouette alone.
    """
    features = features_of(model, data, what="ac").numpy()
    values = np.zeros(len(data), np.float32)
    for label in np.unique(data.labels):
        members = np.flatnonzero(data.labels == label)
        if len(members) < 3:
            continue  # two clusters need three samples to tell anything; their score stays 0, the neutral value
        rows = features[members]
        kept = min(components, len(members), rows.shape[1])
        rows = PCA(kept, svd_solver="full").fit_transform(rows)
        clusters = KMeans(2, n_init=10, random_state=derive(seed, "ac", int(label)) % 2**32).fit_predict(rows)
        if len(np.unique(clusters)) < 2:
            continue  # identical features cannot be split
        silhouette = silhouette_samples(rows, clusters)
        smaller = int(np.bincount(clusters, minlength=2).argmin())
        values[members] = np.where(clusters == smaller, silhouette, -silhouette)
    return Scores(values, forward_passes=1)
