"""Hostile inputs knock at a door: each in a process of its own, watched, with limits of time and memory.

A door opens what lies in a folder the way the pipeline does. The process it runs in may read and write that folder alone;
starting programs, looking up names on the network, importing what a file asks for and touching files elsewhere are seen by
an audit hook, whoever does it.
"""

from __future__ import annotations

import gc
import json
import os
import re
import resource
import select
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from unpoison.core.errors import UserError

SECONDS = 10
"""Processor time that a door may take; three times as much by the clock, as other work may run beside it."""
GROWTH = 1 << 30
"""Bytes by which the process may grow."""
LONGEST = 2048
"""Length of a message, in characters."""

Door = Callable[[Path], Any]
"""Opens what lies in a folder, as the pipeline does; what it returns goes through JSON."""


class Refused(NamedTuple):
    """The input must be refused in one line that matches `pattern`."""

    pattern: str


class Accepted(NamedTuple):
    """The input must be read: `value` is what the door returns, or a function that says whether it is right."""

    value: Any


class Case(NamedTuple):
    """A hostile input.

    Attributes:
        name: words with hyphens, for lists.
        make: maker of the input in an empty folder.
        outcome: outcome that is right.
    """

    name: str
    make: Callable[[Path], object]
    outcome: Refused | Accepted

    def __str__(self) -> str:
        return self.name


class Outcome(NamedTuple):
    """What came of a knock.

    Attributes:
        kind: `refused` (a line), `accepted` (a value), `traceback`, or how the process ended (`hang`, `signal 9`).
        value: the line, the value, or the traceback.
        touched: what the process did outside its folder, or must not do at all.
        growth: bytes by which it grew.
        printed: what it wrote to standard output and error.
    """

    kind: str
    value: Any
    touched: list[str]
    growth: int
    printed: str


OUTCOMES: list[str] = []
"""Outcome of every case of this process, for the summary of the suite."""


def knock(door: Door, case: Case, tmp_path: Path) -> None:
    """Let a case knock at a door, and assert what must hold of every input and what must hold of this one."""
    folder = tmp_path / "input"
    folder.mkdir()
    case.make(folder)
    outcome = outcome_of(door, folder)
    OUTCOMES.append(outcome.kind)
    # What holds whatever the input is.
    assert not outcome.touched, outcome.touched
    assert outcome.growth <= GROWTH, f"grew by {outcome.growth >> 20} MiB"
    assert not list(tmp_path.rglob("*.partial*")), "a half-written file is left"
    assert not _controls(outcome.printed), f"control characters printed: {outcome.printed!r}"
    # What holds of this one.
    if isinstance(case.outcome, Refused):
        assert outcome.kind == "refused", (outcome.kind, outcome.value)
        assert_line(outcome.value)
        assert re.search(case.outcome.pattern, outcome.value), outcome.value
        return
    assert outcome.kind == "accepted", (outcome.kind, outcome.value)
    expected = case.outcome.value
    if callable(expected):
        assert expected(outcome.value), outcome.value
    else:
        assert outcome.value == json.loads(json.dumps(expected))


def assert_line(message: str) -> None:
    """Assert that a message is one line for a terminal."""
    assert message, "an empty message"
    assert len(message) < LONGEST, f"a message of {len(message)} characters"
    assert "\n" not in message, "more than one line"
    assert not _controls(message), f"control characters: {message!r}"


def _controls(text: str) -> list[str]:
    """Characters that a terminal obeys instead of showing, other than the ends of lines and a progress bar's return."""
    return [letter for letter in text if not letter.isprintable() and letter not in "\n\r\t"]


