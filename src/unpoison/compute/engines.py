"""Engines for work in shards: this process, a group of `torchrun`, Slurm jobs (submitit), a Ray cluster.

The environment chooses, never a parameter: where something was made is no property of it, and DVC need not make it again. All
engines leave the same files. Workers see the same folders as this process, under the same paths.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from ..core.errors import UserError
from ..core.progress import progress
from ..core.sharded import Engine, Failure, Sharded, attempt, attempt_elsewhere, called, in_turn, settle
from .distributed import World, world

NAMES = ("local", "torchrun", "submitit", "ray")
POLL = 0.2
"""Seconds between looks at what workers have done."""
SILENCE = 3600
"""Seconds without a new shard after which workers that run are given up (`UNPOISON_SILENCE`)."""
EXTRAS = {"submitit": "slurm", "ray": "ray"}


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
    if here.size > 1:
        if name not in (None, "torchrun"):
            raise UserError(f"UNPOISON_ENGINE: {name} given in a group of {here.size} processes, allowed: torchrun")
        return partial(_in_group, here=here, silence=_number("UNPOISON_SILENCE", SILENCE))
    if name in (None, "local"):
        return in_turn
    if name == "torchrun":
        raise UserError(
            "UNPOISON_ENGINE: torchrun given for one process, allowed: with UNPOISON_PROCESSES, or started by torchrun"
        )
    pool: Pool = (_Submitit if name == "submitit" else _Ray)(scratch)
    return partial(_by_pool, pool=pool, silence=_number("UNPOISON_SILENCE", SILENCE))


def _number(key: str, usual: int) -> int:
    given = os.environ.get(key) or str(usual)
    if not re.fullmatch("[1-9][0-9]{0,5}", given):
        raise UserError(f"{key}: {given!r} given, allowed: a whole number from 1 to 999999")
    return int(given)


def _workers() -> int:
    """How many workers `UNPOISON_WORKERS` asks for: otherwise one for each GPU here, or for each core where there is none."""
    return _number("UNPOISON_WORKERS", torch.cuda.device_count() or os.cpu_count() or 1)


class Watch:
    """Tells when too long nothing has come.

    Args:
        work: what is waited for.
        silence: seconds.
    """

    def __init__(self, work: Sharded, silence: int) -> None:
        self.work, self.silence = work, silence
        self.left, self.since = work.missing, time.monotonic()

    def look(self, *, waiting: bool = False) -> int:
        """How many shards came since the last look. `waiting`: no worker runs yet, for which a queue may have its reasons.

        Raises:
            UserError: none for too long.
        """
        left = [number for number in self.left if not self.work.made(number)]
        came, self.left = len(self.left) - len(left), left
        if came or waiting:
            self.since = time.monotonic()
        if left and time.monotonic() - self.since > self.silence:
            raise UserError(
                f"{self.work.what}: no shard for {self.silence} s (UNPOISON_SILENCE), {len(left)} of {self.work.count} shards are "
                f"missing, first shard {left[0]}; the others are kept"
            )
        return came


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
        time.sleep(POLL)


class Pool(Protocol):
    """Workers elsewhere."""

    def start(self, run: Callable[[], list[Failure]], number: int) -> Any:
        """Have a worker call `run`; a handle on it. `number` of the worker, from 0 on."""

    def ended(self, handle: Any) -> bool:
        """Whether the worker has ended, by itself or not."""

    def waiting(self, handle: Any) -> bool:
        """Whether it is in a queue."""

    def result(self, handle: Any) -> list[Failure]:
        """What `run` returned; nothing of one that was killed."""

    def stop(self, handle: Any) -> None:
        """End it."""

    def opened(self, work: Sharded) -> Any:
        """A context within which there are workers."""


def _by_pool(work: Sharded, *, pool: Pool, silence: int) -> None:
    failures: list[Failure] = []
    if not work.missing:
        return
    with pool.opened(work):
        # Twice: what a worker that was killed has left is made by another.
        for _ in range(2):
            failed = {failure.number for failure in failures}
            left = [number for number in work.missing if number not in failed]
            failures += _round(work, left, pool, silence)
    settle(work, failures)


def _round(work: Sharded, numbers: Sequence[int], pool: Pool, silence: int) -> list[Failure]:
    """Have the workers make these shards, and wait for them; what failed."""
    if not numbers:
        return []
    count = min(_workers(), len(numbers))
    handles = [
        pool.start(partial(attempt_elsewhere, work, numbers[first::count], os.getcwd()), first)
        for first in range(count)
    ]
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
        time.sleep(POLL)


def _path() -> str:
    """`PYTHONPATH` of workers: what this process imports from."""
    return os.pathsep.join(entry for entry in sys.path if entry)


@contextmanager
def _set(**values: str) -> Iterator[None]:
    """Within it these are in the environment, which workers inherit."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


