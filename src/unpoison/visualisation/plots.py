"""What figures share in drawing: maps with a scale, points by class, lines. Colours and letters are those of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ..core.arrays import IntArray, Mask
from ..reporting import figures
from ..reporting.escaping import figure as shown

Floats = NDArray[np.floating[Any]]
MOST_NAMED = 12
"""Classes that have room for a name each, in a legend or along an axis."""
LEAST_LOSS = 1e-3
"""Below it a landscape shows no difference: its logarithm would be all there is to see."""


def scatter(points: Floats, labels: IntArray, poisoned: Mask | None, classes: Sequence[str]) -> bytes:
    """Points of the plane, a colour for each class, crosses over the poisoned ones.

    Args:
        points: float [n, 2].
        labels: int64 [n].
        poisoned: bool [n]; None where it is not known.
        classes: names of the classes.
    """
    figure, axes = figures.axes_of(4.0, 3.6)
    wheel = _wheel(len(classes))
    for label, name in enumerate(classes):
        of_class, shown_name = points[labels == label], figures.label_of(name[:12])
        axes.scatter(of_class[:, 0], of_class[:, 1], s=5, color=wheel[label], linewidths=0, label=shown_name)
    if poisoned is not None and poisoned.any():
        marked = points[poisoned]
        axes.scatter(marked[:, 0], marked[:, 1], s=9, marker="x", color="black", linewidths=0.5, label="poisoned")
    axes.grid(visible=False)
    axes.set(xticks=[], yticks=[])
    if len(classes) <= MOST_NAMED:
        columns = 4 if max(map(len, classes)) <= 6 else 2
        axes.legend(
            frameon=False,
            fontsize=9,
            loc="upper left",
            bbox_to_anchor=(-0.02, 0.0),
            ncols=columns,
            markerscale=2.2,
            handletextpad=0.1,
            columnspacing=1.0,
        )
    return figures.png_of(figure)


def _wheel(count: int) -> list[Any]:
    """A colour for each class: the report's eight, twenty of matplotlib's, or as many as there are around the wheel."""
    if count <= len(figures.COLOURS):
        return list(figures.COLOURS[:count])
    if count <= 20:
        return [colormaps["tab20"](n % 10 * 2 + n // 10) for n in range(count)]
    return [colormaps["hsv"](n / count) for n in range(count)]


def matrix(shares: Floats, counts: IntArray, classes: Sequence[str]) -> bytes:
    """A confusion matrix: true labels down, predicted ones across, blue by share of the row, with counts where there is room.

    Args:
        shares: float [k, k], rows of sum 1 or 0.
        counts: int64 [k, k].
        classes: names of the k classes.
    """
    figure, axes = figures.axes_of(4.0, 3.6)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    _scale(figure, axes, image)
    axes.grid(visible=False)
    if len(classes) <= MOST_NAMED:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, f"{count}", ha="center", va="center", fontsize=8, color=colour)
    _name(axes, "xaxis", classes)
    _name(axes, "yaxis", classes)
    axes.set(xlabel="predicted", ylabel="true")
    return figures.png_of(figure)


def _name(axes: Axes, which: str, names: Sequence[str]) -> None:
    """Names along an axis, where there are so few that they can be read; numbers, some of them, otherwise."""
    axis = getattr(axes, which)
    if len(names) > MOST_NAMED:
        axis.set_major_locator(MaxNLocator(6, integer=True))
        return
    short = [shown(name, 10) for name in names]
    upright = which == "xaxis" and max(map(len, short)) > 2
    axis.set_ticks(range(len(names)), short, fontsize=9, rotation=90 if upright else 0)


def _scale(figure: Figure, axes: Axes, image: Any, label: str = "") -> None:
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
    bar.ax.tick_params(labelsize=9)
    bar.set_label(label, fontsize=9)


def class_map(values: Floats, rows: Sequence[str], ylabel: str, xlabel: str) -> bytes:
    """A wide map of numbers in [-1, 1], or in [0, 1] where none is below 0; grey where there is none.

    Args:
        values: float [r, d], NaN where there is none.
        rows: names of the rows.
        ylabel: what rows are.
        xlabel: what columns are.
    """
    # As large as it is shown: wide enough for a desk, and it scrolls on a telephone.
    figure, axes = figures.axes_of(9.0, 3.4, figures.SHEET_DPI)
    negative = bool((values < 0).any())
    colours = colormaps["RdBu_r" if negative else "magma"].with_extremes(bad="0.7")
    image = axes.imshow(
        values, cmap=colours, vmin=-1 if negative else 0, vmax=1, aspect="auto", interpolation="nearest"
    )
    axes.grid(visible=False)
    bar = figure.colorbar(image, ax=axes, fraction=0.02, pad=0.01)
    bar.ax.tick_params(labelsize=9)
    _name(axes, "yaxis", rows)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    return figures.png_of(figure)


def spectrum(values: Floats, largest: float) -> bytes:
    """A spectrum, low frequencies at the upper left, float [h, w] from 0 to `largest`."""
    figure, axes = figures.axes_of(4.0, 3.4)
    image = axes.imshow(values, cmap="magma", vmin=0, vmax=largest, interpolation="nearest")
    axes.grid(visible=False)
    _scale(figure, axes, image)
    axes.set(xlabel="horizontal frequency", ylabel="vertical frequency")
    return figures.png_of(figure)


def lines(x: Floats, curves: Mapping[str, Floats], xlabel: str, ylabel: str, *, own_x: bool = False) -> bytes:
    """Lines by name, in the report's colours.

    Args:
        x: places, float [k].
        curves: values at them, float [k]; with `own_x` at the first ones, as many as there are.
        xlabel: what the places are.
        ylabel: what the values are.
        own_x: whether the lines are of different lengths.
    """
    figure, axes = figures.axes_of()
    for (name, values), colour in zip(curves.items(), cycle(figures.COLOURS), strict=False):
        axes.plot(x[: len(values)] if own_x else x, values, color=colour, label=figures.label_of(name))
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.set_ylim(bottom=0)
    figures.legend_below(axes)
    return figures.png_of(figure)


def heights(places: Floats, losses: Floats, low: float, high: float) -> bytes:
    """A loss over a plane as contours of its logarithm, a cross at the model itself.

    Args:
        places: coordinates along either direction, float [k], rising.
        losses: float [k, k], a row for each step along the second direction.
        low, high: the losses that the colours range between, so that several pictures compare.
    """
    figure, axes = figures.axes_of(4.0, 3.4)
    logs = np.log10(losses.clip(low, high))
    ends = np.log10(low), max(np.log10(high), np.log10(low) + 1e-3)
    filled = axes.contourf(places, places, logs, np.linspace(*ends, 15), cmap="viridis")
    axes.contour(places, places, logs, np.linspace(*ends, 15), colors="black", linewidths=0.3)
    axes.plot(0, 0, marker="+", markersize=11, markeredgewidth=2, color="white")
    axes.grid(visible=False)
    bar = figure.colorbar(filled, ax=axes, fraction=0.046, pad=0.03, ticks=np.linspace(*ends, 5))
    bar.ax.set_yticklabels([f"{10**tick:.2g}" for tick in np.linspace(*ends, 5)], fontsize=9)
    axes.set_aspect("equal")
    axes.set(xlabel="first direction", ylabel="second direction")
    return figures.png_of(figure)


def heated(images: NDArray[np.uint8], heat: Floats) -> NDArray[np.uint8]:
    """Images in grey under a map in colour: uint8 [n, h, w, 3].

    Args:
        images: uint8 [n, h, w, c].
        heat: float [n, h, w] in [0, 1].
    """
    grey = np.repeat(images.mean(3, keepdims=True), 3, axis=3)
    colour = 255 * colormaps["inferno"](heat)[..., :3]
    return np.rint(0.45 * grey + 0.55 * colour).astype(np.uint8)
