"""The harness itself: what it must notice is noticed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hostile.harness import Accepted, Case, Refused, knock, outcome_of
from unpoison.core.errors import UserError


def _nothing(folder: Path) -> None:
    (folder / "file").write_text("3")


def starts_a_program(folder: Path) -> None:
    subprocess.run([sys.executable, "-c", ""], check=True)


def looks_up_a_name(folder: Path) -> None:
    socket.getaddrinfo("localhost", 80)


def writes_beside(folder: Path) -> None:
    (folder.parent / "escaped").write_text("")


def removes_beside(folder: Path) -> None:
    (folder.parent / "kept").unlink()


def reads_beside(folder: Path) -> None:
    (folder.parent / "kept").read_text()


@pytest.mark.parametrize("door", [starts_a_program, looks_up_a_name, writes_beside, removes_beside, reads_beside])
def test_what_a_door_must_not_do_is_seen(door: Any, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("")
    with pytest.raises(AssertionError, match=r"open|subprocess|socket|os\.remove"):
        knock(door, Case("", _nothing, Accepted(None)), tmp_path)


def fills_memory(folder: Path) -> int:
    return len(bytearray(os.urandom(1 << 20)) * 1100)


def prints_an_escape(folder: Path) -> None:
    print("\x1b[31m", flush=True)


def says_two_lines(folder: Path) -> None:
    error = UserError("one")
    error.args = ("one\ntwo",)
    raise error


def leaves_a_half(folder: Path) -> None:
    (folder / ".out.partial").mkdir()


@pytest.mark.parametrize(
    ("door", "words"),
    [
        (fills_memory, "grew by"),
        (prints_an_escape, "control characters"),
        (leaves_a_half, "half-written"),
    ],
)
def test_what_no_door_may_leave_is_seen(door: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=words):
        knock(door, Case("", _nothing, Accepted(lambda _: True)), tmp_path)


def test_a_message_of_two_lines_is_no_line(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="more than one line"):
        knock(says_two_lines, Case("", _nothing, Refused("one")), tmp_path)


def sleeps(folder: Path) -> None:
    time.sleep(60)


def dies(folder: Path) -> None:
    os.kill(os.getpid(), 9)


def fails(folder: Path) -> None:
    raise KeyError("a key")


def test_the_end_of_a_process_is_an_outcome(tmp_path: Path) -> None:
    (tmp_path / "input").mkdir()
    assert outcome_of(sleeps, tmp_path / "input", patience=0.2).kind == "hang"
    assert outcome_of(dies, tmp_path / "input").kind == "signal 9"
    assert outcome_of(fails, tmp_path / "input").kind == "traceback"


def reads(folder: Path) -> int:
    return int((folder / "file").read_text())


def test_a_right_value_and_a_wrong_one(tmp_path: Path) -> None:
    knock(reads, Case("", _nothing, Accepted(3)), tmp_path)
    (tmp_path / "input" / "file").unlink()
    (tmp_path / "input").rmdir()
    with pytest.raises(AssertionError):
        knock(reads, Case("", _nothing, Accepted(4)), tmp_path)
