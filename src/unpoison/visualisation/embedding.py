"""The penultimate features of training samples in the plane: principal components, and t-SNE.

Van der Maaten and Hinton, "Visualizing Data using t-SNE" (2008), by scikit-learn (Barnes-Hut). BackdoorBench draws poisoned
samples as a class of its own, whose label is then not to be seen; here they keep the colour of the label that they were given,
under a cross. t-SNE begins at the principal components and runs in one thread, whose sums have one order on every machine.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Le
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from ..core.errors import ParameterError
from ..core.seeding import derive, numpy_rng
from ..data.drawings import Drawing, Picture
from . import plots
from .figure import Figure, Scene, csv_of, file_name, outputs

Points = NDArray[np.float64]


def draw(
    scene: Scene,
    *,
    seed: int = 0,
    samples: Annotated[int, Ge(10), Le(20_000)] = 1000,
    perplexity: Annotated[float, Gt(1), Le(1000)] = 30.0,
) -> Drawing:
    """Two pictures for each model, from the features of the same samples.

    Args:
        seed: seed for the samples and for t-SNE.
        samples: training samples that are drawn, at most; time and memory of t-SNE grow with them.
        perplexity: of t-SNE: about how many neighbours a sample has; fewer than the samples.
    """
    index = np.sort(numpy_rng(seed, "embedding/samples").permutation(len(scene.data))[:samples])
    if perplexity >= len(index):
        raise ParameterError(
            f"perplexity: {perplexity:g} given, allowed: less than {len(index)}, the number of samples that are drawn"
        )
    data = scene.data.subset(index)
    poisoned = None if scene.poisoned is None else scene.poisoned[index]
    columns: dict[str, object] = {"sample": index, "label": data.labels}
    if poisoned is not None:
        columns["poisoned"] = poisoned.astype(int)
    pictures, tables = [], {}
    for name, model in scene.models.items():
        _, features = outputs(model, data, "embedding")
        flat, share = principal(features.astype(np.float64))
        near = neighbours(features.astype(np.float64), flat, perplexity, derive(seed, "embedding/tsne") % 2**32)
        captions = {"pca": f"{name}: two principal components, {share:.0%} of the variance", "tsne": f"{name}: t-SNE"}
        for kind, points in (("pca", flat), ("tsne", near)):
            png = plots.scatter(points, data.labels, poisoned, data.classes)
            pictures.append(Picture(name=file_name(name, kind), png=png, caption=captions[kind]))
        of_model = {f"{kind}_{n + 1}": points[:, n] for kind, points in (("pca", flat), ("tsne", near)) for n in (0, 1)}
        tables[file_name(name)] = csv_of({**columns, **of_model})
    words = f"Penultimate features of {len(index):,} training samples as received, a colour for each label."
    if poisoned is not None:
        words += f" Crosses: the {int(poisoned.sum()):,} poisoned ones among them."
    return Drawing(caption=f"{words} Distances between groups mean little in t-SNE.", pictures=pictures, tables=tables)


def principal(features: Points) -> tuple[Points, float]:
    """The first two principal components of rows [n, d], float64 [n, 2], and their share of the variance.

    The largest weight of a component is positive, so that the picture has one orientation.
    """
    centred = features - features.mean(0)
    _, lengths, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:2] * np.sign(axes[np.arange(min(2, len(axes))), np.abs(axes[:2]).argmax(1)])[:, None]
    total = float((lengths**2).sum())
    points = np.zeros((len(features), 2))
    points[:, : len(axes)] = centred @ axes.T
    return points, float((lengths[:2] ** 2).sum()) / total if total else 0.0


def neighbours(features: Points, start: Points, perplexity: float, seed: int) -> Points:
    """t-SNE of rows [n, d] from a start [n, 2], float64 [n, 2]."""
    spread = start[:, 0].std()
    # Small, as the method's authors advise; rows that are all alike have no components to begin at.
    begin = start / spread * 1e-4 if spread else np.random.default_rng(seed).normal(size=start.shape) * 1e-4
    with threadpool_limits(1):
        method = TSNE(2, perplexity=perplexity, init=begin.astype(np.float32), random_state=seed, n_jobs=1)
        placed: Points = method.fit_transform(features).astype(np.float64)
    return placed


FIGURE = Figure(draw=draw, needs="nothing")
