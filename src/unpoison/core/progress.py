"""Progress of long work: a bar in a terminal, a line every half minute elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def progress(items: Iterable[Item], *, what: str, unit: str, total: int | None = None, done: int = 0) -> Iterator[Item]:
    """The items, one by one, with a display of how many are done, the rate and the time left.

    Args:
        items: items to pass through.
        what: name of the work.
        unit: name of an item.
        total: number of items, with those done before.
        done: number of items that an earlier run has done.
    """
    # A log file, or CI, gets lines: a bar that overwrites itself would be one endless line there.
    in_terminal = sys.stderr.isatty() and not os.environ.get("CI")
    bar = tqdm(
        items,
        desc=what,
        unit=unit,
        total=total,
        # Of several processes that train together, only the first one reports.
        disable=os.environ.get("RANK", "0") != "0",
        initial=done,
        leave=not in_terminal,
        mininterval=0.5 if in_terminal else 30,
        ascii=not in_terminal,
        bar_format=None if in_terminal else "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]\n",
        delay=0 if in_terminal else 30,
    )
    yield from bar
