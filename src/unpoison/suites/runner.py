"""Making runs, of one suite or of several, in clones of the last commit: one after another, or several beside each other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock
from typing import TextIO

from ..core.errors import UserError
from ..reporting.escaping import say
from .experiments import environment, experiments, fresh_clone, make, read_run
from .git import Repository, git
from .params import Params, params_at, params_of, value_at
from .record import merged, read_record, write_record
from .suite import Overrides, Row, Suite, rows_of

CODE = ("src", "stages", "params.yaml", "params", "dvc.yaml")


@dataclass(frozen=True)
class Task:
    """A run to make: a row of a suite, and all that it changes in the parameters."""

    suite: Suite
    row: Row
    overrides: Overrides

    @property
    def name(self) -> str:
        return self.row.name(self.suite)

    @property
    def settings(self) -> str:
        return self.suite.settings(self.row.scale, self.row.experiment)


class Runner:
    """Makes runs of the last commit.

    Attributes:
        commit, params: the last commit when the runner was made, and its parameters.
    """

    def __init__(self, repository: Repository, lock: TextIO, *, force: bool = False, jobs: int = 1) -> None:
        """A runner for a repository that is locked.

        Args:
            repository: the working copy.
            lock: of `Repository.locked`.
            force: run every stage, also where the cache has its result.
            jobs: number of runs that are made at a time. Of several, what a run prints goes into a file of its own.

        Raises:
            UserError: fewer jobs than one.
        """
        if jobs < 1:
            raise UserError(f"JOBS: {jobs} given, allowed: from 1")
        self.repository, self.root, self.jobs = repository, repository.root, jobs
        self._lock, self._force = lock, force
        self.commit = git(self.root, "rev-parse", "HEAD")
        self.params = params_at(self.root, self.commit)
        self._stopped, self._writing = Event(), Lock()

    def tasks(self, suite: Suite, rows: Iterable[Row], data: str | None) -> list[Task]:
        """Rows as runs to make. `data` is a folder or archive of images, in the place of the suite's data set."""
        return [Task(suite, row, overrides_of(suite, row, self.params, self.root, data)) for row in rows]

    def make(self, groups: Sequence[Sequence[Task]], after: Callable[[], object] = lambda: None) -> list[str]:
        """Check all runs, then make them; the names of those that failed.

        Args:
            groups: runs that are made one after another in the same clone, as they share a victim, say; groups are made in
                their order, `jobs` at a time.
            after: called after each run that was made, never twice at the same time.

        Raises:
            UserError: parameters of a run that the code refuses, before the first run.
        """
        tasks = [task for group in groups for task in group]
        if not tasks:
            return []
        changed = [
            *git(self.root, "diff", "--name-only", "HEAD", "--", *CODE).splitlines(),
            *git(self.root, "ls-files", "--others", "--exclude-standard", "--", *CODE).splitlines(),
        ]
        if changed:
            say(f"note: the runs are of commit {self.commit[:8]}, without your changes to {', '.join(changed)}")
        try:
            first = self.repository.clones / "0"
            settings = fresh_clone(self.root, self.commit, first)
            hardware = self._checked(tasks, first)
            return self._make_groups(groups, settings, hardware, after)
        finally:
            shutil.rmtree(self.repository.clones, ignore_errors=True)

    def _make_groups(
        self,
        groups: Sequence[Sequence[Task]],
        settings: bytes,
        hardware: dict[str, str],
        after: Callable[[], object],
    ) -> list[str]:
        number = {task.name: place for place, task in enumerate((task for group in groups for task in group), 1)}
        clones: SimpleQueue[Path] = SimpleQueue()
        for job in range(self.jobs):
            clones.put(self.repository.clones / str(job))

        def make_group(group: Sequence[Task]) -> list[str]:
            clone = clones.get()
            try:
                return [task.name for task in group if not self._stopped.is_set() and not made(task, clone)]
            except BaseException:
                self._stopped.set()
                raise
            finally:
                clones.put(clone)

        def made(task: Task, clone: Path) -> bool:
            say(f"\n{task.name}: run {number[task.name]} of {len(number)}")
            try:
                seconds = self._make(task, clone, settings, hardware)
            except UserError as error:
                say(f"error: {task.name}: {error}", file=sys.stderr)
                return False
            with self._writing:
                synchronise(self.repository, task.suite)
                after()
            say(f"{task.name}: done in {seconds:.0f} s")
            return True

        # One job needs no thread, in which an interruption would have to be passed on.
        if self.jobs == 1:
            return [name for group in groups for name in make_group(group)]
        with ThreadPoolExecutor(self.jobs) as pool:
            futures = [pool.submit(make_group, group) for group in groups]
            try:
                failed = {name for future in as_completed(futures) for name in future.result()}
            except BaseException:
                # The runs that go on end by themselves, interrupted as this process was; no other one is begun.
                self._stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [name for name in number if name in failed]

    def _make(self, task: Task, clone: Path, settings: bytes, hardware: dict[str, str]) -> float:
        """Make one run; its wall time in seconds."""
        fresh_clone(self.root, self.commit, clone, settings)
        about = {"settings": task.settings, **hardware}
        log = self.repository.log(task.name) if self.jobs > 1 else None
        given = environment(clone, self.repository.scratch, jobs=self.jobs)
        return make(
            self.root, clone, task.name, task.overrides, about, given, force=self._force, lock=self._lock, log=log
        )

    def _checked(self, tasks: Sequence[Task], clone: Path) -> dict[str, str]:
        """The hardware that the runs will use, after their parameters were found valid by the code that will run."""
        hardware: dict[str, str] = {}
        for suite in {task.suite.name: task.suite for task in tasks}.values():
            shown, runs = f"suites/{suite.name}.yaml", {}
            for task in tasks:
                if task.suite.name != suite.name:
                    continue
                name = f"{task.row.scale}, {task.row.experiment}, seed {task.row.seed}"
                try:
                    runs[name] = params_of(suite, self.params, task.overrides)
                except UserError as error:
                    raise UserError(f"{shown}: {name}: {error}") from None
            done = subprocess.run(
                [sys.executable, "stages/check_params.py", "--runs"],
                input=json.dumps(runs),
                cwd=clone,
                env=environment(clone, self.repository.scratch, jobs=self.jobs),
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise UserError(f"{shown}: {done.stderr.strip().removeprefix('error: ')}")
            try:
                hardware = dict(json.loads(done.stdout))
            except (ValueError, TypeError) as error:
                raise UserError(
                    f"{shown}: stages/check_params.py printed something else than the hardware ({error})"
                ) from None
        return hardware


def overrides_of(suite: Suite, row: Row, params: Params, root: Path, data: str | None) -> Overrides:
    """All that a run changes in the parameters: what the suite says, the seed, and where the data are."""
    said = {"data.name": value_at(params, "data.name"), **suite.overrides(row.scale, row.experiment), "seed": row.seed}
    if data:
        return {**said, "data.name": "folder", "data.path": os.path.abspath(data)}
    return {**said, "data.path": os.path.abspath(root / str(value_at(params, "data.path")))}


def synchronise(repository: Repository, suite: Suite) -> None:
    """Bring the record's lines of runs that exist in this repository up to date; others stay as they are."""
    known, path = experiments(repository.root), repository.report(f"{suite.name}.runs.csv")
    here = [
        read_run(repository.root, row, experiment)
        for scale in suite.scales
        for row in rows_of(suite, scale)
        for experiment in known.get(row.name(suite), [])
        if experiment.made.get("settings") == suite.settings(row.scale, row.experiment)
    ]
    if here:
        write_record(path, merged(read_record(path), here))
