"""Git as a subprocess, and where the things of the repository lie."""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from ..core.errors import UserError

OF_A_REPOSITORY = frozenset(
    (
        "GIT_DIR",
        "GIT_WORK_TREE",
        "GIT_COMMON_DIR",
        "GIT_INDEX_FILE",
        "GIT_OBJECT_DIRECTORY",
        "GIT_NAMESPACE",
        "GIT_PREFIX",
    )
)
PATIENCE = 5.0
"""Seconds that `make suite` waits for another one that is just ending."""


def git(folder: Path, *command: str) -> str:
    """What git prints, run in `folder`.

    Raises:
        UserError: git's own words where it fails; or there is no git, or what it prints is not UTF-8.
    """
    shown = f"git {' '.join(command)}"
    try:
        done = subprocess.run(["git", *command], cwd=folder, env=surroundings(), capture_output=True)
    except FileNotFoundError:
        raise UserError(f"{shown}: no program `git` found, or no folder {folder}; install git") from None
    if done.returncode:
        words = done.stderr.decode("utf-8", "backslashreplace").strip()
        raise UserError(f"{shown}: {words or f'exit status {done.returncode}'}")
    try:
        return done.stdout.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"{shown}: what it prints is not UTF-8 from byte {error.start} on") from None


def surroundings() -> dict[str, str]:
    """The environment of a program that works in a folder's repository: in a hook, Git's variables name another one."""
    return {key: value for key, value in os.environ.items() if key not in OF_A_REPOSITORY}


@dataclass(frozen=True)
class Repository:
    """The working copy whose suites are run."""

    root: Path

    @classmethod
    def here(cls) -> Repository:
        """The one that the working directory is in."""
        return cls(Path(git(Path(), "rev-parse", "--show-toplevel")))

    @property
    def suites(self) -> Path:
        return self.root / "suites"

    @property
    def scratch(self) -> Path:
        """Unfinished and reusable work, which outlives the clone; never in DVC's or Git's sight."""
        return self.root / ".unpoison" / "suites"

    @property
    def clones(self) -> Path:
        """What runs are made in: a clone for each that is made at the same time."""
        return self.scratch / "clones"

    def log(self, name: str) -> Path:
        """What a run prints that is made beside others."""
        return self.scratch / "logs" / f"{name}.txt"

    def report(self, name: str) -> Path:
        """A file about a suite: its record `NAME.runs.csv`, its page `NAME.md`."""
        return self.root / "reports" / "suites" / name

    @contextmanager
    def locked(self) -> Iterator[TextIO]:
        """One `make suite` at a time. The lock is the operating system's, so it goes with the processes that hold it."""
        self.scratch.mkdir(parents=True, exist_ok=True)
        with (self.scratch / "lock").open("w") as file:
            deadline = time.monotonic() + PATIENCE
            while not _lock(file):
                if time.monotonic() > deadline:
                    raise UserError("another `make suite` is running in this working copy, allowed: one")
                time.sleep(0.1)
            yield file


def _lock(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
