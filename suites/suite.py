"""Run a published table, or print it: `suite.py run NAME --scale small`, `suite.py table NAME`."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "stages"))

from suite_file import params_of, read_suite, value_at  # noqa: E402
from suite_record import merged, read_record, table_csv, write_record, write_text  # noqa: E402
from suite_runs import (  # noqa: E402
    Found,
    Row,
    environment,
    experiments,
    fresh_clone,
    git,
    is_run,
    make,
    params_at,
    read_run,
)
from suite_table import Suite, lines, markdown  # noqa: E402

from common import Params  # noqa: E402
from unpoison.core.errors import UserError  # noqa: E402

SUITES, REPORTS = ROOT / "suites", ROOT / "reports" / "suites"
# Never in DVC's or Git's sight: the clone that runs are made in, and unfinished work, which outlives it.
SCRATCH = ROOT / ".unpoison" / "suites"
CLONE = SCRATCH / "clone"
CODE = ("src", "stages", "params.yaml", "dvc.yaml")


def record_of(suite: Suite) -> Path:
    return REPORTS / f"{suite.name}.runs.csv"


def synchronise(suite: Suite) -> None:
    """Bring the record's lines of runs that exist in this repository up to date; others stay as they are."""
    known = experiments(ROOT)
    rows = [
        Row(scale, name, seed)
        for scale, settings in suite.scales.items()
        for name in suite.experiments
        for seed in settings.seeds
    ]
    here = [
        read_run(ROOT, row, found)
        for row in rows
        for found in known.get(row.name(suite), [])
        if found.made.get("settings") == suite.settings(row.scale, row.experiment)
    ]
    if here:
        write_record(record_of(suite), merged(read_record(record_of(suite)), here))


def run(name: str, scale: str, data: str | None, *, fresh: bool) -> None:
    """Make the runs of a suite that do not exist yet.

    Raises:
        UserError: something wrong with the arguments, the file or the parameters of a run, found before the first run;
            or runs that failed, after all others were made.
    """
    suite = read_suite(name, SUITES)
    if scale not in suite.scales:
        raise UserError(f"SCALE: {scale!r} given, allowed: {', '.join(suite.scales)}")
    if data and not Path(data).exists():
        raise UserError(f"DATA: {data!r} given, which does not exist; allowed: a folder or archive of images")
    with locked() as lock:
        synchronise(suite)
        commit = git(ROOT, "rev-parse", "HEAD")
        params = params_at(ROOT, commit)
        place = Path(data) if data else ROOT / str(value_at(params, "data.path"))
        source = {"data.path": os.path.abspath(place), **({"data.name": "folder"} if data else {})}
        # Seed by seed: stopped half way, every experiment has as many runs.
        rows = [Row(scale, each, seed) for seed in suite.scales[scale].seeds for each in suite.experiments]
        wanted = {row: overrides_of(suite, row, source) for row in rows}
        known = experiments(ROOT)
        todo = {row: each for row, each in wanted.items() if fresh or not exists(suite, row, each, known)}
        print(f"{name}, scale {scale}: {len(todo)} of {len(rows)} runs to make", flush=True)
        try:
            failed = make_all(suite, todo, params, commit, force=fresh, lock=lock) if todo else []
        finally:
            shutil.rmtree(CLONE, ignore_errors=True)
    if failed:
        raise UserError(f"suites/{name}.yaml: {len(failed)} of {len(rows)} runs failed: {', '.join(failed)}")
    print(f"{name}, scale {scale}: all runs are done; the table: make suite-table SUITE={name}", flush=True)


def overrides_of(suite: Suite, row: Row, source: dict[str, Any]) -> dict[str, Any]:
    """All that a run changes in `params.yaml`: what the suite says, the seed, and where the data are."""
    return {**suite.overrides(row.scale, row.experiment), "seed": row.seed, **source}


def exists(suite: Suite, row: Row, overrides: dict[str, Any], known: dict[str, list[Found]]) -> bool:
    settings = suite.settings(row.scale, row.experiment)
    return any(is_run(found, ROOT, settings, overrides) for found in known.get(row.name(suite), []))


def make_all(
    suite: Suite, todo: dict[Row, dict[str, Any]], params: Params, commit: str, *, force: bool, lock: TextIO
) -> list[str]:
    """Check all runs, then make them one by one; the names of those that failed."""
    changed = [
        *git(ROOT, "diff", "--name-only", "HEAD", "--", *CODE).splitlines(),
        *git(ROOT, "ls-files", "--others", "--exclude-standard", "--", *CODE).splitlines(),
    ]
    if changed:
        print(f"note: the runs are of commit {commit[:8]}, without your changes to {', '.join(changed)}", flush=True)
    fresh_clone(ROOT, commit, CLONE)
    hardware = checked(suite, todo, params)
    failed = []
    for number, (row, overrides) in enumerate(todo.items(), 1):
        name = row.name(suite)
        print(f"\n{name}: run {number} of {len(todo)}", flush=True)
        try:
            if number > 1:
                fresh_clone(ROOT, commit, CLONE)
            about = {"settings": suite.settings(row.scale, row.experiment), **hardware}
            seconds = make(ROOT, CLONE, name, overrides, about, force=force, lock=lock)
        except UserError as error:
            failed.append(name)
            print(f"error: {name}: {error}", file=sys.stderr, flush=True)
            continue
        synchronise(suite)
        print(f"{name}: done in {seconds:.0f} s", flush=True)
    return failed


def checked(suite: Suite, todo: dict[Row, dict[str, Any]], params: Params) -> dict[str, str]:
    """The hardware that the runs will use, after their parameters were found valid by the code that will run."""
    shown, runs = f"suites/{suite.name}.yaml", {}
    for row, overrides in todo.items():
        name = f"{row.scale}, {row.experiment}, seed {row.seed}"
        try:
            runs[name] = params_of(suite, params, overrides)
        except UserError as error:
            raise UserError(f"{shown}: {name}: {error}") from None
    done = subprocess.run(
        [sys.executable, str(SUITES / "suite_check.py")],
        input=json.dumps(runs),
        cwd=CLONE,
        env=environment(CLONE, SCRATCH),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise UserError(f"{shown}: {done.stderr.strip().removeprefix('error: ')}")
    return dict(json.loads(done.stdout))


@contextmanager
def locked() -> Iterator[TextIO]:
    """One `make suite` at a time. The lock is the operating system's, so it goes with the processes that hold it."""
    SCRATCH.mkdir(parents=True, exist_ok=True)
    with (SCRATCH / "lock").open("w") as file:
        for _ in range(10):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.5)
        else:
            raise UserError("another `make suite` is running in this working copy, allowed: one")
        yield file


def table(name: str) -> None:
    """Print the table and write it, from the suite's file and its record alone."""
    suite = read_suite(name, SUITES)
    runs = read_record(record_of(suite))
    write_text(REPORTS / f"{name}.md", markdown(suite, runs))
    write_text(REPORTS / f"{name}.csv", table_csv(lines(suite, runs)))
    print(markdown(suite, runs), end="")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run", help="make the runs that do not exist yet")
    runner.add_argument("name")
    runner.add_argument("--scale", default="small")
    runner.add_argument("--data", help="a folder or archive of images, in the place of the suite's data set")
    runner.add_argument("--fresh", action="store_true", help="make all runs again, without the cache")
    commands.add_parser("table", help="print and write the table").add_argument("name")
    given = parser.parse_args()
    try:
        if given.command == "run":
            run(given.name, given.scale, given.data, fresh=given.fresh)
        else:
            table(given.name)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("error: interrupted; the same command goes on where it stopped")


if __name__ == "__main__":
    main()
