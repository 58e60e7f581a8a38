"""Work in shards that do not depend on each other: done in turn here, or by an engine of `compute.engines` in other processes.

A shard is a file. It is written under a temporary name and renamed, so it is there as a whole or not at all: a killed worker
loses the one it was at, and what is there is not made again. An engine makes shards and knows nothing of what they are.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from .errors import UserError
from .progress import progress

Value = TypeVar("Value")
PATIENCE = 3
"""Shards that may fail in a worker before it gives up: what makes three fail is likely to be wrong with all."""


@dataclass(frozen=True)
class Sharded:
    """Work to be done.

    Attributes:
        what: name of the work, for the progress bar and messages.
        count: number of shards.
        make: makes the shard of a number from 0 on, and leaves its file. Other processes get a copy of it, so that what it needs
            must lie in memory or under a path that they see.
        made: whether the shard of a number is there.
    """

    what: str
    count: int
    make: Callable[[int], None]
    made: Callable[[int], bool]

    @property
    def missing(self) -> list[int]:
        """Numbers of the shards that are not there."""
        return [number for number in range(self.count) if not self.made(number)]


class Once(Generic[Value]):
    """A value that each process makes for itself, when it first asks for it: a network on a device of its own."""

    def __init__(self, make: Callable[[], Value]) -> None:
        self._make, self._made = make, list[Value]()

    def __call__(self) -> Value:
        if not self._made:
            self._made.append(self._make())
        return self._made[0]

    def __getstate__(self) -> dict[str, Any]:
        return {"_make": self._make, "_made": []}


Engine = Callable[[Sharded], None]
"""Makes the shards that are missing, or raises what `settle` does."""


@dataclass(frozen=True)
class Failure:
    """A shard that could not be made.

    Attributes:
        number: its number.
        error: what was raised.
        trace: where, as Python prints it; "" for what is the user's to put right.
    """

    number: int
    error: Exception
    trace: str = ""


def attempt(work: Sharded, numbers: Iterable[int]) -> list[Failure]:
    """Make these shards but those that are there; one that fails does not keep the next ones from being made."""
    failures: list[Failure] = []
    for number in numbers:
        if len(failures) == PATIENCE:
            break
        if work.made(number):
            continue
        try:
            work.make(number)
        except Exception as error:
            trace = "" if isinstance(error, UserError) else traceback.format_exc()
            failures.append(Failure(number, error, trace))
    return failures


def settle(work: Sharded, failures: list[Failure]) -> None:
    """End with an error where shards are missing.

    Raises:
        UserError: the first failure's, or that a worker ended without one; how many are missing and that the rest is kept.
        Exception: the first failure's own error, where that is not for the user to put right.
    """
    missing = work.missing
    if not missing:
        return
    fact = f"{len(missing)} of {work.count} shards are missing, first shard {missing[0]}; the others are kept"
    if not failures:
        raise UserError(f"{work.what}: a worker ended before its work; {fact}: run the stage again")
    first = min(failures, key=lambda failure: failure.number)
    if isinstance(first.error, UserError):
        raise type(first.error)(f"{first.error} ({fact})")
    # An error that comes from another process brings no traceback of its own.
    trace = "" if first.error.__traceback__ else first.trace
    print(f"{trace}{work.what}: {fact}", file=sys.stderr, flush=True)
    raise first.error


def in_turn(work: Sharded) -> None:
    """The engine of one process."""
    missing = work.missing
    settle(work, attempt(work, progress(missing, what=work.what, unit="shard", total=len(missing))))


def attempt_elsewhere(work: Sharded, numbers: Sequence[int], folder: str) -> list[Failure]:
    """`attempt` in another process, from this one's folder; with failures that survive the way back."""
    os.chdir(folder)
    return [
        failure
        if isinstance(failure.error, UserError | OSError | MemoryError)
        # Any other error goes as text: its class may not be known there.
        else Failure(failure.number, RuntimeError(f"{type(failure.error).__name__}: {failure.error}"), failure.trace)
        for failure in attempt(work, numbers)
    ]


def called(run: Callable[[], list[Failure]]) -> list[Failure]:
    """What `run` returns, for an engine that takes plain functions alone."""
    return run()
