"""What each penultimate neuron answers to: its mean activation by the images' true class, and on triggered images.

BackdoorBench draws the mean of each neuron over clean and over poisoned images in separate charts; here every class has a row, so
that the neurons of the target class and those of the trigger can be told apart.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ..compute.inference import passes
from ..core.arrays import IntArray
from ..data.drawings import Drawing, Picture
from ..data.features import Rows
from ..data.imageset import ImageSet
from ..models.classifier import Classifier
from ..reporting.escaping import spreadsheet
from . import plots
from .figure import Figure, Scene, csv_of, file_name

Means = NDArray[np.float64]
TRIGGERED = "triggered"


def draw(scene: Scene) -> Drawing:
    """A map for each model, a row per class and one of the triggered images, a column per neuron."""
    classes = scene.test.classes
    pictures, tables = [], {}
    for name, model in scene.models.items():
        means = class_means(_batches(model, scene.test), len(classes), model.head.in_features)
        rows = list(classes)
        if scene.has_trigger:
            of_trigger = (
                (np.zeros(len(features), np.int64), features)
                for images, _ in scene.triggered_sets()
                for _, features in _batches(model, images)
            )
            means = np.concatenate([means, class_means(of_trigger, 1, model.head.in_features)])
            rows.append(TRIGGERED)
        order = ordered(means[: len(classes)])
        largest = np.nanmax(np.abs(means), axis=0)
        png = plots.class_map(
            means[:, order] / np.maximum(largest[order], 1e-12),
            rows,
            "class",
            "penultimate neuron, by the class that it answers to most",
        )
        caption = f"{name}: mean activation, each neuron in units of its largest"
        pictures.append(Picture(name=file_name(name), png=png, caption=caption, wide=True))
        # Neurons in the picture's order; a class without an image has empty cells.
        columns = {f"neuron_{neuron}": means[:, neuron] for neuron in order.tolist()}
        tables[file_name(name)] = csv_of({"class": list(map(spreadsheet, rows)), **columns})
    words = "Mean activation of each penultimate neuron over the clean test images of each class"
    if scene.has_trigger:
        words += (
            "; last row: over the triggered images, whatever their class. What is bright in it alone is the trigger's"
        )
    return Drawing(caption=f"{words}.", pictures=pictures, tables=tables)


def _batches(model: Classifier, data: ImageSet) -> Iterable[tuple[IntArray, Rows]]:
    """True labels and features, batch by batch."""
    seen = 0
    for _, features in passes(model, data, what="neurons"):
        yield data.labels[seen : seen + len(features)], features
        seen += len(features)


def class_means(batches: Iterable[tuple[IntArray, Rows]], classes: int, width: int) -> Means:
    """Mean features by label, float64 [classes, width], NaN of a class without a sample.

    Args:
        batches: labels int64 [b], and features float32 [b, width].
        classes: number of labels.
        width: number of features.
    """
    sums, counts = np.zeros((classes, width)), np.zeros(classes)
    for labels, features in batches:
        np.add.at(sums, labels, features.astype(np.float64))
        counts += np.bincount(labels, minlength=classes)
    means: Means = np.full((classes, width), np.nan)
    means[counts > 0] = sums[counts > 0] / counts[counts > 0, None]
    return means


def ordered(means: Means) -> IntArray:
    """Neurons by the class with their largest mean, and within a class by that mean, largest first: int64 [width]."""
    known = np.where(np.isnan(means), -np.inf, means)
    return np.lexsort((-known.max(0), known.argmax(0)))


FIGURE = Figure(draw=draw)
