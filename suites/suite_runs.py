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
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from suite_file import value_at
from suite_record import flattened
from suite_table import Run, Suite

from common import METRICS, PARAMS, Params, load_params
from unpoison.core.errors import UserError

REFERENCE = re.compile(r"refs/exps/([0-9a-f]{2}/[0-9a-f]{38})/([^/]+)")


@dataclass(frozen=True)
class Row:
    """One experiment of the suite with one seed."""

    scale: str
    experiment: str
    seed: int

    def name(self, suite: Suite) -> str:
        return f"{suite.name}-{self.scale}-{self.experiment}-s{self.seed}"


@dataclass(frozen=True)
class Found:
    """An experiment that exists in a repository; `made` is what `make` said of it, empty for one made by hand."""

    reference: str
    commit: str
    baseline: str
    made: Mapping[str, Any]


def git(folder: Path, *command: str) -> str:
    """What git prints, run in `folder`. Raises UserError with git's own words where it fails."""
    done = subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"git {' '.join(command)}: {done.stderr.strip() or f'exit status {done.returncode}'}")
    return done.stdout.strip()


def experiments(folder: Path) -> dict[str, list[Found]]:
    """Name to the experiments of that name, on whatever commit they are based, the newest first."""
    form = "--format=%(refname)%00%(objectname)%00%(contents:body)%00"
    listed = git(folder, "for-each-ref", "--sort=-committerdate", form, "refs/exps").split("\0")
    found: dict[str, list[Found]] = {}
    for reference, commit, body in zip(listed[0::3], listed[1::3], listed[2::3], strict=False):
        if match := REFERENCE.fullmatch(reference.strip()):
            made = json.loads(body) if body.startswith("{") else {}
            known = Found(reference.strip(), commit, match[1].replace("/", ""), made)
            found.setdefault(match[2], []).append(known)
    return found


def params_at(folder: Path, commit: str) -> Params:
    """`params.yaml` of a commit."""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / PARAMS
        path.write_text(git(folder, "show", f"{commit}:{PARAMS}"), encoding="utf-8")
        return load_params(path)


def is_run(found: Found, folder: Path, settings: str, source: Mapping[str, Any]) -> bool:
    """Whether an experiment was made with these settings, on these data; they may have moved to another folder."""
    if found.made.get("settings") != settings:
        return False
    params = params_at(folder, found.commit)
    place = Path(str(value_at(params, "data.path"))).name
    return (value_at(params, "data.name"), place) == (source["data.name"], Path(source["data.path"]).name)


def read_run(folder: Path, row: Row, found: Found) -> Run:
    """The record of an experiment that `make` made."""
    params, made = params_at(folder, found.commit), found.made
    data, path = str(value_at(params, "data.name")), Path(str(value_at(params, "data.path")))
    return Run(
        scale=row.scale,
        experiment=row.experiment,
        seed=row.seed,
        settings=made["settings"],
        commit=found.baseline[:8],
        data=f"{data} {path.name}" if data == "folder" else data,
        device=made["device"],
        torch=made["torch"],
        seconds=made["seconds"],
        metrics=flattened(json.loads(git(folder, "show", f"{found.commit}:{METRICS}"))),
    )


def fresh_clone(root: Path, commit: str, folder: Path) -> None:
    """A checkout of `commit` at `folder`, in the place of what a killed run left there, with the DVC cache of `root`."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    git(root, "clone", "--quiet", "--shared", "--no-checkout", str(root), str(folder))
    git(folder, "checkout", "--quiet", "--detach", commit)
    for key, otherwise in (("user.name", "suite"), ("user.email", "suite@localhost")):
        known = subprocess.run(["git", "config", key], cwd=root, capture_output=True, text=True).stdout.strip()
        git(folder, "config", key, known or otherwise)
    local = root / ".dvc" / "config.local"
    if local.is_file():
        shutil.copy(local, folder / ".dvc")
    cache = _dvc(root, "cache", "dir")
    _dvc(folder, "config", "--local", "cache.dir", cache)
    # The lock file tells of outputs that this clone does not have, and DVC looks for them in the cache when it takes a later
    # stage from there (3.67: "failed to load directory"). Without it every stage runs or comes from the cache.
    (folder / "dvc.lock").unlink(missing_ok=True)


def _dvc(folder: Path, *command: str) -> str:
    done = subprocess.run([sys.executable, "-m", "dvc", *command], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"dvc {' '.join(command)}: {done.stderr.strip()}")
    return done.stdout.strip()


def environment(clone: Path, scratch: Path) -> dict[str, str]:
    """For programs run in the clone: its own library, this Python, and work that survives the clone."""
    library = [str(clone / "src"), str(clone / "stages")]
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join([*library, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "UNPOISON_SCRATCH": str(scratch),
    }


def make(
    root: Path,
    clone: Path,
    name: str,
    overrides: Mapping[str, Any],
    about: Mapping[str, str],
    *,
    force: bool,
    lock: TextIO,
) -> float:
    """Make experiment `name` in the clone and push it to `root`, in the place of those it has of that name.

    Args:
        overrides: dotted key to value.
        about: kept with the experiment, besides the wall time: its settings' digest, the hardware.
        force: run every stage, also where the cache has its result.
        lock: stays locked as long as DVC lives, even when this process is killed alone.

    Returns:
        Wall time in seconds.

    Raises:
        UserError: a stage failed; nothing is pushed then.
    """
    start = time.monotonic()
    # `++` sets a key whether params.yaml lists it or not: a network's own argument need not be listed.
    settings = [part for key, value in overrides.items() for part in ("-S", f"++{key}={override_text(value)}")]
    command = [sys.executable, "-m", "dvc", "exp", "run", "-n", name, *(["--force"] if force else []), *settings]
    surroundings = environment(clone, clone.parent)
    done = subprocess.run(command, cwd=clone, env=surroundings, pass_fds=[lock.fileno()])
    if done.returncode:
        raise UserError(f"`dvc exp run` ended with exit status {done.returncode}; its messages are above")
    seconds = round(time.monotonic() - start, 1)
    made = experiments(clone)[name][0]
    git(clone, "cat-file", "-e", f"{made.commit}:{METRICS}")
    message = f"{name}\n\n{json.dumps({**about, 'seconds': seconds})}"
    # One push of one reference makes the run exist, together with what is known of it; a kill before it leaves nothing.
    commit = git(clone, "commit-tree", f"{made.commit}^{{tree}}", "-p", f"{made.commit}^", "-m", message)
    earlier = experiments(root).get(name, [])
    git(clone, "push", "--quiet", "--force", str(root), f"{commit}:{made.reference}")
    for each in earlier:
        if each.reference != made.reference:
            git(root, "update-ref", "-d", each.reference)
    return seconds


def override_text(value: Any) -> str:
    """An override's value in the grammar of `dvc exp run -S`: a text in quotes, so that no character of it is special."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(override_text, value))}]"
    return "'" + value.replace("'", "\\'") + "'" if isinstance(value, str) else json.dumps(value)
