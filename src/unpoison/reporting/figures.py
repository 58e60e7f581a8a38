"""Figures of the report: matplotlib to PNG bytes. PNG, because matplotlib's SVG and PDF are not byte-stable."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from . import escaping

# Draws into memory, without a display.
matplotlib.use("Agg")

CLEAN, POISON = "#3b6fb6", "#c8442f"
COLOURS = ("#3b6fb6", "#c8442f", "#3d9152", "#8a5fb0", "#b58a1b", "#4aa3a8", "#7d7d7d", "#d36ba6")

Array = NDArray[np.float64]
DPI = 180
"""Of plots, which are shown at half that on a telephone and need letters of 12 pixels there."""
SHEET_DPI = 104
"""Of contact sheets, which are shown as large as they are: eight images in a row fill the page."""
BINS = 32
TAIL = 0.01
"""Share of the scores at either end that has no say in a histogram's range."""


class _Small(Figure):
    """A figure that is saved as large as it was made: the axes of small multiples lie at the same places."""


def png_of(figure: Figure) -> bytes:
    # Without matplotlib's version, which would change the bytes with every release.
    buffer = io.BytesIO()
    box = None if isinstance(figure, _Small) else "tight"
    figure.savefig(buffer, format="png", dpi="figure", bbox_inches=box, metadata={"Software": None})
    return buffer.getvalue()


# Figures are made without pyplot, which would keep every one of them open.
def _small_axes(height: float, left: float) -> tuple[Figure, matplotlib.axes.Axes]:
    # Shown at half its size and less, down to 150 pixels wide: few ticks, in large letters, and no words.
    figure = _Small(figsize=(2.5, height), dpi=130)
    axes = figure.add_axes((left, 0.3 / height, 0.94 - left, 1 - 0.4 / height))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=13, length=2, pad=2)
    return figure, axes


def axes_of(width: float = 4.0, height: float = 3.0, dpi: int = DPI) -> tuple[Figure, matplotlib.axes.Axes]:
    figure = Figure(figsize=(width, height), dpi=dpi)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def legend_below(axes: matplotlib.axes.Axes) -> None:
    """A legend under the plot: within it its dots would be taken for models, beside it long names would shrink the plot."""
    names = [text for text in axes.get_legend_handles_labels()[1] if text]
    columns = 2 if max(map(len, names), default=0) <= 18 else 1
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(-0.1, -0.18), ncols=columns, borderpad=0)


def label_of(text: str) -> str:
    """Lines for a figure. With a space in front of an underscore, which would keep a label out of the legend."""
    label = "\n".join(map(escaping.figure, text.split("\n")))
    return f" {label}" if label.startswith("_") else label


def contact_sheet(rows: Mapping[str, NDArray[np.uint8]], columns: Sequence[str]) -> bytes:
    """A row of images per name, uint8 [columns, h, w, c], with the same sample in each column."""
    # An inch or so per image and room for the names at the left, whatever the numbers of rows and columns.
    figure = Figure(figsize=(1.05 * len(columns) + 1.4, 1.08 * len(rows) + 0.4), dpi=SHEET_DPI)
    grid = figure.subplots(len(rows), len(columns), squeeze=False, gridspec_kw={"wspace": 0.04, "hspace": 0.04})
    for line, (name, images) in zip(grid, rows.items(), strict=True):
        for axes, image in zip(line, images, strict=True):
            # Nearest neighbour: a trigger of single pixels must not be smoothed away.
            axes.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        line[0].set_ylabel(label_of(name), rotation=0, ha="right", va="center", fontsize=9)
    for axes, title in zip(grid[0], columns, strict=True):
        axes.set_title(label_of(title), fontsize=8.5)
    return png_of(figure)


