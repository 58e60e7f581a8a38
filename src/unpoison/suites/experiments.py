"""One run of a suite is one DVC experiment: find it, make it, read it back.

A run is made in a private clone of the repository that shares the working copy's DVC cache, and its experiment is pushed
back as one Git reference. `dvc exp run --temp` would stash and restore the user's own changes around each start, leave them
in the stash and its folder on disk when it is killed, and import the library from the working copy, edited or not.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ..core.errors import UserError
from ..reporting.escaping import JOINERS, visible
from .git import git, surroundings
from .params import override, scenario_at, value_at
from .record import Run, figures_of
from .suite import Overrides, Row

METRICS = "reports/metrics.json"
DVC = (sys.executable, "-m", "dvc")
REFERENCE = re.compile(r"refs/exps/([0-9a-f]{2}/[0-9a-f]{38})/([^/]+)")


@dataclass(frozen=True)
class Known:
    """An experiment that exists in a repository; `made` is what `make` said of it, empty for one made by hand."""

    reference: str
    commit: str
    baseline: str
    made: Mapping[str, Any]


def experiments(folder: Path) -> dict[str, list[Known]]:
    """Name to the experiments of that name, on whatever commit they are based, the newest first."""
    form = "--format=%(refname)%00%(objectname)%00%(contents:body)%00"
    listed = git(folder, "for-each-ref", "--sort=-committerdate", form, "refs/exps").split("\0")
    named: dict[str, list[Known]] = {}
    for reference, commit, body in zip(listed[0::3], listed[1::3], listed[2::3], strict=False):
        if match := REFERENCE.fullmatch(reference.strip()):
            made = _made(body)
            known = Known(reference.strip(), commit, match[1].replace("/", ""), made)
            named.setdefault(match[2], []).append(known)
    return named


def _made(body: str) -> dict[str, Any]:
    """What `make` said of an experiment in its commit message; nothing where the message is not one of `make`."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    texts = isinstance(said, dict) and all(isinstance(said.get(key), str) for key in ("settings", "device", "torch"))
    seconds = said.get("seconds") if texts else None
    return said if isinstance(seconds, int | float) and 0 <= seconds < 1e9 else {}


def is_run(known: Known, folder: Path, settings: str, data: tuple[str, str]) -> bool:
    """Whether an experiment was made with these settings, on these data (set, path), wherever their folder is now."""
    if known.made.get("settings") != settings:
        return False
    name, path = data_of(folder, known)
    return (name, Path(path).name) == (data[0], Path(data[1]).name)


def data_of(folder: Path, known: Known) -> tuple[str, str]:
    """The data set and the path that an experiment was made with."""
    params = scenario_at(folder, known.commit)
    return str(value_at(params, "data.name")), str(value_at(params, "data.path"))


def read_run(folder: Path, row: Row, known: Known) -> Run:
    """The record of an experiment that `make` made."""
    (data, path), made = data_of(folder, known), known.made
    try:
        metrics = figures_of(json.loads(git(folder, "show", f"{known.commit}:{METRICS}")))
    except (ValueError, RecursionError) as error:
        raise UserError(f"experiment {row.experiment}, seed {row.seed}: {METRICS}: {error}") from None
    return Run(
        scale=row.scale,
        experiment=row.experiment,
        seed=row.seed,
        settings=made["settings"],
        commit=known.baseline[:8],
        # As the record will hold them, so that a run is found there again.
        data=visible(f"{data} {Path(path).name}" if data == "folder" else data, keep=JOINERS),
        device=visible(made["device"], keep=JOINERS),
        torch=visible(made["torch"], keep=JOINERS),
        seconds=made["seconds"],
        metrics=metrics,
    )


