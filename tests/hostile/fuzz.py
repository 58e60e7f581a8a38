"""Mutations of small valid files, for as many minutes as are given, over every reader.

python -m hostile.fuzz [--minutes N] [--readers NAME ...] [--seed N]    # make fuzz MINUTES=N

Each reader works in a process of its own, under the limits and the watch of the hostile suite. What it answers wrongly is
made as small as possible and written to `.unpoison/fuzz/READER/`; a file moved from there to `tests/hostile/found/READER/`
is read in every test run from then on.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

from hostile.harness import assert_line, clean, confine
from unpoison.core.errors import UserError

HERE = Path(__file__).parent
FOUND = HERE / "found"
PATIENCE = 15
"""Seconds after which a reader that is still at the same input is taken to hang."""
_NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1]


class Reader(NamedTuple):
    """A reader of files, as the pipeline uses it.

    Attributes:
        name: words with hyphens.
        seeds: maker of the small valid files that are mutated.
        read: writes the bytes into an empty folder and opens it.
        right: whether, of (value of the seed, value of the mutation), the second one is right: the same data, or a
            difference that the format gives no means to tell.
    """

    name: str
    seeds: Callable[[], list[bytes]]
    read: Callable[[bytes, Path], Any]
    right: Callable[[Any, Any], bool]


def readers() -> list[Reader]:
    """The readers of all areas, each from its `fuzz_AREA.py`."""
    modules = sorted(path.stem for path in HERE.glob("fuzz_*.py"))
    return [reader for module in modules for reader in importlib.import_module(f"hostile.{module}").READERS]


def wrong(reader: Reader, values: list[Any], data: bytes, folder: Path) -> str:
    """What is wrong with a reader's answer to `data`, or "" where nothing is; `values` are those of the seeds."""
    clean(folder)
    try:
        value = reader.read(data, folder)
    except (UserError, *_defects()) as error:
        try:
            assert_line(str(error))
        except AssertionError as reason:
            return str(reason)
        return ""
    except Exception:  # any other one is what fuzzing looks for
        return traceback.format_exc()
    if not any(reader.right(valid, value) for valid in values):
        return f"accepted, with a value that is no seed's: {value!r}"[:1000]
    return ""


def _defects() -> tuple[type[Exception], ...]:
    from unpoison.sources.decode import DefectError

    return (DefectError,)


