"""Figures of the report: matplotlib to PNG bytes. PNG, because matplotlib's SVG and PDF are not byte-stable."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from . import escaping

# Draws into memory, without a display.
matplotlib.use("Agg")

CLEAN, POISON = "#3b6fb6", "#c8442f"
COLOURS = ("#3b6fb6", "#c8442f", "#3d9152", "#8a5fb0", "#b58a1b", "#4aa3a8", "#7d7d7d", "#d36ba6")

Array = NDArray[np.float64]


def _png(figure: Figure) -> bytes:
    # Without matplotlib's version, which would change the bytes with every release.
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()


# Figures are made without pyplot, which would keep every one of them open.
def _axes(width: float = 5.2, height: float = 3.6) -> tuple[Figure, matplotlib.axes.Axes]:
    figure = Figure(figsize=(width, height))
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def _label(text: str) -> str:
    """Lines for a figure. With a space in front of an underscore, which would keep a label out of the legend."""
    label = "\n".join(map(escaping.figure, text.split("\n")))
    return f" {label}" if label.startswith("_") else label


def contact_sheet(rows: Mapping[str, NDArray[np.uint8]], columns: Sequence[str]) -> bytes:
    """A row of images per name, uint8 [columns, h, w, c], with the same sample in each column."""
    # An inch or so per image and room for the names at the left, whatever the numbers of rows and columns.
    figure = Figure(figsize=(1.05 * len(columns) + 1.4, 1.08 * len(rows) + 0.4))
    grid = figure.subplots(len(rows), len(columns), squeeze=False, gridspec_kw={"wspace": 0.04, "hspace": 0.04})
    for line, (name, images) in zip(grid, rows.items(), strict=True):
        for axes, image in zip(line, images, strict=True):
            # Nearest neighbour: a trigger of single pixels must not be smoothed away.
            axes.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        line[0].set_ylabel(_label(name), rotation=0, ha="right", va="center", fontsize=9)
    for axes, title in zip(grid[0], columns, strict=True):
        axes.set_title(_label(title), fontsize=8)
    return _png(figure)


def histogram(values: Array, poisoned: NDArray[np.bool_] | None, title: str) -> bytes:
    """Scores of all samples, or of clean and of poisoned ones, each as a share of its own kind."""
    figure, axes = _axes(4.2, 2.9)
    # The same bins for both kinds; the small term gives constant scores a bin of some width.
    bins: list[float] = np.linspace(values.min(), values.max() + 1e-9, 50).tolist()
    kinds = {"all": (values, CLEAN)}
    if poisoned is not None:
        kinds = {"clean": (values[~poisoned], CLEAN), "poisoned": (values[poisoned], POISON)}
    for name, (part, colour) in kinds.items():
        # Shares, not counts: at 1 % poison its bars would be invisible beside the clean ones.
        weights = np.full(len(part), 1 / max(1, len(part)))
        axes.hist(part, bins, weights=weights, alpha=0.6, color=colour, label=f"{name} ({len(part)})")
    axes.set(title=_label(title), xlabel="score (higher = more suspicious)", ylabel="share of its kind")
    axes.legend(frameon=False, fontsize=8)
    return _png(figure)


def roc(fpr: Array, curves: Mapping[str, Array]) -> bytes:
    """True against false positive rate, the latter on a log scale: a user can bear few false alarms."""
    figure, axes = _axes()
    # Steps, as nothing lies between two thresholds; the first point is a rate of 0, which has no place on a log scale.
    for (name, tpr), colour in zip(curves.items(), cycle(COLOURS), strict=False):
        axes.plot(fpr[1:], tpr[1:], label=_label(name), color=colour, drawstyle="steps-post")
    axes.plot(fpr[1:], fpr[1:], color="0.6", linestyle=":", label="chance")
    axes.set(xscale="log", xlim=(1e-3, 1), ylim=(0, 1.02), xlabel="false positive rate", ylabel="true positive rate")
    axes.legend(frameon=False, fontsize=8)
    return _png(figure)


def acc_against_asr(points: Mapping[str, tuple[float, float]]) -> bytes:
    """Clean accuracy and attack success rate of each model; the best corner is the lower right."""
    figure, axes = _axes()
    for (name, (acc, asr)), colour in zip(points.items(), cycle(COLOURS), strict=False):
        axes.scatter(acc, asr, s=60, color=colour, label=_label(name), zorder=3)
    axes.set(xlabel="ACC (clean test images)", ylabel="ASR (triggered test images)", ylim=(-0.05, 1.05))
    # From 0.8, or further left where a model lies there, so that plots of good models compare at a glance.
    lowest = min(acc for acc, _ in points.values())
    axes.set_xlim(min(0.8, lowest - 0.05), 1.0)
    axes.legend(frameon=False, fontsize=8, loc="center left")
    return _png(figure)


def training_curves(
    curves: Mapping[str, tuple[NDArray[Any], NDArray[Any]]], ylabel: str, *, log: bool = False
) -> bytes:
    """Lines over epochs or steps, by name."""
    figure, axes = _axes(4.2, 2.9)
    for (name, (x, y)), colour in zip(curves.items(), cycle(COLOURS), strict=False):
        axes.plot(x, y, label=_label(name), color=colour)
    axes.set(xlabel="epoch", ylabel=ylabel, yscale="log" if log else "linear")
    axes.legend(frameon=False, fontsize=8)
    return _png(figure)


def thumbnail(image: NDArray[np.uint8]) -> bytes:
    """One image uint8 [h, w, c] as a PNG of at most 64 pixels per side."""
    from PIL import Image

    # Box filter: small images keep their pixels, large ones are averaged.
    picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
    picture.thumbnail((64, 64), Image.Resampling.BOX)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def heat(masks: NDArray[np.float16]) -> NDArray[np.uint8]:
    """Masks [n, h, w] in [0, 1] as images uint8 [n, h, w, 3], from white (not needed) to blue (kept)."""
    colours: NDArray[np.uint8] = (matplotlib.colormaps["Blues"](masks.astype(float))[..., :3] * 255).astype(np.uint8)
    return colours
