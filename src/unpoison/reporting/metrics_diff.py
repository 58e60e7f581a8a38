"""`dvc metrics diff --json --all` on standard input, one sorted Markdown table on standard output.

DVC's own Markdown comes in a random row order, which would make a pull request's comment flicker.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def metrics_table(differences: dict[str, dict[str, Any]], *, smallest: float = 5e-5) -> str:
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
            both = isinstance(old, int | float) and isinstance(new, int | float)
            change = new - old if both else None
            changed = old != new if change is None else abs(change) >= smallest
            shown = "" if not changed else "new" if old is None else "gone" if new is None else f"{change:+.4f}"
            rows.append((not changed, path, name, _number(old), _number(new), shown))
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
    lines += [f"| {name} | {old} | {new} | {change} |" for _, _, name, old, new, change in sorted(rows)]
    return "\n".join(lines) + "\n"


def _number(value: Any) -> str:
    return "–" if value is None else f"{value:.4f}" if isinstance(value, int | float) else str(value)


if __name__ == "__main__":
    sys.stdout.write(metrics_table(json.loads(sys.stdin.read() or "{}")))
