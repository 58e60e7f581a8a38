"""Runs of a suite in a repository: with DVC, killed in the middle; and what is made, skipped, replaced and said."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from suite_files import DVC, ROOT, VARIED, changed, make_project, read
from tiny import ENVIRONMENT
from tiny import run as output_of
from unpoison.board.board import read_board
from unpoison.board.order import make as make_board
from unpoison.core.errors import UserError
from unpoison.data.store import open_split, write_base
from unpoison.sources import digits
from unpoison.suites import experiments as experiments_
from unpoison.suites import git as git_
from unpoison.suites import sheet as sheet_
from unpoison.suites.experiments import experiments
from unpoison.suites.git import Repository, git
from unpoison.suites.record import read_record
from unpoison.suites.run import run
from unpoison.suites.runner import Runner
from unpoison.suites.suite import rows_of
from unpoison.suites.table import write_table

ONE_SEED = changed("scales", {"small": {"label": "200 digits", "seeds": [0], "cost": "a minute"}})
BOTH = ["tiny-small-badnets-s0", "tiny-small-blended-s0"]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """A committed project of two stages and the suite of two runs; runs write what they did to `done`."""
    root = tmp_path / "project"
    make_project(root, ONE_SEED)
    monkeypatch.setenv("DONE", str(tmp_path / "done"))
    monkeypatch.setattr(git_, "PATIENCE", 0)
    return Repository(root)


@pytest.fixture
def done(tmp_path: Path) -> Callable[..., list[str]]:
    """What was done since the last call."""

    def lines(*, keep: bool = False) -> list[str]:
        path = tmp_path / "done"
        text = path.read_text() if path.exists() else ""
        if not keep:
            path.unlink(missing_ok=True)
        return text.splitlines()

    return lines


@pytest.fixture
def quick(repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """The same without DVC's work."""
    (tmp_path / "dvc.py").write_text(DVC)
    monkeypatch.setattr(experiments_, "DVC", (sys.executable, str(tmp_path / "dvc.py")))
    return repository