def histogram(values: Array, poisoned: NDArray[np.bool_] | None) -> bytes:
    """Scores of all samples, or of clean and of poisoned ones, each kind scaled to its tallest bar.

    The bins span what lies between the outer hundredths of each kind; scores beyond are counted in the outermost bins.

    Args:
        values: scores, finite, [n].
        poisoned: mask of the poisoned samples, [n]; None where it is not known.
    """
    kinds = {"all": (values, CLEAN)}
    if poisoned is not None:
        kinds = {"clean": (values[~poisoned], CLEAN), "poisoned": (values[poisoned], POISON)}
    edges = _edges([part for part, _ in kinds.values() if len(part)])
    figure, axes = _small_axes(1.4, 0.06)
    for name, (part, colour) in kinds.items():
        counts, _ = np.histogram(part.clip(edges[0], edges[-1]), edges)
        # Not counts: at 1 % poison its bars would be invisible; nor shares: one bar of all would flatten a wide hill.
        axes.stairs(counts / max(1, counts.max()), edges, fill=True, alpha=0.6, color=colour, label=name)
    axes.set(xlim=(edges[0], edges[-1]), ylim=(0, 1.05), yticks=[])
    # To a hundredth of their distance, and no minus in front of a 0.
    places = 2 - int(np.floor(np.log10(edges[-1] - edges[0])))
    ends = [float(edges[0]), float(edges[-1])]
    _label_ends(axes, ends, [f"{round(end, places) + 0.0:.6g}" for end in ends])
    return png_of(figure)


def _label_ends(axes: matplotlib.axes.Axes, places: Sequence[float], labels: Sequence[str]) -> None:
    """Ticks of the x-axis, from its left end to its right one; what stands at the ends stays within the axes' width."""
    axes.set_xticks(places, labels)
    axes.get_xticklabels()[0].set_horizontalalignment("left")
    axes.get_xticklabels()[-1].set_horizontalalignment("right")


def _edges(kinds: Sequence[Array]) -> Array:
    """Edges of the same bins for every kind, float64 [`BINS` + 1], rising."""
    # A single score of 1e30 would leave all others in one bar. Of each kind, as poison may be rarer than the tail.
    inner = np.concatenate([np.quantile(kind, (TAIL, 1 - TAIL)) for kind in kinds])
    # Where nearly all have one score, those that differ are what there is to see.
    every = inner if inner.min() < inner.max() else np.concatenate(kinds)
    low, high = float(every.min()), float(every.max())
    # Constant scores get bins of some width.
    width = 1e-6 * max(1.0, abs(low), abs(high))
    edges: Array = np.linspace(low, high, BINS + 1) if low < high else np.linspace(low - width, high + width, BINS + 1)
    return edges


def roc(fpr: Array, curves: Mapping[str, Array], name: str) -> bytes:
    """The ROC curve of one detector, the others' in grey behind it.

    True against false positive rate, the latter on a log scale: a user can bear few false alarms.
    """
    figure, axes = _small_axes(1.7, 0.12)
    # Steps, as nothing lies between two thresholds; the first point is a rate of 0, which has no place on a log scale.
    for tpr in curves.values():
        axes.plot(fpr[1:], tpr[1:], color="0.85", linewidth=0.8, drawstyle="steps-post")
    axes.plot(fpr[1:], fpr[1:], color="0.6", linestyle=":", label="chance")
    axes.plot(fpr[1:], curves[name][1:], label=name, color=CLEAN, linewidth=2, drawstyle="steps-post")
    axes.set(xscale="log", xlim=(1e-3, 1), ylim=(0, 1.03))
    _label_ends(axes, (1e-3, 1e-2, 1e-1, 1), ("0.1%", "1%", "", "100%"))
    axes.set_xticks([], minor=True)
    axes.set_yticks([0, 0.5, 1], ["0", "", "1"])
    axes.grid(alpha=0.35)
    return png_of(figure)


