"""The runs that the board still needs, those first without which the most would be missing, and making them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import UserError
from ..reporting.escaping import say
from ..suites.git import Repository
from ..suites.record import read_record
from ..suites.runner import Runner, Task, synchronise
from ..suites.suite import Row
from ..suites.table import counted
from .board import Board
from .cells import experiment_of
from .page import write_board


@dataclass(frozen=True)
class Needed:
    """A run of a suite that is not on record."""

    data_set: str
    suite: str
    row: Row


def needed(board: Board, scale: str, root: Path) -> list[Needed]:
    """The runs of a scale that no record has, in the order in which they are made.

    First seeds come before further ones, then rates and attacks in the board's order, and of an attack the suites of each data
    set in theirs: stopped at any time, what was run is whole columns of the board, the most telling attacks first.
    """
    found = []
    for title, data_set in board.data_sets(scale).items():
        for name, of_suite in data_set.suites.items():
            suite = board.suites[name]
            recorded = counted(suite, read_record(root / "reports" / "suites" / f"{name}.runs.csv"))
            known = {(run.scale, run.experiment, run.seed) for run in recorded}
            for turn, seed in enumerate(suite.scales[of_suite].seeds):
                for place, rate in enumerate(board.rates):
                    for column, attack in enumerate(board.attacks):
                        experiment = experiment_of(suite, (attack, rate))
                        if experiment is not None and (of_suite, experiment, seed) not in known:
                            found.append(((turn, place, column), Needed(title, name, Row(of_suite, experiment, seed))))
    return [run for _, run in sorted(found, key=lambda item: item[0])]


def make(
    repository: Repository,
    board: Board,
    scale: str,
    data: Mapping[str, str],
    *,
    most: int | None = None,
    jobs: int = 1,
) -> None:
    """Make the runs that are needed, and write the page after each.

    Args:
        repository: the working copy.
        board: the board.
        scale: one of its scales.
        data: by title of a data set a folder or archive of images in its place.
        most: make at most this many; None: all.
        jobs: number of runs that are made at a time; runs with the same attack on the same data follow each other, as they
            share a victim.

    Raises:
        UserError: a data set that the scale does not have, data that do not exist, fewer than one run or job, parameters that
            the code refuses; or runs that failed, after all others were made.
    """
    if most is not None and most < 1:
        raise UserError(f"MOST: {most} given, allowed: from 1")
    titles = board.data_sets(scale)
    if unknown := [title for title in data if title not in titles]:
        raise UserError(f"DATA: {unknown[0]!r} given, allowed: {', '.join(titles)}")
    for path in data.values():
        if not Path(path).exists():
            raise UserError(f"DATA: {path!r} given, which does not exist; allowed: a folder or archive of images")
    with repository.locked() as lock:
        runner = Runner(repository, lock, jobs=jobs)
        for suite in board.suites.values():
            synchronise(repository, suite)
        todo = needed(board, scale, repository.root)[:most]
        say(f"board, scale {scale}: {len(todo)} runs to make")
        columns: dict[tuple[str, str, int], list[Task]] = {}
        for need in todo:
            column = need.data_set, need.row.experiment, need.row.seed
            columns.setdefault(column, []).extend(
                runner.tasks(board.suites[need.suite], [need.row], data.get(need.data_set))
            )
        failed = runner.make(list(columns.values()), lambda: write_board(repository.root, board, scale))
        write_board(repository.root, board, scale)
    if failed:
        raise UserError(f"board, scale {scale}: {len(failed)} of {len(todo)} runs failed: {', '.join(failed)}")
