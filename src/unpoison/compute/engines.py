"""Engines for work in shards: this process, a group of `torchrun`, Slurm jobs (submitit), a Ray cluster.

The environment chooses, never a parameter: where something was made is no property of it, and DVC need not make it again. All
engines leave the same files. Workers see the same folders as this process, under the same paths.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from ..core.progress import progress
from ..core.sharded import PATIENCE, Engine, Failure, Sharded, attempt, attempt_elsewhere, in_turn, settle
from .distributed import World, world
from .pools import POOLS, Pool, whole_number

NAMES = ("local", "torchrun", *POOLS)
POLL, PATIENTLY = 0.2, 20
"""Seconds between looks at what workers have done, and how many times as long as a look takes it is at least."""
SILENCE = 3600
"""Seconds without a new shard after which workers that run are given up (`UNPOISON_SILENCE`)."""


def engine(scratch: Path) -> Engine:
    """The engine that `UNPOISON_ENGINE` names; without it that of the processes that there are.

    Args:
        scratch: folder for what workers are handed and what they print.

    Raises:
        UserError: an engine or a number of workers that cannot be, or an extra that is not installed.
    """
    here, name = world(), os.environ.get("UNPOISON_ENGINE") or None
    if name is not None and name not in NAMES:
        raise UserError(f"UNPOISON_ENGINE: {name!r} given, allowed: {', '.join(NAMES)}")
    silence = whole_number("UNPOISON_SILENCE", SILENCE)
    if here.size > 1:
        if name not in (None, "torchrun"):
            raise UserError(f"UNPOISON_ENGINE: {name} given in a group of {here.size} processes, allowed: torchrun")
        return partial(_in_group, here=here, silence=silence)
    if name in (None, "local"):
        return in_turn
    if name == "torchrun":
        raise UserError(
            "UNPOISON_ENGINE: torchrun given for one process, allowed: with UNPOISON_PROCESSES, or started by torchrun"
        )
    return partial(_by_pool, pool=POOLS[name](scratch), silence=silence)


class Watch:
    """Tells when too long nothing has come.

    Args:
        work: what is waited for.
        silence: seconds.
    """

    def __init__(self, work: Sharded, silence: int) -> None:
        self.work, self.silence = work, silence
        self.left, self.since, self.pause = work.missing, time.monotonic(), POLL

    def look(self, *, waiting: bool = False) -> int:
        """How many shards came since the last look. `waiting`: no worker runs yet, for which a queue may have its reasons.

        Raises:
            UserError: none for too long.
        """
        start = time.monotonic()
        left = [number for number in self.left if not self.work.made(number)]
        came, self.left = len(self.left) - len(left), left
        now = time.monotonic()
        self.pause = max(POLL, PATIENTLY * (now - start))
        if came or waiting:
            self.since = now
        if left and now - self.since > self.silence:
            raise UserError(
                f"{self.work.what}: no shard for {self.silence} s (UNPOISON_SILENCE), {len(left)} of {self.work.count} shards are "
                f"missing, first shard {left[0]}; the others are kept"
            )
        return came

    def wait(self) -> None:
        """Wait before the next look: many files on a disk of many machines take their time to look at."""
        time.sleep(self.pause)


def _in_group(work: Sharded, *, here: World, silence: int) -> None:
    """Every process makes its share and waits for the others."""
    # All have looked what is missing before anything is made: they share out the same list.
    missing = work.missing
    here.wait()
    mine = missing[here.rank :: here.size]
    failures = attempt(work, progress(mine, what=work.what, unit="shard", total=len(mine)))
    if failures:
        settle(work, failures)
    # By their files and not by a barrier, which a process that ended would leave hanging.
    watch = Watch(work, silence)
    while watch.left:
        watch.look()
        watch.wait()


def _by_pool(work: Sharded, *, pool: Pool, silence: int) -> None:
    failures: list[Failure] = []
    # Shards that a worker was at when it ended without a word, which they may be the reason for.
    fatal: list[int] = []
    if not work.missing:
        return
    with pool.opened():
        shares = _shares(work.missing, pool.workers)
        # What a worker that was killed has left is made by another, unless nothing comes of that twice, or shards fail.
        fruitless = 0
        while shares and fruitless < 2 and len(failures) < PATIENCE:
            before = len(work.missing)
            failures += _round(work, shares, pool, silence)
            failed = {failure.number for failure in failures}
            left = [number for number in work.missing if number not in failed]
            fruitless += len(work.missing) == before
            fatal += [next(number for number in share if number in left) for share in shares if set(share) & set(left)]
            shares = _shares([number for number in left if number not in fatal], pool.workers)
        # Once more, each by itself, as many at a time as there are workers.
        for first in range(0, len(fatal), pool.workers):
            failures += _round(work, [[number] for number in fatal[first : first + pool.workers]], pool, silence)
    settle(work, failures)


def _shares(numbers: Sequence[int], workers: int) -> list[Sequence[int]]:
    """What each of the workers is to make; none for those that would have nothing to do."""
    count = min(workers, len(numbers))
    return [numbers[first::count] for first in range(count)]


def _round(work: Sharded, shares: Sequence[Sequence[int]], pool: Pool, silence: int) -> list[Failure]:
    """Have workers make these shards, and wait for them; what failed."""
    if not shares:
        return []
    numbers = [number for share in shares for number in share]
    handles = [pool.start(partial(attempt_elsewhere, work, share, os.getcwd())) for share in shares]
    try:
        for _ in progress(_coming(work, handles, pool, silence), what=work.what, unit="shard", total=len(numbers)):
            pass
        return [failure for handle in handles for failure in pool.result(handle)]
    finally:
        for handle in handles:
            if not pool.ended(handle):
                pool.stop(handle)


def _coming(work: Sharded, handles: list[Any], pool: Pool, silence: int) -> Iterator[int]:
    """The shards as they come, until all workers have ended."""
    watch = Watch(work, silence)
    while True:
        running = [handle for handle in handles if not pool.ended(handle)]
        yield from range(watch.look(waiting=bool(running) and all(map(pool.waiting, running))))
        if not running:
            return
        watch.wait()
