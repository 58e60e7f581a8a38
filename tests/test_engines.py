"""Engines: the same files from all of them, one shard lost with a killed worker, one line for what is not made or never comes."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest

from unpoison.compute import engines
from unpoison.compute.pools import POOLS, Run
from unpoison.core.content_store import ContentStore
from unpoison.core.errors import UserError
from unpoison.core.sharded import PATIENCE, Failure, Once, Sharded, attempt, in_turn, settle

ROOT = Path(__file__).resolve().parent.parent
COUNT = 7
FORK = multiprocessing.get_context("fork")


def work_in(folder: Path, spoil: Callable[[int], None] = lambda number: None) -> Sharded:
    """Shards whose file holds what their number gives; `spoil` comes first."""
    folder.mkdir(exist_ok=True)

    def make(number: int) -> None:
        spoil(number)
        staging = folder / f".{number}-{os.getpid()}"
        staging.write_bytes(np.random.default_rng(number).bytes(100))
        staging.rename(folder / str(number))

    return Sharded("work", COUNT, make, lambda number: (folder / str(number)).is_file())


def refusing() -> Callable[[int], None]:
    """Spoils one shard. A function within another, which workers get whole: they need not import this file, and torch with it."""

    def refuse(number: int) -> None:
        if number == 3:
            raise UserError(f"number: {number} given, allowed: others")

    return refuse


def digest_of(folder: Path) -> str:
    held = {path.name: path.read_bytes() for path in folder.iterdir()}
    return hashlib.sha256(repr(sorted(held.items())).encode()).hexdigest()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("in_turn")
    in_turn(work_in(folder))
    return digest_of(folder)


@pytest.fixture(params=["submitit", "ray"])
def elsewhere(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Sharded], None]:
    """An engine of two workers in other processes."""
    pytest.importorskip(request.param, reason="an extra: pip install '.[slurm,ray]'")
    monkeypatch.setenv("UNPOISON_ENGINE", request.param)
    monkeypatch.setenv("UNPOISON_WORKERS", "2")
    return engines.engine(tmp_path / "scratch")


def test_a_shard_that_fails_does_not_keep_the_others_from_being_made(tmp_path: Path) -> None:
    work = work_in(tmp_path / "made", refusing())
    with pytest.raises(
        UserError, match=r"^number: 3 given, allowed: others \(1 of 7 shards are missing, first shard 3; "
    ):
        in_turn(work)
    assert work.missing == [3]
    # What was not the user's to put right stays what it was, and what always fails is not tried to the end.
    with pytest.raises(ZeroDivisionError):
        in_turn(work_in(tmp_path / "none", lambda number: print(1 // 0)))
    assert len(attempt(work_in(tmp_path / "none", lambda number: print(1 // 0)), range(COUNT))) == PATIENCE


def test_a_worker_that_ended_without_a_word(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^work: a worker ended before its work; 7 of 7 shards are missing, first shard 0"
    ):
        settle(work_in(tmp_path), [])


def test_a_worker_is_killed_and_a_shard_fails(
    elsewhere: Callable[[Sharded], None], tmp_path: Path, expected: str
) -> None:
    folder, marks, refuse = tmp_path / "made", tmp_path / "marks", refusing()
    marks.mkdir()

    def spoil(number: int) -> None:
        before = len(list(marks.glob(f"{number}-*")))
        (marks / f"{number}-{before}").touch()
        if number == 2 and not before:
            os.kill(os.getpid(), signal.SIGKILL)
        refuse(number)

    with pytest.raises(
        UserError, match=r"^number: 3 given, allowed: others \(1 of 7 shards are missing, first shard 3; "
    ):
        elsewhere(work_in(folder, spoil))
    # One that was begun is lost with its worker: another makes it, and what was left. One that always fails is not tried again.
    assert sorted(mark.name for mark in marks.iterdir()) == [
        *("0-0", "1-0", "2-0", "2-1", "3-0", "4-0", "5-0", "6-0"),
    ]
    in_turn(work_in(folder))
    assert digest_of(folder) == expected


class Forked:
    """A pool of two processes that begin at once."""

    workers = 2

    def opened(self) -> AbstractContextManager[None]:
        return nullcontext()

    def start(self, run: Run) -> tuple[BaseProcess, Connection]:
        here, there = FORK.Pipe(duplex=False)
        process = FORK.Process(target=lambda: there.send(run()))
        process.start()
        # Or this process would hold the other end open, and wait at it for a worker that was killed.
        there.close()
        return process, here

    def ended(self, handle: tuple[BaseProcess, Connection]) -> bool:
        return not handle[0].is_alive()

    def waiting(self, handle: tuple[BaseProcess, Connection]) -> bool:
        return False

    def result(self, handle: tuple[BaseProcess, Connection]) -> list[Failure]:
        try:
            failures: list[Failure] = handle[1].recv()
        except EOFError:
            return []
        return failures

    def stop(self, handle: tuple[BaseProcess, Connection]) -> None:
        handle[0].kill()


def test_every_shard_that_a_worker_was_killed_at_is_tried_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()

    def kill(number: int) -> None:
        before = len(list(marks.glob(f"{number}-*")))
        (marks / f"{number}-{before}").touch()
        if number in (1, 2) or (number == 3 and not before):
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setitem(POOLS, "ray", lambda scratch: Forked())
    monkeypatch.setenv("UNPOISON_ENGINE", "ray")
    work = work_in(tmp_path / "made", kill)
    # Three, with two workers: the third is made in the end, as it was not what killed its worker.
    with pytest.raises(
        UserError, match=r"^work: a worker ended before its work; 2 of 7 shards are missing, first shard 1"
    ):
        engines.engine(tmp_path / "scratch")(work)
    assert work.missing == [1, 2]
    assert sorted(mark.name for mark in marks.iterdir() if mark.name[0] in "123") == [
        "1-0",
        "1-1",
        "2-0",
        "2-1",
        "3-0",
        "3-1",
    ]


def test_silence_ends(elsewhere: Callable[[Sharded], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNPOISON_SILENCE", "2")
    hanging = engines.engine(tmp_path / "scratch")
    start, line = (
        time.monotonic(),
        r"^work: no shard for 2 s \(UNPOISON_SILENCE\), 7 of 7 shards are missing, first shard 0",
    )
    with pytest.raises(UserError, match=line):
        hanging(work_in(tmp_path / "made", lambda number: time.sleep(600)))
    assert time.monotonic() - start < 60


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"UNPOISON_ENGINE": "dask"}, "UNPOISON_ENGINE: 'dask' given, allowed: local, torchrun, submitit, ray"),
        (
            {"UNPOISON_ENGINE": "torchrun"},
            "UNPOISON_ENGINE: torchrun given for one process, allowed: with UNPOISON_PROC",
        ),
        ({"UNPOISON_ENGINE": "local", "UNPOISON_SILENCE": "0"}, "UNPOISON_SILENCE: '0' given, allowed: a whole number"),
        (
            {"UNPOISON_ENGINE": "ray", "UNPOISON_WORKERS": "two"},
            "UNPOISON_WORKERS: 'two' given, allowed: a whole number",
        ),
        ({"UNPOISON_ENGINE": "submitit", "UNPOISON_SLURM": "gpu"}, "UNPOISON_SLURM: 'gpu' given, allowed: key=value"),
        ({"UNPOISON_ENGINE": "submitit", "UNPOISON_SLURM": "no_such=1"}, "UNPOISON_SLURM: .*no_such"),
    ],
)
def test_settings_that_cannot_be(
    settings: dict[str, str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(
        settings["UNPOISON_ENGINE"].replace("dask", "os").replace("torchrun", "os").replace("local", "os")
    )
    for key, value in settings.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(UserError, match=line):
        engines.engine(tmp_path)


def test_an_extra_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setenv("UNPOISON_ENGINE", "ray")
    with pytest.raises(
        UserError,
        match=r"^UNPOISON_ENGINE: ray given, which is not installed; allowed: after `pip install '\.\[ray\]'`$",
    ):
        engines.engine(tmp_path)


def test_what_each_process_makes_for_itself() -> None:
    made = Once(lambda: object())
    assert made() is made()
    copy = Once.__new__(Once)
    copy.__dict__.update(made.__getstate__())
    assert copy() is not made()


def test_parts_are_kept_until_they_are_forgotten(tmp_path: Path) -> None:
    made: list[int] = []

    def make(number: int) -> dict[str, np.ndarray]:
        made.append(number)
        if made == [0, 1, 2]:
            raise KeyboardInterrupt
        return {"squared": np.array(number**2)}

    def squares(store: ContentStore) -> list[int]:
        return [int(part["squared"]) for part in store.parts("kind", {"setting": 1}, 5, make)]

    with pytest.raises(KeyboardInterrupt):
        squares(ContentStore(tmp_path))
    store = ContentStore(tmp_path)
    assert squares(store) == [0, 1, 4, 9, 16]
    assert made == [0, 1, 2, 2, 3, 4]
    # Damage is found and made again.
    [damaged] = (tmp_path / "kind").glob("*/00003.npz")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert squares(store) == [0, 1, 4, 9, 16]
    assert made[6:] == [3]
    store.forget_parts()
    assert not list((tmp_path / "kind").iterdir())
    assert squares(ContentStore(None)) == [0, 1, 4, 9, 16]
    assert made[7:] == [0, 1, 2, 3, 4]


def test_a_group_of_processes_shares_the_work(tmp_path: Path, expected: str) -> None:
    script = tmp_path / "together.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\n"
        "from common import run_stage\nfrom test_engines import work_in\nfrom unpoison.compute import engines\n"
        "from unpoison.compute.distributed import world\n\n\n"
        "def main():\n"
        "    engines.engine(Path('scratch'))(work_in(Path('made'), lambda number: Path(f'{world().rank}-{number}').touch()))\n"
        "    return []\n\n\n"
        "run_stage('together', main, together=True)\n"
    )
    path = os.pathsep.join(str(ROOT / name) for name in ("src", "stages", "tests"))
    environment = {"PYTHONPATH": path, "UNPOISON_DEVICE": "cpu", "OMP_NUM_THREADS": "1", "UNPOISON_PROCESSES": "2"}
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, **environment, "UNPOISON_ENGINE": "torchrun"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert digest_of(tmp_path / "made") == expected
    assert {path.name for path in tmp_path.glob("[0-9]-*")} == {f"{number % 2}-{number}" for number in range(COUNT)}