@st.composite
def mutations(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A seed with one to four changes: bits, numbers, cuts, copies, pieces of another seed."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data)))
        length = draw(st.sampled_from([1, 2, 4, 8, 64, 512, 4096]))
        kind = draw(st.sampled_from(["bit", "byte", "number", "cut", "remove", "repeat", "zeros", "splice", "swap"]))
        if kind == "bit" and place < len(data):
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte" and place < len(data):
            data[place] = draw(st.integers(0, 255))
        elif kind == "number":
            number, width = draw(st.sampled_from(_NUMBERS)), draw(st.sampled_from([1, 2, 4, 8]))
            order = draw(st.sampled_from(["little", "big"]))
            data[place : place + width] = (number % 256**width).to_bytes(width, order)  # type: ignore[arg-type]
        elif kind == "cut":
            del data[place:]
        elif kind == "remove":
            del data[place : place + length]
        elif kind == "repeat":
            data[place:place] = data[place : place + length] * draw(st.sampled_from([1, 2, 100]))
        elif kind == "zeros":
            data[place : place + length] = bytes(len(data[place : place + length]))
        elif kind == "splice":
            other = draw(st.sampled_from(seeds))
            start = draw(st.integers(0, len(other)))
            data[place:place] = other[start : start + length]
        elif kind == "swap":
            other_place = draw(st.integers(0, len(data)))
            first, second = data[place : place + length], data[other_place : other_place + length]
            data[place : place + length], data[other_place : other_place + length] = second, first
    return bytes(data)


def _work(name: str, end: float, number: int, folder: Path) -> None:
    """In a reader's process: mutate and read until the time is up. `state` counts; `current` is what is being read."""
    reader = next(each for each in readers() if each.name == name)
    seeds, place = reader.seeds(), folder / "input"
    place.mkdir()
    # Opened before the watch begins, which would see them.
    state, current = (os.open(folder / name, os.O_RDWR | os.O_CREAT) for name in ("state", "current"))
    touched = confine(place, seconds=int(end - time.time()) + 60)
    # Watched is the reader alone: Hypothesis keeps files of its own.
    touched.done = True
    set_hypothesis_home_dir(folder / "hypothesis")
    values = []
    for data in seeds:
        clean(place)
        values.append(reader.read(data, place))
    executions = 0
    while time.time() < end:

        @seed(number)
        @settings(
            max_examples=2000,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        )
        @given(mutations(seeds))
        def check(data: bytes) -> None:
            nonlocal executions
            if time.time() > end:
                return
            executions += 1
            _replace(current, data)
            _replace(state, json.dumps([executions, time.time()]).encode())
            touched.done = False
            problem = wrong(reader, values, data, place)
            touched.done = True
            _replace(state, json.dumps([executions, 0]).encode())
            problem = problem or "; ".join(touched.events)
            touched.events.clear()
            assert not problem, problem

        try:
            check()
        except Exception as error:
            # The smallest input that Hypothesis found is the last one that was read.
            place.with_name("finding").write_text("".join(traceback.format_exception(error))[-4000:], encoding="utf-8")
            os._exit(1)
        number += 1_000_003
    os._exit(0)


def _replace(file: int, data: bytes) -> None:
    """Replace what is in an open file."""
    os.ftruncate(file, 0)
    os.pwrite(file, data, 0)


def run(reader: Reader, minutes: float, number: int) -> tuple[int, str]:
    """Executions, and the finding or ""."""
    with tempfile.TemporaryDirectory() as name:
        folder, end = Path(name), time.time() + 60 * minutes
        process = multiprocessing.get_context("fork").Process(target=_work, args=(reader.name, end, number, folder))
        process.start()
        hangs = False
        while process.is_alive():
            process.join(1)
            executions, last = _state(folder)
            if last and time.time() - last > PATIENCE and time.time() - last > end - time.time():
                hangs = True
                process.kill()
        executions, _ = _state(folder)
        if process.exitcode == 0:
            return executions, ""
        finding = folder / "finding"
        reason = finding.read_text() if finding.exists() else f"{'hangs' if hangs else 'ends'} ({process.exitcode})"
        current = folder / "current"
        _keep(reader.name, current.read_bytes() if current.exists() else b"", reason)
        return executions, reason


def _state(folder: Path) -> tuple[int, float]:
    """Executions so far, and when the one began that is under way; 0 where none is."""
    try:
        executions, last = json.loads((folder / "state").read_text())
    except (OSError, ValueError):
        return 0, 0.0  # not begun, or being written
    return executions, last


def _keep(name: str, data: bytes, reason: str) -> None:
    """Write an input that was answered wrongly, and why, where a person finds it."""
    folder = Path(".unpoison/fuzz") / name
    folder.mkdir(parents=True, exist_ok=True)
    stem = sha256(data).hexdigest()[:16]
    (folder / f"{stem}.bin").write_bytes(data)
    (folder / f"{stem}.txt").write_text(reason, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5, help="for all readers together")
    parser.add_argument("--readers", nargs="*", help="names of readers; default: all")
    parser.add_argument("--seed", type=int, default=int(date.today().strftime("%Y%m%d")), help="default: the date")
    given_ = parser.parse_args()
    chosen = [reader for reader in readers() if given_.readers is None or reader.name in given_.readers]
    if not chosen:
        sys.exit(f"error: --readers: none of {', '.join(reader.name for reader in readers())}")
    findings = total = 0
    for reader in chosen:
        executions, reason = run(reader, given_.minutes / len(chosen), given_.seed)
        total += executions
        findings += bool(reason)
        print(
            f"{reader.name}: {executions} executions, {reason.splitlines()[-1] if reason else 'nothing found'}",
            flush=True,
        )
    print(f"seed {given_.seed}: {total} executions of {len(chosen)} readers, {findings} findings")
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