def outcome_of(door: Door, folder: Path, *, patience: float = 3 * SECONDS) -> Outcome:
    """Open `folder` in a process of its own, which is killed after `patience` seconds by the clock."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Python warns of a copy of a process with threads; the copy uses none of them and ends without cleaning up.
        warnings.simplefilter("ignore", DeprecationWarning)
        process = os.fork()
    if process == 0:
        os.close(reading)
        _answer(door, folder, writing)
    os.close(writing)
    answer = _received(reading, process, patience)
    _, status = os.waitpid(process, 0)
    printed = _printed(folder).read_bytes().decode("utf-8", "backslashreplace")
    if answer is None:
        return Outcome("hang", f"longer than {patience} s", [], 0, printed)
    if not answer:
        ended = "hang" if os.WTERMSIG(status) == signal.SIGXCPU else f"signal {os.WTERMSIG(status)}"
        return Outcome(ended, printed[-1000:], [], 0, printed)
    return Outcome(**json.loads(answer), printed=printed)


def _printed(folder: Path) -> Path:
    return folder.with_name("printed.txt")


def _received(pipe: int, process: int, patience: float) -> bytes | None:
    """All that the process sends until it ends; None where it has to be killed."""
    received, end = b"", time.monotonic() + patience
    with os.fdopen(pipe, "rb", buffering=0) as stream:
        while True:
            if not select.select([stream], [], [], max(0.0, end - time.monotonic()))[0]:
                os.kill(process, signal.SIGKILL)
                return None
            if not (block := stream.read(1 << 16)):
                return received
            received += block


def _answer(door: Door, folder: Path, pipe: int) -> None:
    """In the new process: open the folder and send what came of it; never returns."""
    try:
        touched = confine(folder)
        # A collection would look at, and so copy, every object of the process that this is a copy of.
        gc.freeze()
        before = _peak()
        try:
            kind, value = "accepted", door(folder)
        except UserError as error:
            kind, value = "refused", str(error)
        except SystemExit as error:
            # How a stage ends: with its line, or with a status that nobody explained.
            explained = isinstance(error.code, str) and error.code.startswith("error: ")
            kind, value = ("refused", error.code) if explained else ("traceback", f"SystemExit({error.code!r})")
        except BaseException:
            kind, value = "traceback", traceback.format_exc()
        touched.done = True
        answer = {"kind": kind, "value": value, "touched": touched.events, "growth": _peak() - before}
        sys.stdout.flush()
        os.write(pipe, json.dumps(answer).encode())
    finally:
        # Without the cleaning up of the test run that this is a copy of.
        os._exit(0)


class Touched:
    """Record of what a process did that it must not do."""

    def __init__(self, folder: Path) -> None:
        self.events: list[str] = []
        self.done = False
        self._folder, self._outside = f"{folder.resolve()}{os.sep}", f"{folder.resolve().parent}{os.sep}"

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.done or not event.startswith(_WATCHED):
            return
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, str | bytes):
                return
            real = os.path.realpath(os.fsdecode(path))
            writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
            if self._inside(real) or not (writes or self._secret(real)):
                return
        elif event.startswith(_CHANGES):
            paths = [os.path.realpath(os.fsdecode(each)) for each in arguments if isinstance(each, str | bytes)]
            if all(map(self._inside, paths)):
                return
        self.events.append(f"{event} {arguments!r}"[:300])

    def _inside(self, path: str) -> bool:
        return f"{path}{os.sep}".startswith(self._folder) or path in _NOWHERE

    def _secret(self, path: str) -> bool:
        """Whether a file beside the folder, or one of the system's own, is what a hostile path would lead to."""
        return path.startswith(self._outside) or path in ("/etc/passwd", "/etc/hostname", "/etc/shadow")


_NOWHERE = (os.devnull, "/dev/shm")
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree")
_WATCHED = (
    "open",
    *_CHANGES,
    "subprocess.",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "pty.",
    "socket.connect",
    "socket.getaddrinfo",
    "socket.gethostby",
    "urllib.",
    "pickle.find_class",
)


def confine(folder: Path, *, seconds: int = SECONDS) -> Touched:
    """Confine this process to a folder, to `seconds` of processor time, and watch it."""
    # One thread: the pool of the process that this is a copy of does not exist here.
    torch.set_num_threads(1)
    os.chdir(folder)
    scratch = folder / ".scratch"
    os.environ |= {"TMPDIR": str(scratch), "UNPOISON_SCRATCH": str(scratch), "HOME": str(folder)}
    target = os.open(_printed(folder), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(target, 1)
    os.dup2(target, 2)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False, buffering=1)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Addresses, not memory: a stop far above the limit that is asserted, so that a bomb does not take the machine along.
    if (size := _status("VmSize")) is not None:
        resource.setrlimit(resource.RLIMIT_AS, (size + 4 * GROWTH, size + 4 * GROWTH))
    touched = Touched(folder)
    sys.addaudithook(touched)
    return touched


def _peak() -> int:
    """The most memory that this process has held, in bytes."""
    measured = _status("VmHWM")
    if measured is not None:
        return measured
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _status(key: str) -> int | None:
    """A figure of Linux's own account of this process, in bytes; None elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def clean(folder: Path) -> None:
    """Empty a folder that several inputs use in turn."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
