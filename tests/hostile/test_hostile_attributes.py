"""Hostile tables of attributes: sizes, numbers, names and bytes that are not what a table has."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hostile.harness import Accepted, Case, Refused, knock
from unpoison.sources.attributes import read_table


def read(folder: Path) -> Any:
    table = read_table(folder / "t.csv")
    return [list(table.names), dict(table.rows), table.values.tolist()]


def put(content: Callable[[], bytes]) -> Callable[[Path], None]:
    def made(folder: Path) -> None:
        (folder / "t.csv").write_bytes(content())

    return made


def sparse(folder: Path) -> None:
    with (folder / "t.csv").open("wb") as file:
        file.truncate(1 << 40)


CASES = [
    Case("table-of-a-tebibyte", sparse, Refused(r"^attributes: .*t\.csv: larger than 256 MiB, allowed")),
    Case(
        "pipe",
        lambda folder: os.mkfifo(folder / "t.csv"),
        Refused(r"t\.csv: a pipe or device found, allowed: a regular"),
    ),
    Case("zeros", put(lambda: bytes(1000)), Refused(r"t\.csv: line 1: 0 attributes named|no line of a table")),
    Case("utf-16", put(lambda: "i,a\nx,1\n".encode("utf-16")), Refused(r"t\.csv: byte 0 is no UTF-8")),
    Case(
        "a-cell-of-megabytes",
        put(lambda: b"i,a\n" + b"x" * (4 << 20) + b",1\n"),
        Refused(r"t\.csv: line 2: no line of"),
    ),
    Case(
        "many-columns",
        put(lambda: b"i" + b",a" * (1 << 20) + b"\n"),
        Refused(r"line 1: 1048576 attributes named, allowed"),
    ),
    Case(
        "number-of-megabytes",
        put(lambda: b"9" * (1 << 20) + b"\na\nx 1\n"),
        Refused(r"line 1: 9+…9+ samples announced"),
    ),
    Case(
        "value-of-digits",
        put(lambda: b"i,a\nx," + b"9" * 100_000 + b"\n"),
        Refused(r"line 2: a: '9+…9+' given, allowed"),
    ),
    Case("digits-of-another-script", put(lambda: "i,a\nx,١\n".encode()), Refused(r"line 2: a: '١' given, allowed")),
    Case("a-quote-that-never-ends", put(lambda: b'i,a\n"' + b"x,1\n" * 1000), Refused(r"line \d+: no line of a table")),
    Case("a-name-a-terminal-obeys", put(lambda: b"i,\x1b[2J\nx,1\n"), Refused(r"attribute 1 is called '\\+x1b\[2J'")),
    Case(
        "samples-a-terminal-obeys",
        put(lambda: b"i,a\n\x1b[2J,1\n\\x1b[2J,0\n"),
        Accepted([["a"], {"\\x1b[2J": 0, "\\\\x1b[2J": 1}, [[1], [0]]]),
    ),
    Case(
        "a-name-that-leads-out",
        put(lambda: b"i,a\n../../etc/passwd,1\n"),
        Accepted([["a"], {"../../etc/passwd": 0}, [[1]]]),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case, tmp_path: Path) -> None:
    knock(read, case, tmp_path)