def acc_against_asr(points: Mapping[str, tuple[float, float]]) -> bytes:
    """Clean accuracy and attack success rate of each model; the best corner is the lower right."""
    figure, axes = axes_of()
    for (name, (acc, asr)), colour in zip(points.items(), cycle(COLOURS), strict=False):
        axes.scatter(acc, asr, s=60, color=colour, label=label_of(name), zorder=3)
    axes.set(xlabel="ACC (clean test images)", ylabel="ASR (triggered test images)", ylim=(-0.05, 1.05))
    # From 0.8, or further left where a model lies there, so that plots of good models compare at a glance.
    lowest = min(acc for acc, _ in points.values())
    axes.set_xlim(min(0.8, lowest - 0.05), 1.0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    legend_below(axes)
    return png_of(figure)


def against(varied: str, places: Sequence[float], curves: Mapping[str, tuple[Array, Array]]) -> bytes:
    """ACC (solid) and ASR (dashed) against a parameter, a colour for each curve.

    Args:
        varied: the parameter's name.
        places: its values, [k], rising; on a log scale where all are above 0.
        curves: ACC and ASR at each value, NaN where there is none, by name.
    """
    figure, axes = axes_of(6.4, 3.6, 130)
    for (name, (acc, asr)), colour in zip(curves.items(), cycle(COLOURS), strict=False):
        for figure_of, style, label in ((acc, "-", label_of(name)), (asr, "--", None)):
            # What is missing leaves no gap in a line.
            there = np.isfinite(figure_of)
            x, y = np.asarray(places)[there], figure_of[there]
            axes.plot(x, y, color=colour, marker="o", markersize=3.5, linestyle=style, label=label)
    axes.set(xlabel=label_of(varied), ylabel="ACC (solid), ASR (dashed)", ylim=(-0.03, 1.03))
    if min(places) > 0:
        axes.set_xscale("log")
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.set_xticks([], minor=True)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return png_of(figure)


def connectivity(t: Array, curves: Mapping[str, tuple[Array, Array | None]]) -> bytes:
    """ACC (solid) and ASR (dashed) of networks between a purified model, at the left, and the backdoored one.

    Args:
        t: places on the line, [k], from 0 to 1.
        curves: ACC and, where there is one, ASR at each, by method.
    """
    figure, axes = axes_of()
    for (name, (acc, asr)), colour in zip(curves.items(), cycle(COLOURS), strict=False):
        axes.plot(t, acc, color=colour, label=label_of(name))
        if asr is not None:
            axes.plot(t, asr, color=colour, linestyle="--")
    axes.set(xlabel="weights, from purified (0) to backdoored (1)", ylabel="share of test images", ylim=(-0.05, 1.05))
    legend_below(axes)
    return png_of(figure)


def rounds(number: Array, shares: Mapping[str, Array]) -> bytes:
    """Shares of test images, each [k] by its name, over the rounds of a federation, [k]."""
    figure, axes = axes_of()
    for (name, values), colour in zip(shares.items(), cycle(COLOURS), strict=False):
        axes.plot(number, values, label=label_of(name), color=colour)
    axes.set(xlabel="round", ylabel="share of test images", ylim=(-0.05, 1.05))
    legend_below(axes)
    return png_of(figure)


def training_curves(
    curves: Mapping[str, tuple[NDArray[Any], NDArray[Any]]], ylabel: str, *, log: bool = False
) -> bytes:
    """Lines over epochs or steps, by name."""
    figure, axes = axes_of()
    for (name, (x, y)), colour in zip(curves.items(), cycle(COLOURS), strict=False):
        axes.plot(x, y, label=label_of(name), color=colour)
    axes.set(xlabel="epoch", ylabel=ylabel, yscale="log" if log else "linear")
    legend_below(axes)
    return png_of(figure)


def thumbnail(image: NDArray[np.uint8]) -> bytes:
    """One image uint8 [h, w, c] as a PNG of at most 64 pixels per side."""
    return _encoded(_shrunk(image))


def strip(images: Sequence[NDArray[np.uint8]]) -> bytes:
    """Images uint8 [h, w, c] of one size beside each other, with some white between them, each as in `thumbnail`."""
    shrunk = [np.asarray(_shrunk(image)) for image in images]
    gap = np.full_like(shrunk[0][:, : max(1, shrunk[0].shape[1] // 16)], 255)
    parts = [part for image in shrunk for part in (gap, image)]
    return _encoded(Image.fromarray(np.concatenate(parts[1:], axis=1)))


def _shrunk(image: NDArray[np.uint8]) -> Image.Image:
    # Box filter: small images keep their pixels, large ones are averaged.
    picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
    picture.thumbnail((64, 64), Image.Resampling.BOX)
    return picture


def _encoded(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
