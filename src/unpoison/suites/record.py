"""The committed record of a suite's runs, as CSV."""

from __future__ import annotations

import csv
import io
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import ParameterError, UserError
from ..core.files import new_file, open_file
from ..reporting.escaping import JOINERS, from_spreadsheet, spreadsheet, visible
from ..reporting.metrics import NAME, block_at, check_figures

KEYS = ("scale", "experiment", "seed", "settings", "commit", "data", "device", "torch", "seconds")
# Cells that say which run a line is of; seeds of up to ten digits, numbers as a float holds them.
FORMS = {
    "scale": "[a-z][a-z0-9_]*",
    "experiment": "[a-z][a-z0-9_.+-]*",
    "seed": "[0-9]{1,10}",
    "settings": "[0-9a-f]{8}",
    "commit": "[0-9a-f]{8}",
    "data": ".+",
}
NUMBER = r"-?[0-9]{1,30}(\.[0-9]{1,30})?(e[-+]?[0-9]{1,3})?"


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

    A record is read whole or not at all: what is made from a part of it takes the place of what was made from all of it.

    Raises:
        UserError: the first line that is not one of a run, a run that is there twice, or a record that is cut off.
    """
    if not path.exists():
        return []
    text = _text(path)
    if not text.endswith("\n"):
        name, last = path.name.removesuffix(".runs.csv"), text.count("\n") + 1
        raise UserError(
            f"{path}: line {last} is cut off, it has no end; `python -m unpoison.suites repair {name}` takes it away, "
            "`git checkout` brings the committed record back"
        )
    return _runs(path, text)


def repair(path: Path) -> str:
    """Take a last line that is cut off out of a record; all other lines stay as they are.

    Returns:
        The line that was taken away, "" where there is none.

    Raises:
        UserError: no record, or one with other damage, which is for its author to judge.
    """
    whole, end, half = _text(path).rpartition("\n")
    _runs(path, whole + end)
    if half:
        write_text(path, whole + end)
    return half


def _text(path: Path) -> str:
    """The text of a record, with the ends of lines as they are written here, whoever saved it last."""
    with open_file(path) as file:
        data = file.read()
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: line {data[: error.start].count(10) + 1} is not UTF-8") from None


def _runs(path: Path, text: str) -> list[Run]:
    """The runs of a record's lines. No cell holds an end of line, so that a line of the file is a line of the table."""
    header, *lines = text.split("\n")[:-1] or [""]
    names, places = _cells(path, 1, header), dict[tuple[str, str, str, int], int]()
    if tuple(names[: len(KEYS)]) != KEYS or len(set(names)) < len(names) or not all(map(NAME.fullmatch, names)):
        raise UserError(f"{path}: line 1 names other columns, allowed: {', '.join(KEYS)}, then metrics, each once")
    runs = []
    for number, line in enumerate(lines, 2):
        cells = _cells(path, number, line)
        try:
            run = _run(names, cells)
        except ParameterError as error:
            raise UserError(f"{path}: line {number} is not that of a run ({error})") from None
        first = places.setdefault(_key(run), number)
        if first < number:
            raise UserError(f"{path}: line {number} is that of line {first} once more, allowed: one line for each run")
        runs.append(run)
    return runs


def _cells(path: Path, number: int, line: str) -> list[str]:
    try:
        rows = list(csv.reader([line], strict=True))
    except csv.Error as error:
        raise UserError(f"{path}: line {number} is not one of CSV ({error})") from None
    cells = rows[0] if rows else []
    if visible(line, keep=JOINERS) != line:
        raise UserError(f"{path}: line {number} has control characters")
    return cells


def _run(names: Sequence[str], cells: Sequence[str]) -> Run:
    """The run of a line. Raises ParameterError where a cell cannot be one of a run."""
    if len(cells) != len(names):
        raise ParameterError(f"{len(cells)} cells given, allowed: {len(names)}")
    values = dict(zip(names, cells, strict=True))
    for key, form in FORMS.items():
        if not re.fullmatch(form, values[key]):
            raise ParameterError(f"{key}: {values[key]!r} given, allowed: {form}")
    figures = {name: _number(name, cell) for name in ("seconds", *names[len(KEYS) :]) if (cell := values[name])}
    seconds = figures.pop("seconds", None)
    if seconds is not None and seconds < 0:
        raise ParameterError(f"seconds: {seconds} given, allowed: from 0")
    for name, figure in figures.items():
        check_figures(figure, name)
    texts = {key: from_spreadsheet(values[key]) for key in KEYS if key not in ("seed", "seconds")}
    return Run(**texts, seed=int(values["seed"]), seconds=seconds, metrics=figures)


def _number(name: str, cell: str) -> float:
    if not re.fullmatch(NUMBER, cell):
        raise ParameterError(f"{name}: {cell!r} given, allowed: a number")
    return float(cell)


def _key(run: Run) -> tuple[str, str, str, int]:
    """What tells a run from all others; a later one of the same takes its place."""
    return run.scale, run.data, run.experiment, run.seed


def write_record(path: Path, runs: Iterable[Run]) -> None:
    """All runs, sorted, so that the same runs give the same bytes; a metric that a run lacks stays empty."""
    rows = sorted(runs, key=_key)
    metrics = sorted({name for run in rows for name in run.metrics})
    body = [
        [
            *(spreadsheet(str(getattr(run, key))) for key in KEYS[:-1]),
            cell(run.seconds),
            *(cell(run.metrics.get(m)) for m in metrics),
        ]
        for run in rows
    ]
    write_text(path, csv_text([[*KEYS, *metrics], *body]))


def merged(recorded: Iterable[Run], here: Iterable[Run]) -> list[Run]:
    """The record with the runs that exist here in the place of its lines of the same row and data; all others stay."""
    runs = {_key(run): run for run in [*recorded, *here]}
    return list(runs.values())


def figures_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """What the record keeps of `metrics.json`: nested names as `purified.ft.acc`.

    How visible an attack's triggers are stands under `attack.trigger.*`: of several triggers the mean, and nothing where
    one of them lacks the figure.

    Raises:
        ParameterError: something else than finite figures, or a share that is none.
    """
    if not isinstance(metrics, Mapping):
        raise ParameterError(f"a {type(metrics).__name__} found, allowed: a JSON object")
    check_figures(metrics)
    attack = block_at(metrics, "attack") if "attack" in metrics else {}
    for name in block_at(attack, "trigger", "attack") if "trigger" in attack else ():
        block_at(attack["trigger"], name, "attack.trigger")
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