def fresh_clone(root: Path, commit: str, folder: Path, settings: bytes | None = None) -> bytes:
    """A clone of `root` at `commit` in the place of `folder`, with its own work tree and the cache of `root`.

    Args:
        settings: what an earlier call returned, which spares asking DVC again.

    Returns:
        DVC's local settings of the clone, those of `root` and where its cache is.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    git(root, "clone", "--quiet", "--shared", "--no-checkout", str(root), str(folder))
    git(folder, "checkout", "--quiet", "--detach", commit)
    for key, otherwise in (("user.name", "suite"), ("user.email", "suite@localhost")):
        known = subprocess.run(
            ["git", "config", key], cwd=root, env=surroundings(), capture_output=True, text=True
        ).stdout.strip()
        git(folder, "config", key, known or otherwise)
    local = Path(".dvc", "config.local")
    if settings is not None:
        (folder / local).write_bytes(settings)
    else:
        if (root / local).is_file():
            shutil.copy(root / local, folder / local)
        _dvc(folder, "config", "--local", "cache.dir", _dvc(root, "cache", "dir"))
    # The lock file tells of outputs that this clone does not have, and DVC looks for them in the cache when it takes a later
    # stage from there (3.67: "failed to load directory"). Without it every stage runs or comes from the cache.
    (folder / "dvc.lock").unlink(missing_ok=True)
    return (folder / local).read_bytes()


def _dvc(folder: Path, *command: str) -> str:
    done = subprocess.run([*DVC, *command], cwd=folder, env=surroundings(), capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"dvc {' '.join(command)}: {done.stderr.strip()}")
    return done.stdout.strip()


def environment(clone: Path, scratch: Path, *, jobs: int = 1) -> dict[str, str]:
    """For programs run in the clone: its own library, this Python, work that survives the clone, and its share of the cores."""
    share = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))} if jobs > 1 else {}
    return {
        **share,
        **surroundings(),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join([str(clone / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "UNPOISON_SCRATCH": str(scratch),
    }


def make(
    root: Path,
    clone: Path,
    name: str,
    overrides: Overrides,
    about: Mapping[str, str],
    given: Mapping[str, str],
    *,
    force: bool,
    lock: TextIO,
    log: Path | None = None,
) -> float:
    """Make experiment `name` in a clone of `root` and push it there, in the place of those it has of that name.

    Args:
        overrides: by the parameter's key.
        about: kept with the experiment, besides the wall time: its settings' digest, the hardware.
        given: the environment of DVC and its stages.
        force: run every stage, also where the cache has its result.
        lock: stays locked as long as DVC lives, even when this process is killed alone.
        log: file for what the run prints; None: the terminal.

    Returns:
        Wall time in seconds.

    Raises:
        UserError: a stage failed; nothing is pushed then.
    """
    start = time.monotonic()
    settings = [part for key, value in overrides.items() for part in ("-S", override(key, value))]
    command = [*DVC, "exp", "run", "-n", name, *(["--force"] if force else []), *settings]
    with ExitStack() as opened:
        printed: dict[str, Any] = {}
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            printed = {"stdout": opened.enter_context(log.open("wb")), "stderr": subprocess.STDOUT}
        done = subprocess.run(command, cwd=clone, env=given, pass_fds=[lock.fileno()], **printed)
    if done.returncode:
        where = "above" if log is None else f"in {log.relative_to(root)}"
        raise UserError(f"`dvc exp run` ended with exit status {done.returncode}; its messages are {where}")
    seconds = round(time.monotonic() - start, 1)
    made = experiments(clone)[name][0]
    git(clone, "cat-file", "-e", f"{made.commit}:{METRICS}")
    message = f"{name}\n\n{json.dumps({**about, 'seconds': seconds})}"
    # One push of one reference makes the run exist, together with what is known of it; a kill before it leaves nothing.
    commit = git(clone, "commit-tree", f"{made.commit}^{{tree}}", "-p", f"{made.commit}^", "-m", message)
    earlier = experiments(root).get(name, [])
    git(clone, "push", "--quiet", "--force", str(root), f"{commit}:{made.reference}")
    for other in earlier:
        if other.reference != made.reference:
            git(root, "update-ref", "-d", other.reference)
    return seconds
