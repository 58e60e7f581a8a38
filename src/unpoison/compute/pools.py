"""Pools of workers for `engines`: Slurm jobs by submitit, tasks of a Ray cluster. Both are extras, imported when asked for."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from ..core.errors import UserError
from ..core.sharded import Failure, called

Run = Callable[[], list[Failure]]
"""What a worker is to do; it returns what failed."""


class Pool(Protocol):
    """Workers elsewhere.

    Attributes:
        workers: number of them.
    """

    workers: int

    def opened(self) -> AbstractContextManager[None]:
        """A context within which there are workers."""

    def start(self, run: Run) -> Any:
        """Have a worker call `run`; a handle on it."""

    def ended(self, handle: Any) -> bool:
        """Whether the worker has ended, by itself or not."""

    def waiting(self, handle: Any) -> bool:
        """Whether it is in a queue."""

    def result(self, handle: Any) -> list[Failure]:
        """What `run` returned; nothing of a worker that was killed, which is said."""

    def stop(self, handle: Any) -> None:
        """End it."""


class Slurm:
    """Slurm jobs, or processes here where there is no Slurm.

    `UNPOISON_SLURM` has what a job asks for: `timeout_min=240,gpus_per_node=1`.
    """

    def __init__(self, scratch: Path) -> None:
        try:
            import submitit
        except ImportError:
            raise _missing("submitit", "slurm") from None
        self.workers, self.folder = whole_number("UNPOISON_WORKERS", _here()), scratch / "submitit"
        wanted = _pairs(os.environ.get("UNPOISON_SLURM", ""))
        self.executor = submitit.AutoExecutor(folder=self.folder / "%j")
        try:
            self.executor.update_parameters(name="unpoison", **wanted)
        except (NameError, TypeError, ValueError, AssertionError) as error:
            raise UserError(
                f"UNPOISON_SLURM: {error}; allowed: what submitit knows, as timeout_min=240,slurm_partition=gpu"
            ) from None
        self.environment = {"PYTHONPATH": import_path()}
        if self.executor.cluster == "local":
            self.environment["OMP_NUM_THREADS"] = _threads(self.workers)

    @contextmanager
    def opened(self) -> Iterator[None]:
        before = dict(os.environ)
        # Jobs inherit it.
        os.environ.update(self.environment)
        try:
            yield
        finally:
            for key in self.environment:
                if key in before:
                    os.environ[key] = before[key]
                else:
                    del os.environ[key]
        # Their logs stay where something went wrong.
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, run: Run) -> Any:
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
            _say(f"worker {handle.job_id}: {error}")
            return []
        return failures

    def stop(self, handle: Any) -> None:
        handle.cancel(check=False)


class Ray:
    """Tasks of the Ray cluster of `RAY_ADDRESS`, or of one that is started on this machine."""

    workers = 0

    def __init__(self, scratch: Path) -> None:
        try:
            import ray
        except ImportError:
            raise _missing("ray", "ray") from None
        self.ray, self.address = ray, os.environ.get("RAY_ADDRESS")
        self.asked = whole_number("UNPOISON_WORKERS", _here()) if not self.address else None

    @contextmanager
    def opened(self) -> Iterator[None]:
        environment = {"PYTHONPATH": import_path()}
        started: dict[str, Any] = {}
        if self.asked is not None:
            environment["OMP_NUM_THREADS"] = _threads(self.asked)
            # One more processor than there are workers: what Ray itself runs could else never be scheduled, without a word.
            started = {"num_cpus": self.asked + 1, "include_dashboard": False}
        self.ray.init(
            address=self.address,
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env={"env_vars": environment},
            **started,
        )
        try:
            there = self.ray.cluster_resources()
            self.gpus = min(1, int(there.get("GPU", 0)))
            whole = int(there.get("GPU", 0)) or int(there.get("CPU", 1))
            self.workers = self.asked or whole_number("UNPOISON_WORKERS", whole)
            yield
        finally:
            self.ray.shutdown()

    def start(self, run: Run) -> Any:
        # Ray's own retries would begin again with what killed a worker.
        return self.ray.remote(max_retries=0, num_cpus=1, num_gpus=self.gpus)(called).remote(run)

    def ended(self, handle: Any) -> bool:
        return bool(self.ray.wait([handle], timeout=0)[0])

    def waiting(self, handle: Any) -> bool:
        # A task that is never scheduled is what the watch is for.
        return False

    def result(self, handle: Any) -> list[Failure]:
        try:
            failures: list[Failure] = self.ray.get(handle)
        except self.ray.exceptions.RayError as error:
            _say(f"worker: {error}")
            return []
        return failures

    def stop(self, handle: Any) -> None:
        self.ray.cancel(handle, force=True)


POOLS: dict[str, Callable[[Path], Pool]] = {"submitit": Slurm, "ray": Ray}
"""Pools by the engine's name, made for a folder for what workers are handed and what they print."""


def whole_number(key: str, usual: int) -> int:
    """A number of the environment. Raises UserError for what is none from 1 on."""
    given = os.environ.get(key) or str(usual)
    if not re.fullmatch("[1-9][0-9]{0,5}", given):
        raise UserError(f"{key}: {given!r} given, allowed: a whole number from 1 to 999999")
    return int(given)


def _here() -> int:
    """Workers that this machine has room for: one for each GPU, or for each core where there is none."""
    return torch.cuda.device_count() or os.cpu_count() or 1


def _threads(workers: int) -> str:
    """Threads of each of so many workers on this machine."""
    return os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // workers))


def import_path() -> str:
    """`PYTHONPATH` of workers: what this process imports from."""
    return os.pathsep.join(entry for entry in sys.path if entry)


def _say(text: str) -> None:
    print(text.splitlines()[0], file=sys.stderr, flush=True)


def _missing(name: str, extra: str) -> UserError:
    return UserError(
        f"UNPOISON_ENGINE: {name} given, which is not installed; allowed: after `pip install '.[{extra}]'`"
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
