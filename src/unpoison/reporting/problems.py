"""Problems of the data that are no backdoor: a section of the report, and a list for a spreadsheet or a program."""

from __future__ import annotations

import csv
from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..core.arrays import IntArray
from . import figures
from .escaping import spreadsheet
from .page import Page, Table
from .run import Examined, Run

FEWEST = 20
"""Samples below which a class is called small, and so is one of less than a tenth of what half of the classes have."""
COLUMNS = ["problem", "split", "sample", "label", "other_split", "other_sample", "other_label", "detail"]
WORDS = (
    "None of these is a backdoor by itself. Copies under two labels and labels that do not fit cost accuracy, copies of test "
    "images make it look better than it is, and detectors rank many of them high. All are in problems.csv."
)


def problems(page: Page, run: Run) -> None:
    """How many problems of each kind there are, an example of each, and the copies beside each other."""
    if run.examined is None:
        return
    page.heading("Problems of the data that are no backdoor")
    table, small = problems_table(run), _small_classes(run)
    rows = []
    for kind, found in table.groupby("problem", sort=False):
        first = found.iloc[0]
        other = f" and {first.other_sample} (label {first.other_label})" if first.other_sample else ""
        rows.append(
            [
                str(kind),
                f"{len(found):,}",
                f"{first['sample']} (label {first.label}){other}{first.detail and ': '}{first.detail}",
            ]
        )
    rows += [["small class", f"{len(small):,}", small[0]]] if small else []
    if copies := run.examined.problems.copies:
        rows.append(["copy within a class", f"{copies:,}", "each is counted but the first"])
    if unusable := run.about.get("defects"):
        rows.append(["file that cannot be used", f"{unusable:,}", "listed in data/base/defects.txt"])
    if not rows:
        page.text(
            "None was found: no copies across classes and splits, no image of one colour, no label that the model contradicts, no "
            "small class, no file that could not be used."
        )
        return
    page.text(WORDS)
    page.table(Table(("problem", "number", "for example"), rows, frozenset({2})))
    _pictures(page, run, run.examined)


def problems_table(run: Run) -> pd.DataFrame:
    """Every copy, image of one colour and label in doubt, a row each: copies first, the closest of them in front.

    Names stand as they are; `problems_csv` makes them safe for a spreadsheet.
    """
    if run.examined is None:
        return pd.DataFrame(columns=COLUMNS)
    found, rows = run.examined.problems, list[Sequence[str]]()
    for place in np.argsort(found.distances, kind="stable"):
        (first, second), distance = found.pairs[place].tolist(), float(found.distances[place])
        (_, _, label), (split, _, other_label) = _described(run, first), _described(run, second)
        across = "in another class" if label and other_label and label != other_label else f"in the {split} split"
        kind = f"{'near copy' if distance else 'copy'} {across}"
        rows.append(
            [
                kind,
                *_described(run, first),
                *_described(run, second),
                f"pixels differ by {distance:.3f}" if distance else "",
            ]
        )
    rows += [["image of one colour", *_described(run, row), "", "", "", ""] for row in found.constant.tolist()]
    # The test split's labels are never held against it.
    for row in np.flatnonzero(found.contradicted >= 0).tolist():
        said = run.class_name(int(found.contradicted[row]))
        rows.append(["label that the model contradicts", *_described(run, row), "", "", "", f"the model says {said}"])
    return pd.DataFrame(rows, columns=COLUMNS)


def problems_csv(run: Run) -> str:
    """The table with text in quotes, a line per problem."""
    table = problems_table(run).map(spreadsheet)
    text: str = table.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    return text


def _described(run: Run, row: int) -> tuple[str, str, str]:
    """Split, name and label of an image."""
    assert run.examined is not None
    ends = np.cumsum([*run.examined.splits.values()])
    split = [*run.examined.splits][int(np.searchsorted(ends, row, side="right"))]
    label = int(run.examined.data.labels[row])
    return split, run.examined.sources[row], run.data.classes[label] if label >= 0 else ""


def _small_classes(run: Run) -> list[str]:
    """Classes of few training samples, the smallest first, each in words."""
    counts = np.bincount(run.data.labels, minlength=len(run.data.classes))
    median = float(np.median(counts))
    small: IntArray = np.flatnonzero((counts < FEWEST) | (counts < median / 10))
    ranked = small[np.argsort(counts[small], kind="stable")]
    return [
        f"{run.class_name(label)}: {counts[label]} training samples, half of the classes have {median:g} or more"
        for label in ranked
    ]


def _pictures(page: Page, run: Run, examined: Examined) -> None:
    """Pairs beside each other, the closest first; of each image its split and label. Of texts the table above says it all."""
    if run.vocabulary:
        return
    closest = np.argsort(examined.problems.distances, kind="stable")[: run.settings.suspects]
    shown = []
    for pair in examined.problems.pairs[closest]:
        captions = [
            f"{name} ({split}{', label ' if label else ''}{label})"
            for split, name, label in (_described(run, row) for row in pair.tolist())
        ]
        shown.append((figures.strip(list(examined.data.gather(pair))), " and ".join(captions)))
    if shown:
        page.grid(shown, pixels=True)
