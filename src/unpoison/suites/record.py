"""The committed record of a suite's runs, as CSV."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from ..core.files import new_file

KEYS = ("scale", "experiment", "seed", "settings", "commit", "data", "device", "torch", "seconds")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run, one line of the record. `seconds` is wall time, None where unknown; metrics by flattened name."""

    scale: str
    experiment: str
    seed: int
    settings: str
    commit: str
    data: str
    device: str
    torch: str
    seconds: float | None
    metrics: Mapping[str, float]


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
        [*(getattr(run, key) for key in KEYS[:-1]), cell(run.seconds), *(cell(run.metrics.get(m)) for m in metrics)]
        for run in rows
    ]
    write_text(path, csv_text([[*KEYS, *metrics], *body]))


def merged(recorded: Iterable[Run], here: Iterable[Run]) -> list[Run]:
    """The record with the runs that exist here in the place of its lines of the same row and data; all others stay."""
    runs = {(run.scale, run.data, run.experiment, run.seed): run for run in [*recorded, *here]}
    return list(runs.values())


def figures_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """What the record keeps of `metrics.json`: nested names as `purified.ft.acc`.

    How visible an attack's triggers are stands under `attack.trigger.*`: of several triggers the mean, and nothing where
    one of them lacks the figure.
    """
    attack = metrics.get("attack", {})
    triggers = list(attack.get("trigger", {}).values())
    shared = [key for key in (triggers or [{}])[0] if all(key in trigger for trigger in triggers)]
    mean = {key: statistics.fmean(trigger[key] for trigger in triggers) for key in shared}
    return _flattened({**metrics, "attack": {**attack, "trigger": {"*": mean}}})


def _flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, value in values.items():
        flat |= _flattened(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": float(value)}
    return flat


def cell(value: float | None) -> str:
    """A figure to six places, as the metrics are written."""
    return "" if value is None else f"{round(value, 6):.12g}"


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def write_text(path: Path, text: str) -> None:
    with new_file(path) as staging:
        staging.write_text(text, encoding="utf-8")
