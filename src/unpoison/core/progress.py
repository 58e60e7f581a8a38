"""Progress of long work: a bar in a terminal, a line every half minute elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def progress(items: Iterable[Item], *, what: str, unit: str, total: int | None = None, done: int = 0) -> Iterator[Item]:
    """Pass the items through, showing what, how many, rate and time left. `done` of `total` were finished before."""
    in_terminal = sys.stderr.isatty() and not os.environ.get("CI")
    bar = tqdm(
        items,
        desc=what,
        unit=unit,
        total=total,
        # Of several processes that train together the first one speaks.
        disable=os.environ.get("RANK", "0") != "0",
        initial=done,
        leave=not in_terminal,
        mininterval=0.5 if in_terminal else 30,
        ascii=not in_terminal,
        bar_format=None if in_terminal else "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]\n",
        delay=0 if in_terminal else 30,
    )
    yield from bar
