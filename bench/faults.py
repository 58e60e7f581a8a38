"""Faults of the machine at every stage: kills, a full disk, a read-only one, few descriptors, two runs at once.

    python bench/faults.py [--kills 50] [--seed 0]     # about 20 minutes on two cores; prints a Markdown table

A clone with tiny parameters runs every stage once. Each fault then meets a stage that is run again: what it leaves must be
the earlier output or the new one, never a part; it must end well or with one line and status 1; and the stage run once more
without the fault must leave the same bytes as the first run, and nothing half-written. The clone lies on a disk in memory
that is filled, and made read-only, where mounting one is allowed; elsewhere a limit on the size of files stands for the
full disk and folders without permission to write for the read-only one.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "stages"), str(ROOT / "tests")]

from tiny import ENVIRONMENT, TINY, digests, write_params  # noqa: E402

DISK = "1g"
STAGES = {
    "check_params": "data/checked",
    "prepare": "data/base",
    "poison": "data/poisoned",
    "train_backdoored": "models/backdoored",
    "stamp_test": "data/triggered",
    "extract": "data/features",
    "train_prior": "models/prior",
    "generate_variations": "data/variations",
    "distill_student": "models/student",
    "purify fst": "models/purified/fst",
    "detect cd": "data/scores/cd",
    "evaluate": "reports/metrics.json",
    "report": "reports/index.html",
}
"""Every stage as it is run by hand, and one of its outputs."""

Outcomes = dict[str, list[str]]
"""What came of each fault: `same bytes`, `one line`, or what was wrong."""


class Clone:
    """A clone with tiny parameters.

    Attributes:
        folder: its folder.
        whole: digest of every artefact after a run without faults.
    """

    def __init__(self, folder: Path) -> None:
        subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
        write_params(folder, {**TINY, "attack.name": "badnets"})
        self.folder = folder
        self.whole: dict[str, str] = {}
        self.seconds: dict[str, float] = {}

    def start(
        self, stage: str, *, limits: Callable[[], None] | None = None, scratch: Path | None = None
    ) -> subprocess.Popen:
        """Start a stage in a session of its own."""
        script, *arguments = stage.split()
        environment = {**ENVIRONMENT, "PYTHONPATH": str(self.folder / "src"), "OMP_NUM_THREADS": "1"}
        environment |= {"PYTHONDONTWRITEBYTECODE": "1", "UNPOISON_DEVICE": "cpu"}
        environment |= {} if scratch is None else {"UNPOISON_SCRATCH": str(scratch)}
        return subprocess.Popen(
            [sys.executable, f"stages/{script}.py", *arguments],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=limits,
        )

    def run(self, stage: str, *, limits: Callable[[], None] | None = None) -> str:
        return ended(self.start(stage, limits=limits))

    def run_all(self) -> None:
        """The run that all others are compared with."""
        for stage in STAGES:
            start = time.perf_counter()
            outcome = self.run(stage)
            if outcome:
                sys.exit(f"error: {stage}: {outcome}")
            self.seconds[stage] = time.perf_counter() - start
        self.whole = digests(self.folder)

    def damage(self) -> str:
        """What differs from the run without faults, or is half-written; "" where nothing does."""
        now = digests(self.folder)
        wrong = sorted(name for name in self.whole.keys() | now.keys() if self.whole.get(name) != now.get(name))
        left = [path.name for path in self.folder.rglob("*.partial*")]
        return f"{', '.join((wrong + left)[:3])}: not as after the first run" if wrong or left else ""

    def torn(self) -> str:
        """Which files are neither absent nor those of the first run, whatever folder they would belong to."""
        now = digests(self.folder)
        wrong = sorted(
            name for name, digest in now.items() if self.whole.get(name) != digest and ".partial" not in name
        )
        return f"{', '.join(wrong[:3])}: half-written in their place" if wrong else ""


def ended(process: subprocess.Popen) -> str:
    """How a stage ended: "" well, `one line`, or what was wrong."""
    _, said = process.communicate(timeout=600)
    if process.returncode == 0:
        return ""
    # A progress bar writes over its own line.
    lines = [line for line in said.replace("\r", "\n").splitlines() if line.strip() and "%|" not in line]
    if process.returncode == 1 and len(lines) == 1 and lines[0].startswith("error: ") and len(lines[0]) < 2048:
        return "one line"
    return f"status {process.returncode}: {' / '.join(lines[-3:])[:300]}"


def after(clone: Clone, stage: str, outcome: str) -> str:
    """Judge a stage after a fault: nothing torn, and the same bytes once it has run again."""
    problem = clone.torn() if outcome in ("", "one line") else outcome
    again = clone.run(stage)
    if again:
        problem = problem or f"run again: {again}"
    problem = problem or clone.damage()
    if problem:
        print(f"  {stage}: {problem}", file=sys.stderr, flush=True)
        if clone.damage():
            # The next fault is judged by itself.
            shutil.rmtree(clone.folder / ".unpoison", ignore_errors=True)
            clone.run_all()
    return problem or outcome or "same bytes"


def kills(clone: Clone, count: int, rng: random.Random) -> Outcomes:
    """SIGKILL at a random moment; every other time nothing of the stage is there, and no scratch."""
    outcomes: Outcomes = {"killed": [], "ended before the kill": []}
    names = list(STAGES)
    for number in range(count):
        stage = names[number % len(names)]
        if number // len(names) % 2:
            shutil.rmtree(clone.folder / ".unpoison", ignore_errors=True)
            output = clone.folder / STAGES[stage]
            shutil.rmtree(output) if output.is_dir() else output.unlink()
        process = clone.start(stage)
        # Most of a stage's time is Python's start: the last part, in which it writes, is where most kills fall.
        time.sleep(clone.seconds[stage] * rng.triangular(0.2, 1.05, 0.95))
        kind = "killed" if process.poll() is None else "ended before the kill"
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        outcomes[kind].append(after(clone, stage, ""))
    return outcomes


def each_stage(clone: Clone, fault: Callable[[], object], *, limits: Callable[[], None] | None = None) -> list[str]:
    """Every stage under a fault, which `fault` makes a context manager of."""
    outcomes = []
    for stage in STAGES:
        with fault():  # type: ignore[attr-defined]
            outcome = clone.run(stage, limits=limits)
        outcomes.append(after(clone, stage, outcome))
    return outcomes


@contextmanager
def full_disk(disk: Path) -> Iterator[None]:
    """The disk without a free byte."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        block = bytes(1 << 20)
        while block:
            try:
                file.write(block)
            except OSError:
                block = block[: len(block) // 2]
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def read_only_disk(disk: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)


@contextmanager
def read_only_folders(clone: Clone) -> Iterator[None]:
    folders = [
        path for part in ("data", "models", "reports") for path in (clone.folder / part).rglob("*") if path.is_dir()
    ]
    for folder in folders:
        folder.chmod(0o555)
    try:
        yield
    finally:
        for folder in folders:
            folder.chmod(0o755)


@contextmanager
def nothing() -> Iterator[None]:
    yield


def small_files() -> None:
    """The stand-in for a full disk: no file may grow beyond 100 bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))


def few_descriptors() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def two_at_once(clone: Clone) -> list[str]:
    """Every stage twice at the same time in one clone."""
    outcomes = []
    for stage in STAGES:
        both = [ended(process) for process in (clone.start(stage), clone.start(stage))]
        # One of the two must do its work.
        outcome = "" if both == ["", ""] else max(both, key=len)
        if "" not in both:
            outcome = f"neither of two did its work: {both}"
        outcomes.append(after(clone, stage, outcome))
    return outcomes


def shared_scratch(clone: Clone, other: Clone, scratch: Path) -> list[str]:
    """Two clones that run all stages side by side on one scratch folder, which is empty at first."""
    # Each has a run of its own to begin with: what lies in a clone otherwise is that of the default parameters.
    other.run_all()
    outcomes = [] if other.whole == clone.whole else ["the other clone's own run has other bytes"]
    for stage in STAGES:
        both = [each.start(stage, scratch=scratch) for each in (clone, other)]
        ends = [ended(process) for process in both]
        outcomes += [end or each.torn() or "same bytes" for each, end in zip((clone, other), ends, strict=True)]
    return outcomes + [problem for each in (clone, other) if (problem := each.damage())]


@contextmanager
def work_place() -> Iterator[tuple[Path, bool]]:
    """A folder, on a disk of its own where mounting one is allowed, and whether it is."""
    with tempfile.TemporaryDirectory() as name:
        disk = Path(name) / "disk"
        disk.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(disk)], capture_output=True
        )
        try:
            yield disk, mounted.returncode == 0
        finally:
            if mounted.returncode == 0:
                subprocess.run(["umount", "-l", str(disk)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="0: none")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument(
        "--only", help="a word of the faults that are tried: full, read-only, descriptors, at once, scratch"
    )
    given = parser.parse_args()
    table: Outcomes = {}
    with work_place() as (disk, mounted):
        clone = Clone(disk / "clone")
        clone.run_all()
        print(f"all stages once: {sum(clone.seconds.values()):.0f} s", file=sys.stderr, flush=True)
        if given.kills:
            table |= kills(clone, given.kills, random.Random(given.seed))
        faults: dict[str, Callable[[], list[str]]] = {
            "full disk": lambda: each_stage(clone, lambda: full_disk(disk)),
            "read-only disk": lambda: each_stage(clone, lambda: read_only_disk(disk)),
            "64 descriptors": lambda: each_stage(clone, nothing, limits=few_descriptors),
            "two runs at once": lambda: two_at_once(clone),
            "two clones, one scratch folder": lambda: shared_scratch(clone, Clone(disk / "other"), disk / "scratch"),
        }
        if not mounted:
            faults["full disk"] = lambda: each_stage(clone, nothing, limits=small_files)
            faults["read-only disk"] = lambda: each_stage(clone, lambda: read_only_folders(clone))
        table |= {name: fault() for name, fault in faults.items() if (given.only or "") in name}
    print("| fault | cases | same bytes at once | one line, same bytes when run again | wrong |\n|---|--:|--:|--:|--:|")
    wrong = 0
    for fault, outcomes in table.items():
        same, line = outcomes.count("same bytes"), outcomes.count("one line")
        wrong += len(outcomes) - same - line
        print(f"| {fault} | {len(outcomes)} | {same} | {line} | {len(outcomes) - same - line} |")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