def _threads() -> str:
    """Threads of each worker on this machine."""
    return os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // _workers()))


class _Submitit:
    """Slurm jobs, or processes here where there is no Slurm.

    `UNPOISON_SLURM` has what a job asks for: `timeout_min=240,gpus_per_node=1`.
    """

    def __init__(self, scratch: Path) -> None:
        try:
            import submitit
        except ImportError:
            raise _missing("submitit") from None
        self.folder = scratch / "submitit"
        wanted = _pairs(os.environ.get("UNPOISON_SLURM", ""))
        self.executor = submitit.AutoExecutor(folder=self.folder / "%j")
        try:
            self.executor.update_parameters(name="unpoison", **wanted)
        except (NameError, TypeError, ValueError, AssertionError) as error:
            raise UserError(
                f"UNPOISON_SLURM: {error}; allowed: what submitit knows, as timeout_min=240,slurm_partition=gpu"
            ) from None
        self.here = self.executor.cluster == "local"

    @contextmanager
    def opened(self, work: Sharded) -> Iterator[None]:
        with _set(PYTHONPATH=_path(), **({"OMP_NUM_THREADS": _threads()} if self.here else {})):
            yield

    def start(self, run: Callable[[], list[Failure]], number: int) -> Any:
        return self.executor.submit(run)

    def ended(self, handle: Any) -> bool:
        return bool(handle.done())

    def waiting(self, handle: Any) -> bool:
        return handle.state == "PENDING"

    def result(self, handle: Any) -> list[Failure]:
        from submitit.core.utils import FailedJobError, UncompletedJobError

        try:
            failures: list[Failure] = handle.result()
        except (FailedJobError, UncompletedJobError) as error:
            # A worker that was killed; what it printed is in the folder.
            print(
                f"worker {handle.job_id}: {str(error).splitlines()[0]}; {handle.paths.stderr}",
                file=sys.stderr,
                flush=True,
            )
            return []
        return failures

    def stop(self, handle: Any) -> None:
        handle.cancel(check=False)


class _Ray:
    """Workers of a Ray cluster: that of `RAY_ADDRESS`, or one that is started on this machine."""

    def __init__(self, scratch: Path) -> None:
        try:
            import ray
        except ImportError:
            raise _missing("ray") from None
        self.ray = ray

    @contextmanager
    def opened(self, work: Sharded) -> Iterator[None]:
        ray, given = self.ray, os.environ.get("RAY_ADDRESS")
        threads = {"OMP_NUM_THREADS": _threads()} if not given else {}
        # One more processor than there are workers: what Ray itself runs could else never be scheduled, without a word.
        size = {} if given else {"num_cpus": _workers() + 1, "include_dashboard": False}
        with _set(RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0"):
            ray.init(
                address=given,
                log_to_driver=False,
                logging_level="ERROR",
                runtime_env={"env_vars": {"PYTHONPATH": _path(), **threads}},
                **size,
            )
        try:
            yield
        finally:
            ray.shutdown()

    def start(self, run: Callable[[], list[Failure]], number: int) -> Any:
        gpus = 1 if torch.cuda.is_available() else 0
        # Ray's own retries would begin again with what killed a worker.
        return self.ray.remote(max_retries=0, num_cpus=1, num_gpus=gpus)(called).remote(run)

    def ended(self, handle: Any) -> bool:
        return bool(self.ray.wait([handle], timeout=0)[0])

    def waiting(self, handle: Any) -> bool:
        # A task that is never scheduled is what the watch is for.
        return False

    def result(self, handle: Any) -> list[Failure]:
        try:
            failures: list[Failure] = self.ray.get(handle)
        except self.ray.exceptions.RayError as error:
            print(f"worker: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
            return []
        return failures

    def stop(self, handle: Any) -> None:
        self.ray.cancel(handle, force=True)


def _missing(name: str) -> UserError:
    return UserError(
        f"UNPOISON_ENGINE: {name} given, which is not installed; allowed: after `pip install '.[{EXTRAS[name]}]'`"
    )


def _pairs(text: str) -> dict[str, str | int]:
    """`a=1,b=x` as a dictionary, whole numbers as numbers."""
    found: dict[str, str | int] = {}
    for pair in filter(None, text.split(",")):
        key, equals, value = pair.partition("=")
        if not (equals and key.isidentifier() and value):
            raise UserError(f"UNPOISON_SLURM: {pair!r} given, allowed: key=value, with commas between them")
        found[key] = int(value) if value.isdecimal() else value
    return found
