"""`dvc metrics diff --json --all` on standard input, one sorted Markdown table on standard output.

DVC's own Markdown comes in a random row order, which would make a pull request's comment flicker.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import Any, TypeGuard

from ..core.errors import UserError
from .escaping import markdown, say

SOURCE = "standard input"


def metrics_table(differences: Mapping[str, Mapping[str, Mapping[str, Any]]], *, smallest: float = 5e-5) -> str:
    """One row per metric, those that changed first, then by name.

    Args:
        differences: by file and metric, `old`, `new` and `diff`, as DVC prints them.
        smallest: smallest change that counts as one.
    """
    rows = []
    for path, metrics in differences.items():
        for name, values in metrics.items():
            old, new = values.get("old"), values.get("new")
            # DVC leaves out what is absent on one side, and a metric need not be a number.
            change = new - old if _is_number(old) and _is_number(new) else None
            # By their words, as NaN differs from itself.
            changed = _shown(old) != _shown(new) if change is None else abs(change) >= smallest
            shown = "" if not changed else "new" if old is None else "gone" if new is None else "changed"
            if changed and change is not None:
                shown = f"{change:+.4f}"
            rows.append((not changed, path, name, _shown(old), _shown(new), shown))
    if not rows:
        return "No metrics to compare.\n"
    changed_rows = sum(not row[0] for row in rows)
    lines = [
        f"**{changed_rows} of {len(rows)} metrics changed**",
        "",
        "| metric | base | this | change |",
        "|---|---:|---:|---:|",
    ]
    # Sorted as tuples: False comes first, and with it the metrics that changed.
    lines += [f"| {' | '.join(map(markdown, cells))} |" for _, _, *cells in sorted(rows)]
    return "\n".join(lines) + "\n"


def read_differences(text: str | bytes) -> dict[str, dict[str, dict[str, Any]]]:
    """What DVC printed: blocks by file and by metric.

    Raises:
        UserError: anything else, or a name that occurs twice, of which one would be lost.
    """
    try:
        read = json.loads(text or "{}", object_pairs_hook=_once)
    except UserError:
        raise
    # Blocks in blocks beyond Python's depth are no message of DVC's either.
    except (ValueError, RecursionError) as error:
        raise UserError(f"{SOURCE}: not readable as JSON ({str(error)[:200]})") from None
    blocks = [read, *_blocks(read), *(block for file in _blocks(read) for block in _blocks(file))]
    if not all(isinstance(block, dict) for block in blocks):
        raise UserError(f"{SOURCE}: other JSON found, allowed: what `dvc metrics diff --json --all` prints")
    return dict(read)


def _blocks(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else []


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    block = dict(pairs)
    if len(block) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{SOURCE}: {twice[:80]!r} found twice in a block, allowed: once")
    return block


def _is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value is a number to calculate with: a flag is none, nor what no float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e15 if isinstance(value, int) else math.isfinite(value)


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if _is_number(value):
        return f"{value:.4f}"
    return "a huge number" if isinstance(value, int) and not isinstance(value, bool) else str(value)[:80]


def main() -> None:
    try:
        say(metrics_table(read_differences(sys.stdin.buffer.read())), end="")
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