@pytest.fixture
def killed(repository: Repository, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """`make suite` in a process group of its own, which waits in its second run."""
    process = subprocess.Popen(
        [sys.executable, "-m", "unpoison.suites", "run", "tiny"],
        cwd=repository.root,
        env={**ENVIRONMENT, "PYTHONPATH": str(ROOT / "src"), "DONE": str(tmp_path / "done"), "HOLD": "blended"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    yield process
    kill_all(process)
    process.communicate()


def kill_all(process: subprocess.Popen[str]) -> None:
    """Kill a process group, which may outlive its first process."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def state(root: Path) -> tuple[bytes, str, str, str]:
    """What a user would notice: edited parameters, changes, branch, stash."""
    status = git(root, "status", "--porcelain", "--", ":!reports/suites")
    return (root / "params.yaml").read_bytes(), status, (root / ".git/HEAD").read_text(), git(root, "stash", "list")


def test_kill_then_only_the_unfinished_run_is_repeated(
    repository: Repository,
    killed: subprocess.Popen[str],
    done: Callable[..., list[str]],
    capfd: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, deadline = repository.root, time.monotonic() + 120
    with (root / "params.yaml").open("a") as file:
        file.write("# an edit that is not committed\n")
    before = state(root)
    while killed.poll() is None and "blended" not in done(keep=True):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # Killed alone, it leaves DVC at work in the clone, and nobody else may start there.
    killed.kill()
    killed.wait()
    with pytest.raises(UserError, match="another `make suite` is running in this working copy"):
        run(repository, "tiny", "small", None, fresh=False)
    kill_all(killed)
    assert done() == ["data/base", "data/poisoned", "badnets", "data/poisoned", "blended"]
    assert state(root) == before
    assert list(experiments(root)) == BOTH[:1]

    # A killed process keeps its lock until the system has cleaned up after it.
    monkeypatch.setattr(git_, "PATIENCE", 60)
    run(repository, "tiny", None, None, fresh=False)
    said = capfd.readouterr().out
    assert "1 of 2 runs to make" in said
    assert "without your changes to params.yaml" in said
    assert "Stage 'prepare' is cached" in said
    assert "Stage 'poison' is cached" in said
    assert done() == ["blended"]
    assert sorted(experiments(root)) == BOTH
    assert "tiny-small-blended-s0" in output_of(root, "dvc", "exp", "show", "--md")
    assert state(root) == before
    assert not repository.clones.exists()
    runs = read_record(repository.report("tiny.runs.csv"))
    # An override of another file than params.yaml has arrived: size 3 instead of 4.
    assert [(line.experiment, line.data, line.metrics["backdoored.acc"]) for line in runs] == [
        ("badnets", "digits", 0.3),
        ("blended", "digits", 0.7),
    ]
    assert all(line.seconds and (line.torch, line.device) == ("2.0", "a machine") for line in runs)
    assert str(root) not in repository.report("tiny.runs.csv").read_text()


def test_runs_that_exist_are_not_made_again(quick: Repository, done: Callable[..., list[str]], capfd: Any) -> None:
    run(quick, "tiny", None, None, fresh=False)
    assert done() == BOTH
    record = quick.report("tiny.runs.csv")
    before = record.read_bytes()
    record.unlink()
    capfd.readouterr()
    run(quick, "tiny", "small", None, fresh=False)
    assert capfd.readouterr().out.splitlines() == [
        "tiny, scale small: 0 of 2 runs to make",
        "tiny, scale small: all runs are done; the table: make suite-table SUITE=tiny",
    ]
    assert record.read_bytes() == before
    run(quick, "tiny", "small", None, fresh=True)
    assert done() == [f"{name} --force" for name in BOTH]


def test_changed_runs_take_the_place_of_earlier_ones(
    quick: Repository, done: Callable[..., list[str]], capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(quick, "tiny", None, None, fresh=False)
    old = {name: known[0].baseline for name, known in experiments(quick.root).items()}
    git(quick.root, "commit", "-qm", "b", "--allow-empty")
    # Another rate: both are run again. The one that fails keeps what it had; the other replaces it, at the new commit.
    read(quick.root, {**ONE_SEED, "set": {**ONE_SEED["set"], "attack.poison_rate": 0.2}})
    monkeypatch.setenv("FAIL", BOTH[0])
    done(), capfd.readouterr()
    with pytest.raises(UserError, match=r"^suites/tiny\.yaml: 1 of 2 runs failed: tiny-small-badnets-s0$"):
        run(quick, "tiny", "small", None, fresh=False)
    assert done() == BOTH
    said = capfd.readouterr()
    assert "error: tiny-small-badnets-s0: `dvc exp run` ended with exit status 3" in said.err
    assert "tiny-small-blended-s0: done in" in said.out
    new = experiments(quick.root)
    assert {name: len(known) for name, known in new.items()} == dict.fromkeys(BOTH, 1)
    assert new[BOTH[0]][0].baseline == old[BOTH[0]]
    assert new[BOTH[1]][0].baseline == git(quick.root, "rev-parse", "HEAD")
    assert not quick.clones.exists()
    table = write_table(quick, "tiny")
    assert "Recorded runs of other settings than the suite has now, not counted: 1." in table
    assert quick.report("tiny.md").read_text() == table
    assert len(quick.report("tiny.csv").read_text().splitlines()) == 5


def test_data_of_the_command_line(quick: Repository, done: Callable[..., list[str]], tmp_path: Path) -> None:
    for name in ("a", "b", "moved/a"):
        (tmp_path / name).mkdir(parents=True)
    run(quick, "tiny", None, str(tmp_path / "a"), fresh=False)
    assert done() == BOTH
    run(quick, "tiny", None, str(tmp_path / "moved" / "a"), fresh=False)
    assert done() == []
    run(quick, "tiny", None, str(tmp_path / "b"), fresh=False)
    assert done() == BOTH
    # The experiments are those of the last data; the record keeps all.
    lines = [(line.experiment, line.data) for line in read_record(quick.report("tiny.runs.csv"))]
    assert lines == [(name, data) for data in ("folder a", "folder b") for name in ("badnets", "blended")]


def test_parameters_of_all_runs_are_checked_before_the_first(quick: Repository, done: Callable[..., list[str]]) -> None:
    for override, message in (
        (
            {"attack.poison_rate": 2.5},
            r"^suites/tiny\.yaml: small, blended, seed 0: params\.yaml: attack\.poison_rate: 2\.5",
        ),
        ({"trian.epochs": 1}, r"^suites/tiny\.yaml: small, blended, seed 0: trian\.epochs: no section trian in params"),
    ):
        read(quick.root, changed("experiments/blended/set", {"attack.name": "blended", **override}, ONE_SEED))
        with pytest.raises(UserError, match=message):
            run(quick, "tiny", None, None, fresh=False)
    assert done() == []
    assert not quick.clones.exists()


def test_every_value_of_what_varies_is_a_run_of_its_own(quick: Repository, done: Callable[..., list[str]]) -> None:
    read(quick.root, changed("scales", ONE_SEED["scales"], VARIED))
    run(quick, "tiny", None, None, fresh=False)
    assert done() == [f"tiny-small-{name}-s0" for name in ("badnets-0.1", "blended-0.4", "badnets-0.05")]
    runs = read_record(quick.report("tiny.runs.csv"))
    assert [run.experiment for run in runs] == ["badnets-0.05", "badnets-0.1", "blended-0.4"]
    assert write_table(quick, "tiny").count("| no tolerance |") == 3


def test_runs_are_made_beside_each_other(
    quick: Repository, done: Callable[..., list[str]], capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each waits until the other has begun.
    monkeypatch.setenv("MEET", " ".join(BOTH))
    monkeypatch.setenv("FAIL", BOTH[1])
    with pytest.raises(UserError, match=r"^suites/tiny\.yaml: 1 of 2 runs failed: tiny-small-blended-s0$"):
        run(quick, "tiny", None, None, jobs=2)
    assert sorted(done()) == BOTH
    assert [line.experiment for line in read_record(quick.report("tiny.runs.csv"))] == ["badnets"]
    # What each prints is in a file of its own.
    log = ".unpoison/suites/logs/tiny-small-blended-s0.txt"
    assert f"ended with exit status 3; its messages are in {log}" in capfd.readouterr().err
    assert (quick.root / log).read_text() == "this one fails\n"
    assert not quick.clones.exists()
    with pytest.raises(UserError, match=r"^JOBS: 0 given, allowed: from 1$"):
        run(quick, "tiny", None, None, jobs=0)


def test_runs_of_a_group_follow_each_other_and_an_end_begins_no_other(
    quick: Repository, done: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = read(quick.root, VARIED)
    with quick.locked() as lock:
        runner = Runner(quick, lock, jobs=2)
        one, two, three = ([task] for task in runner.tasks(suite, rows_of(suite, "full"), None))
        monkeypatch.setenv("MEET", f"{one[0].name} {three[0].name}")
        assert runner.make([one + two, three]) == []
        # The second waits for the first alone, and for its clone.
        assert done()[-1] == two[0].name

        def interrupted() -> None:
            raise KeyboardInterrupt

        monkeypatch.delenv("MEET")
        with pytest.raises(KeyboardInterrupt):
            runner.make([one + two, [], [], [], three + three], interrupted)
        assert two[0].name not in done()
        assert not quick.clones.exists()


def test_sheet_shows_every_trigger_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "project"
    (root / "params").mkdir(parents=True)
    for name in ("params.yaml", *(path.relative_to(ROOT) for path in (ROOT / "params").glob("*.yaml"))):
        shutil.copy(ROOT / name, root / name)
    sets = {
        "small": {"attack.name": "badnets", "params/attacks.yaml:badnets.pattern": "white"},
        "again": {"attack.name": "badnets", "params/attacks.yaml:badnets.pattern": "white", "train.epochs": 1},
        "large": {"attack.name": "badnets", "params/attacks.yaml:badnets.size": 16},
        "several": {"attack.name": "multi"},
    }
    read(root, {**VARIED, "experiments": {name: {"set": values} for name, values in sets.items()}})
    for command in ("init -q", "add -A", "-c user.name=x -c user.email=x@y commit -qm a"):
        git(root, *command.split())
    splits = digits.build({"train": 40, "test": 10, "reserve": 0, "public": 0})
    write_base(tmp_path / "base", splits, classes=digits.CLASSES, name="digits", source="-", licence="-")
    monkeypatch.setattr(sheet_, "_prepared", lambda *_: tmp_path / "base")
    drawn: dict[str, np.ndarray] = {}
    monkeypatch.setattr(sheet_.figures, "contact_sheet", lambda rows, titles: drawn.update(rows) or b"a picture")

    path = sheet_.sheet(Repository(root), "tiny", "small", None, images=2)
    assert (path, path.read_bytes()) == (root / "reports/suites/tiny-small.png", b"a picture")
    assert list(drawn) == ["clean", "small", "large", "several: 0_badnets", "several: 1_blended"]
    train = open_split(tmp_path / "base", "train")
    clean = train.gather(np.flatnonzero(train.labels == 0)[:2])
    assert np.array_equal(drawn["clean"][::2], np.concatenate([clean, clean]))
    assert not drawn["clean"][1::2].any()
    side = yaml.safe_load((ROOT / "params/attacks.yaml").read_text())["badnets"]["size"]
    corner = drawn["small"][0]
    assert (corner[-side:, -side:] == 255).all()
    assert np.array_equal(corner[:-side], clean[0][:-side])
    expected = (np.abs(corner.astype(int) - clean[0]) * 10).clip(0, 255)
    assert np.array_equal(drawn["small"][1], expected)
    sheet_.sheet(Repository(root), "tiny", "small", None, only=["several"], images=1)
    assert drawn["several: 0_badnets"].shape == (4, *clean.shape[1:])


def test_the_board_makes_what_no_record_has(
    quick: Repository, done: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    read(quick.root, VARIED)
    values = {
        "title": "A board",
        "attacks": ["badnets", "blended"],
        "rates": [0.1, 0.4, 0.05],
        "taken": 0.5,
        "solved": {"asr": 0.05, "acc_drop": 0.02, "ra_drop": 0.2, "tpr": 0.9},
        "scales": {"cpu": {"Digits": {"suites": {"tiny": "full"}}}},
    }
    (quick.root / "board.yaml").write_text(yaml.safe_dump(values))
    board, page = read_board(quick.root), quick.root / "reports" / "board" / "index.html"
    make_board(quick, board, "cpu", {}, most=2)
    assert done() == ["tiny-full-badnets-0.1-s0", "tiny-full-blended-0.4-s0"]
    before = page.read_text()
    # What is on record is not made again, also where the experiments behind it are not here.
    for reference in git(quick.root, "for-each-ref", "--format=%(refname)", "refs/exps").split():
        git(quick.root, "update-ref", "-d", reference)
    monkeypatch.setenv("FAIL", "tiny-full-badnets-0.05-s0")
    with pytest.raises(UserError, match=r"^board, scale cpu: 1 of 1 runs failed: tiny-full-badnets-0\.05-s0$"):
        make_board(quick, board, "cpu", {})
    assert done() == ["tiny-full-badnets-0.05-s0"]
    assert page.read_text() == before
    monkeypatch.delenv("FAIL")
    make_board(quick, board, "cpu", {})
    assert done() == ["tiny-full-badnets-0.05-s0"]
    make_board(quick, board, "cpu", {}, jobs=2)
    assert done() == []
    assert len(read_record(quick.report("tiny.runs.csv"))) == 3
