"""Hostile tables of digits: what is none, however long it is or whatever it expands to."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from hostile.fuzz_tables import TABLE
from hostile.harness import Accepted, Case, Refused, knock
from unpoison.sources.multi_mnist import open_multi_mnist

LINES = TABLE.splitlines()


def numbers(folder: Path) -> list[int]:
    """How many images each split has that is made of the table."""
    sizes = {"train": 100, "test": 100, "reserve": 0, "public": 0}
    source = open_multi_mnist(folder / "digits.csv", sizes, seed=0, own=folder)
    return [len(source.labels[name]) for name in sizes]


def case(name: str, content: Callable[[], bytes], pattern: str) -> Case:
    return Case(name, lambda folder: (folder / "digits.csv").write_bytes(content()), Refused(pattern))


def put(content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "digits.csv").write_bytes(content)


CASES = [
    Case("table-as-it-should-be", put(TABLE * 2), Accepted([100, 100, 0, 0])),
    Case("table-gzipped-with-other-line-ends", put(gzip.compress(b"\r\n".join(LINES * 2))), Accepted([100, 100, 0, 0])),
    case("line-without-an-end", lambda: b"7," * 50_000_000, r"digits\.csv: line 1: '7,7,.*' found, allowed: 784 whole"),
    case("gzip-bomb", lambda: gzip.compress(bytes(500_000_000), 1), r"digits\.csv: line 1: .* found, allowed: 784"),
    case("gzip-bomb-of-empty-lines", lambda: gzip.compress(b"\n" * 100_000_000, 1), r"line 1: '' found"),
    case("numbers-of-any-length", lambda: b"0" * 1_000_000 + TABLE, r"line 1: '0000"),
    case("other-digits-than-ascii", lambda: "٣,".encode() * 784 + b"3", r"line 1: '٣,"),
    case("signs-and-spaces", lambda: TABLE.replace(b"20,", b"+20,", 1), r"line 2: '\+20,20"),
    case("control-characters", lambda: b"\x1b[31m\0" + TABLE, r"line 1: '\\x1b\[31m\\x00"),
    case("label-missing", lambda: TABLE.replace(b",0\n", b"\n", 1), r"line 1: '0,0"),
    case("a-digit-that-is-not-there", lambda: b"\n".join(LINES[:9] * 2), r"path: 0 images of the digit 9 found"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case, tmp_path: Path) -> None:
    knock(numbers, case, tmp_path)
