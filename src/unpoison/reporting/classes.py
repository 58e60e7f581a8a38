"""Which classes the suspects are of, and how far detectors agree on them: tables that need no truth."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.scores import Scores
from .page import Page, Table
from .run import Run

MOST_CLASSES = 20
"""Classes in a table at most."""
FOREMOST = 0.05
"""Share of the scored samples that counts as the most suspicious ones."""

Floats = NDArray[np.float64]


def foremost(values: NDArray[np.floating], count: int) -> Floats:
    """How much of each sample is among the `count` most suspicious: 1, 0, or in between where the cut divides equal scores.

    Args:
        values: score of each sample, [n], higher = more suspicious.
        count: number of samples, 1 to n.

    Returns:
        Weights, float64 [n], whose sum is `count`.
    """
    cut = np.partition(values, len(values) - count)[len(values) - count]
    above, same = values > cut, values == cut
    # A draw among equals would take each with this chance. One order for all detectors would have them agree on nothing.
    weights: Floats = above + same * (count - above.sum()) / same.sum()
    return weights


def depth(run: Run, scored: int) -> int:
    """How many of so many scored samples count as the most suspicious ones: a share of them, and no fewer than are shown."""
    return min(scored, max(run.settings.suspects, round(FOREMOST * scored)))


def by_class(page: Page, run: Run) -> None:
    """For each class its samples, and how many of them each detector finds most suspicious and flags."""
    scored = {name: run.scores[name] for name in run.detectors if len(run.scores[name].values)}
    if not scored:
        return
    page.heading("Suspects by class")
    labels, classes = run.data.labels, len(run.data.classes)
    samples = np.bincount(labels, minlength=classes)
    columns: dict[str, NDArray[Any]] = {}
    for name, found in scored.items():
        of, count = labels[run.samples(found)], depth(run, len(found.values))
        columns[f"{name}: first {count:,}"] = np.bincount(of, foremost(found.values, count), classes)
        if found.flagged is not None:
            columns[f"{name}: flagged"] = np.bincount(of, found.flagged, classes)
    # Of many classes those with the largest share of some column.
    largest = np.max([counts / max(1.0, counts.sum()) for counts in columns.values()], axis=0)
    shown = np.sort(np.lexsort((np.arange(classes), -largest))[:MOST_CLASSES]).tolist()
    known = {} if run.poisoned is None else {"poisoned": np.bincount(labels, run.poisoned, classes)}
    every = {"samples": samples, **known, **columns}
    rows = [[run.class_name(label), *(f"{counts[label]:,.0f}" for counts in every.values())] for label in shown]
    page.table(Table(["class", *every], rows))
    few = f" These are {len(shown)} of {classes:,} classes, those with the most." if len(shown) < classes else ""
    page.text(
        f"First: how many of a detector's most suspicious samples, {FOREMOST:.0%} of those it scored or as many as are shown "
        "below, have this label; flagged: by its own rule. A class with far more of them than of the samples may be an "
        f"attacker's target.{few}"
    )


def agreement(page: Page, run: Run) -> None:
    """For each pair of detectors how many of the most suspicious samples of one are among those of the other."""
    scored = {name: run.scores[name] for name in run.detectors}
    shared = {pair: _shared(run, *(scored[name] for name in pair)) for pair in combinations(scored, 2)}
    shared = {pair: found for pair, found in shared.items() if found[1]}
    if not shared:
        return
    page.heading("Agreement of the detectors")
    cells = {pair: f"{found:,.0f}\u00a0of\u00a0{count:,}" for pair, (found, count, _) in shared.items()}
    cells |= {(other, one): cell for (one, other), cell in cells.items()}
    page.table(
        Table(["detector", *scored], [[one, *(cells.get((one, other), "–") for other in scored)] for one in scored])
    )
    chance = sorted(count * count / both for _, count, both in shared.values())
    by_chance = dict.fromkeys(f"{number:,.0f}" for number in (chance[0], chance[-1]))
    page.text(
        f"Of the most suspicious samples of one detector, {FOREMOST:.0%} of those that both scored or as many as are shown below, "
        "how many are as suspicious to the other. Two detectors that know nothing of each other would share "
        f"{' to '.join(by_chance)}. Where the cut divides samples of equal score, each counts in part."
    )


def _shared(run: Run, one: Scores, other: Scores) -> tuple[float, int, int]:
    """How many most suspicious samples two detectors share, how many these are of each, and how many samples both scored."""
    both, first, second = np.intersect1d(run.samples(one), run.samples(other), return_indices=True)
    count = depth(run, len(both))
    if not count:
        return 0.0, 0, len(both)
    found = foremost(one.values[first], count) @ foremost(other.values[second], count)
    return float(found), count, len(both)
