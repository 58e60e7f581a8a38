"""The committed record of a suite's runs, and its table, as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from suite_table import METRICS, Line, Run

from unpoison.core.errors import UserError
from unpoison.core.files import new_file

KEYS = ("scale", "experiment", "seed", "settings", "commit", "data", "device", "torch", "seconds")
LINE_KEYS = ("scale", "label", "data", "experiment", "method", "source", "runs", "wanted")
FIGURES = ("published", "mean", "std", "difference")


def read_record(path: Path) -> list[Run]:
    """The recorded runs; none where there is no record yet.

    Raises:
        UserError: a line that is not one of a run.
    """
    if not path.is_file():
        return []
    runs = []
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), 2):
            try:
                fixed: dict[str, Any] = {key: row.pop(key) for key in KEYS}
                fixed |= {"seed": int(fixed["seed"]), "seconds": float(fixed["seconds"]) if fixed["seconds"] else None}
                runs.append(Run(**fixed, metrics={name: float(value) for name, value in row.items() if value}))
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"{path}: line {number} is not that of a run ({error!r})") from None
    return runs


def write_record(path: Path, runs: Iterable[Run]) -> None:
    """All runs, sorted, so that the same runs give the same bytes; a metric that a run lacks stays empty."""
    rows = sorted(runs, key=lambda run: (run.scale, run.data, run.experiment, run.seed))
    metrics = sorted({name for run in rows for name in run.metrics})
    body = [
        [*(getattr(run, key) for key in KEYS[:-1]), _cell(run.seconds), *(_cell(run.metrics.get(m)) for m in metrics)]
        for run in rows
    ]
    write_text(path, _csv([[*KEYS, *metrics], *body]))


def merged(recorded: Iterable[Run], here: Iterable[Run]) -> list[Run]:
    """The record with the runs that exist here in the place of its lines of the same row and data; all others stay."""
    runs = {(run.scale, run.data, run.experiment, run.seed): run for run in [*recorded, *here]}
    return list(runs.values())


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested metrics to `purified.ft.acc`."""
    flat: dict[str, float] = {}
    for key, value in values.items():
        flat |= flattened(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": float(value)}
    return flat


def table_csv(rows: Iterable[Line]) -> str:
    """The lines of the table for programs: one column per figure, empty where there is none."""
    columns = [(kind, metric) for kind in FIGURES for metric in METRICS]
    header = [*LINE_KEYS, *(f"{kind}_{metric}" for kind, metric in columns), "verdict", "why"]
    body = [
        [*(getattr(line, key) for key in LINE_KEYS)]
        + [_cell(getattr(line, kind).get(metric)) for kind, metric in columns]
        + [line.verdict, line.why]
        for line in rows
    ]
    return _csv([header, *body])


def write_text(path: Path, text: str) -> None:
    with new_file(path) as staging:
        staging.write_text(text, encoding="utf-8")


def _cell(value: float | None) -> str:
    return "" if value is None else f"{round(value, 6):g}"


def _csv(rows: Iterable[Iterable[Any]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
