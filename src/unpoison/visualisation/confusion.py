"""Confusion matrices: true against predicted labels of clean and of triggered test images."""

from __future__ import annotations

import numpy as np

from ..compute.inference import logits_of
from ..core.arrays import IntArray
from ..data.drawings import Drawing, Picture
from ..reporting.escaping import spreadsheet
from . import plots
from .figure import Figure, Scene, csv_of, file_name


def draw(scene: Scene) -> Drawing:
    """A matrix for each model and kind of images."""
    classes = scene.test.classes
    names = np.array(list(map(spreadsheet, classes)), object)
    pictures, tables = [], {}
    for name, model in scene.models.items():
        found = {"clean": counts(scene.test.labels, logits_of(model, scene.test).argmax(1).numpy(), len(classes))}
        if scene.has_trigger:
            found["triggered"] = sum(
                (
                    counts(true, logits_of(model, images).argmax(1).numpy(), len(classes))
                    for images, true in scene.triggered_sets()
                ),
                np.zeros((len(classes), len(classes)), np.int64),
            )
        columns: dict[str, list[object]] = {"images": [], "true": [], "predicted": [], "count": []}
        for kind, cells in found.items():
            shares = cells / np.maximum(1, cells.sum(1, keepdims=True))
            right = np.trace(cells) / max(1, cells.sum())
            caption = f"{name}: {cells.sum():,} {kind} test images, {right:.1%} with their true label"
            png = plots.matrix(shares, cells, classes)
            pictures.append(Picture(name=file_name(name, kind), png=png, caption=caption))
            # Of a thousand classes most cells hold nothing.
            true, predicted = np.nonzero(cells)
            columns["images"] += [kind] * len(true)
            columns["true"] += names[true].tolist()
            columns["predicted"] += names[predicted].tolist()
            columns["count"] += cells[true, predicted].tolist()
        tables[file_name(name)] = csv_of(columns)
    words = "Test images by true label, down, and predicted one, across; the colour is the share of the row."
    if scene.has_trigger:
        words += " Triggered images stand in the row of their true label: the attacker's target is a column."
    return Drawing(caption=words, pictures=pictures, tables=tables)


def counts(true: IntArray, predicted: IntArray, classes: int) -> IntArray:
    """Number of images by true label, the rows, and predicted one, int64 [classes, classes]."""
    return np.bincount(true * classes + predicted, minlength=classes**2).reshape(classes, classes).astype(np.int64)


FIGURE = Figure(draw=draw)
