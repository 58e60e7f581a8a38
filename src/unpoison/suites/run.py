"""Making the runs of a suite that do not exist yet."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TextIO

from ..core.errors import UserError
from ..reporting.escaping import say
from .experiments import Known, environment, experiments, fresh_clone, is_run, make, read_run
from .git import Repository, git
from .params import Params, params_at, params_of, value_at
from .reading import read_suite
from .record import merged, read_record, write_record
from .suite import Overrides, Row, Suite, rows_of

CODE = ("src", "stages", "params.yaml", "params", "dvc.yaml")


def run(
    repository: Repository,
    name: str,
    scale: str | None,
    data: str | None,
    *,
    only: Collection[str] = (),
    seeds: Collection[int] = (),
    fresh: bool = False,
) -> None:
    """Make the runs of a suite that do not exist yet.

    Args:
        name: the suite's.
        scale: the scale's; None: the suite's first.
        data: a folder or archive of images, in the place of the suite's data set.
        only: experiments; none: all.
        seeds: those of the scale that are run; none: all.
        fresh: make all runs again, and take no stage from the cache.

    Raises:
        UserError: something wrong with the arguments, the file or the parameters of a run, found before the first run;
            or runs that failed, after all others were made.
    """
    suite = read_suite(name, repository.suites)
    scale, data = chosen(suite, scale, data)
    root = repository.root
    rows = [row for row in rows_of(suite, scale, only) if not seeds or row.seed in seeds]
    with repository.locked() as lock:
        synchronise(repository, suite)
        commit = git(root, "rev-parse", "HEAD")
        params = params_at(root, commit)
        wanted = {row: overrides_of(suite, row, params, root, data) for row in rows}
        known = experiments(root)
        todo = {
            row: overrides
            for row, overrides in wanted.items()
            if fresh or not exists(root, suite, row, overrides, known)
        }
        say(f"{name}, scale {scale}: {len(todo)} of {len(wanted)} runs to make")
        try:
            failed = make_all(repository, suite, todo, params, commit, force=fresh, lock=lock) if todo else []
        finally:
            shutil.rmtree(repository.clone, ignore_errors=True)
    if failed:
        raise UserError(f"suites/{name}.yaml: {len(failed)} of {len(wanted)} runs failed: {', '.join(failed)}")
    say(
        f"{name}, scale {scale}: {'these' if only or seeds else 'all'} runs are done; the table: make suite-table SUITE={name}"
    )


def chosen(suite: Suite, scale: str | None, data: str | None) -> tuple[str, str | None]:
    """The scale and the path of the data, after a look at whether they exist."""
    scale = scale or next(iter(suite.scales))
    if scale not in suite.scales:
        raise UserError(f"SCALE: {scale!r} given, allowed: {', '.join(suite.scales)}")
    if data and not Path(data).exists():
        raise UserError(f"DATA: {data!r} given, which does not exist; allowed: a folder or archive of images")
    return scale, data


def overrides_of(suite: Suite, row: Row, params: Params, root: Path, data: str | None) -> Overrides:
    """All that a run changes in the parameters: what the suite says, the seed, and where the data are."""
    said = {"data.name": value_at(params, "data.name"), **suite.overrides(row.scale, row.experiment), "seed": row.seed}
    if data:
        return {**said, "data.name": "folder", "data.path": os.path.abspath(data)}
    return {**said, "data.path": os.path.abspath(root / str(value_at(params, "data.path")))}


def exists(root: Path, suite: Suite, row: Row, overrides: Overrides, known: Mapping[str, list[Known]]) -> bool:
    settings, data = suite.settings(row.scale, row.experiment), (overrides["data.name"], overrides["data.path"])
    return any(is_run(experiment, root, settings, data) for experiment in known.get(row.name(suite), []))


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


def make_all(
    repository: Repository,
    suite: Suite,
    todo: Mapping[Row, Overrides],
    params: Params,
    commit: str,
    *,
    force: bool,
    lock: TextIO,
) -> list[str]:
    """Check all runs, then make them one by one; the names of those that failed."""
    root, clone = repository.root, repository.clone
    changed = [
        *git(root, "diff", "--name-only", "HEAD", "--", *CODE).splitlines(),
        *git(root, "ls-files", "--others", "--exclude-standard", "--", *CODE).splitlines(),
    ]
    if changed:
        say(f"note: the runs are of commit {commit[:8]}, without your changes to {', '.join(changed)}")
    settings = fresh_clone(root, commit, clone)
    hardware = checked(repository, suite, todo, params)
    failed = []
    for number, (row, overrides) in enumerate(todo.items(), 1):
        name = row.name(suite)
        say(f"\n{name}: run {number} of {len(todo)}")
        try:
            if number > 1:
                fresh_clone(root, commit, clone, settings)
            about = {"settings": suite.settings(row.scale, row.experiment), **hardware}
            seconds = make(repository, name, overrides, about, force=force, lock=lock)
        except UserError as error:
            failed.append(name)
            say(f"error: {name}: {error}", file=sys.stderr)
            continue
        synchronise(repository, suite)
        say(f"{name}: done in {seconds:.0f} s")
    return failed


def checked(repository: Repository, suite: Suite, todo: Mapping[Row, Overrides], params: Params) -> dict[str, str]:
    """The hardware that the runs will use, after their parameters were found valid by the code that will run."""
    shown, runs = f"suites/{suite.name}.yaml", {}
    for row, overrides in todo.items():
        name = f"{row.scale}, {row.experiment}, seed {row.seed}"
        try:
            runs[name] = params_of(suite, params, overrides)
        except UserError as error:
            raise UserError(f"{shown}: {name}: {error}") from None
    done = subprocess.run(
        [sys.executable, "stages/check_params.py", "--runs"],
        input=json.dumps(runs),
        cwd=repository.clone,
        env=environment(repository.clone, repository.scratch),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise UserError(f"{shown}: {done.stderr.strip().removeprefix('error: ')}")
    try:
        return dict(json.loads(done.stdout))
    except (ValueError, TypeError) as error:
        raise UserError(f"{shown}: stages/check_params.py printed something else than the hardware ({error})") from None
