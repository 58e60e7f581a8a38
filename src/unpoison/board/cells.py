"""The cells of the board: what the records of suites have of every method, attack and rate, and what is still to be run."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..suites.published import PublishedFigures, read_published
from ..suites.record import Run, read_record
from ..suites.suite import METRICS, Suite
from ..suites.table import counted
from .board import Board, DataSet
from .families import FAMILIES, Family

Attack = tuple[str, float]
"""Name of an attack, and the share of poisoned samples."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A method against an attack.

    Attributes:
        figures, spread: mean and sample standard deviation over seeds, by the figure's name; nothing where it was not run.
        victim: ACC and ASR of the model of the same runs.
        runs: the runs that these figures are of.
        suite, scale: of the runs, or those that have this cell to run; "" where no suite has.
        taken: whether the victim has learned the attack; None where that is not known.
        solved: whether the cell is; None where the attack did not take, or is not known.
        published: published figures by name.
    """

    figures: dict[str, float] = field(default_factory=dict)
    spread: dict[str, float] = field(default_factory=dict)
    victim: dict[str, float] = field(default_factory=dict)
    runs: Sequence[Run] = ()
    suite: str = ""
    scale: str = ""
    taken: bool | None = None
    solved: bool | None = None
    published: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Map:
    """All cells of a family on one data set.

    Attributes:
        data_set: title of the data set, as `board.yaml` has it.
        data: the data that the runs were on, in the record's words; "" where there is no run.
        cells: by method and attack; each method has each attack.
    """

    data_set: str
    data: str
    family: Family
    cells: Mapping[tuple[str, Attack], Cell]

    @property
    def measured(self) -> int:
        return sum(bool(cell.figures) for cell in self.cells.values())


def maps_of(board: Board, scale: str, root: Path) -> list[Map]:
    """The maps of a scale, by data set and family. Raises UserError for a record or a table that cannot be read."""
    found = []
    for title, data_set in board.data_sets(scale).items():
        recorded = {name: counted(board.suites[name], _record(root, name)) for name in data_set.suites}
        runs = {
            name: [run for run in recorded[name] if run.scale == of_suite] for name, of_suite in data_set.suites.items()
        }
        published = read_published(root / data_set.published) if data_set.published else {}
        # Runs on different data are never averaged: each has its maps.
        for data in sorted({run.data for of_suite in runs.values() for run in of_suite}) or [""]:
            here = {name: [run for run in of_suite if run.data == data] for name, of_suite in runs.items()}
            found += [_map(board, title, data, family, data_set, here, published) for family in FAMILIES]
    return found


def _record(root: Path, name: str) -> list[Run]:
    return read_record(root / "reports" / "suites" / f"{name}.runs.csv")


def _map(
    board: Board,
    title: str,
    data: str,
    family: Family,
    data_set: DataSet,
    runs: Mapping[str, list[Run]],
    published: PublishedFigures,
) -> Map:
    cells = {}
    for attack in board.attacks:
        for rate in board.rates:
            for method in family.methods:
                known = published.get((attack, method, rate), {}) if family.place in ("purified", "robust") else {}
                cells[method, (attack, rate)] = _cell(board, family, method, (attack, rate), data_set, runs, known)
    return Map(title, data, family, cells)


def _cell(
    board: Board,
    family: Family,
    method: str,
    attack: Attack,
    data_set: DataSet,
    runs: Mapping[str, list[Run]],
    published: dict[str, float],
) -> Cell:
    """The cell as the first suite has it that has measured it, or else as the first that is to."""
    wanted = Cell(published=published)
    for name, scale in data_set.suites.items():
        suite = board.suites[name]
        if (experiment := experiment_of(suite, attack)) is None:
            continue
        of_cell = [run for run in runs[name] if run.experiment == experiment]
        place = family.place_of(method)
        figures, spread = _over_seeds(of_cell, place, family.figures)
        victim, _ = _over_seeds(of_cell, "backdoored", METRICS)
        known = published or _published_of(suite, experiment, place)
        if figures:
            taken = victim["asr"] >= board.taken if "asr" in victim else None
            solved = family.solved(figures, victim, board.solved) if taken else None
            graded = [run for run in of_cell if any(f"{place}.{figure}" in run.metrics for figure in family.figures)]
            return Cell(
                figures=figures,
                spread=spread,
                victim=victim,
                runs=graded,
                suite=name,
                scale=scale,
                taken=taken,
                solved=solved,
                published=known,
            )
        if not wanted.suite and method in family.asked(suite.overrides(scale, experiment)):
            wanted = Cell(suite=name, scale=scale, published=known)
    return wanted


def experiment_of(suite: Suite, attack: Attack) -> str | None:
    """The name of a suite's experiment with an attack at a rate; None where it has none."""
    name, rate = attack
    found = (own for own, about in suite.experiments.items() if about.name == name and float(about.value) == rate)
    return next(found, None)


def _over_seeds(runs: Sequence[Run], place: str, figures: Iterable[str]) -> tuple[dict[str, float], dict[str, float]]:
    values = {
        figure: [run.metrics[f"{place}.{figure}"] for run in runs if f"{place}.{figure}" in run.metrics]
        for figure in figures
    }
    means = {figure: statistics.fmean(found) for figure, found in values.items() if found}
    return means, {figure: statistics.stdev(found) for figure, found in values.items() if len(found) > 1}


def _published_of(suite: Suite, experiment: str, place: str) -> dict[str, float]:
    """What the suite has published of a method, which it knows by the place of its figures."""
    return next(
        (
            known.figures
            for method, known in suite.experiments[experiment].published.items()
            if suite.methods[method].metrics == place
        ),
        {},
    )
