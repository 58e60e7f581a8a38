"""Making the runs of a suite that do not exist yet."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from ..core.errors import UserError
from ..reporting.escaping import say
from .experiments import Known, experiments, is_run
from .git import Repository
from .reading import read_suite
from .runner import Runner, Task, synchronise
from .suite import Suite, rows_of


def run(
    repository: Repository,
    name: str,
    scale: str | None,
    data: str | None,
    *,
    only: Collection[str] = (),
    fresh: bool = False,
    jobs: int = 1,
) -> None:
    """Make the runs of a suite that do not exist yet.

    Args:
        name: the suite's.
        scale: the scale's; None: the suite's first.
        data: a folder or archive of images, in the place of the suite's data set.
        only: experiments; none: all.
        fresh: make all runs again, and take no stage from the cache.
        jobs: number of runs that are made at a time.

    Raises:
        UserError: something wrong with the arguments, the file or the parameters of a run, found before the first run;
            or runs that failed, after all others were made.
    """
    suite = read_suite(name, repository.suites)
    scale, data = chosen(suite, scale, data)
    rows = rows_of(suite, scale, only)
    with repository.locked() as lock:
        runner = Runner(repository, lock, force=fresh, jobs=jobs)
        synchronise(repository, suite)
        known = experiments(repository.root)
        wanted = runner.tasks(suite, rows, data)
        todo = [task for task in wanted if fresh or not exists(repository.root, task, known)]
        say(f"{name}, scale {scale}: {len(todo)} of {len(wanted)} runs to make")
        failed = runner.make([[task] for task in todo])
    if failed:
        raise UserError(f"suites/{name}.yaml: {len(failed)} of {len(wanted)} runs failed: {', '.join(failed)}")
    say(f"{name}, scale {scale}: {'these' if only else 'all'} runs are done; the table: make suite-table SUITE={name}")


def chosen(suite: Suite, scale: str | None, data: str | None) -> tuple[str, str | None]:
    """The scale and the path of the data, after a look at whether they exist."""
    scale = scale or next(iter(suite.scales))
    if scale not in suite.scales:
        raise UserError(f"SCALE: {scale!r} given, allowed: {', '.join(suite.scales)}")
    if data and not Path(data).exists():
        raise UserError(f"DATA: {data!r} given, which does not exist; allowed: a folder or archive of images")
    return scale, data


def exists(root: Path, task: Task, known: Mapping[str, list[Known]]) -> bool:
    """Whether a run was made with these settings, on these data."""
    data = task.overrides["data.name"], task.overrides["data.path"]
    return any(is_run(experiment, root, task.settings, data) for experiment in known.get(task.name, []))
