"""Cost of each stage, from the record its last run left: `python -m unpoison.reporting.costs .unpoison/costs`.

Seconds differ from run to run, so no artefact holds them and no report shows them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ..core.errors import ParameterError, UserError, file_of
from ..core.files import read_json
from .escaping import say
from .metrics import check_figures, figure_at
from .page import Table


def costs_table(folder: Path) -> str:
    """A row per stage, the longest first, as Markdown, then a line for each damaged file; "" where no stage was run."""
    costs, damaged = {}, []
    for path in sorted(folder.glob("*.json")):
        try:
            costs[path.stem] = _cost(path)
        except UserError as error:
            damaged.append(f"left out: {error}\n")
    if not costs:
        return "".join(damaged)
    ordered = sorted(costs.items(), key=lambda item: (-item[1][0], item[0]))
    rows = [[name, f"{seconds:.1f}", f"{peak:.0f}"] for name, (seconds, peak) in ordered]
    # Stages run one after the other: seconds add up, of memory the largest peak counts.
    total = sum(seconds for seconds, _ in costs.values())
    rows.append(["all", f"{total:.1f}", f"{max(peak for _, peak in costs.values()):.0f}"])
    return Table(("stage", "seconds", "peak MiB"), rows).markdown() + "\n" + "".join(damaged)


def _cost(path: Path) -> tuple[float, float]:
    """Seconds and peak memory in MiB, of a stage's last run."""
    cost = read_json(path)
    with file_of(path):
        check_figures(cost)
        figures = figure_at(cost, "seconds"), figure_at(cost, "peak_mib")
        if min(figures) < 0:
            raise ParameterError(f"seconds, peak_mib: {figures} found, allowed: numbers from 0")
    return figures


def main(arguments: Sequence[str]) -> None:
    if len(arguments) != 1:
        sys.exit("error: one folder of costs is to be given: python -m unpoison.reporting.costs .unpoison/costs")
    say(costs_table(Path(arguments[0])), end="")


if __name__ == "__main__":
    main(sys.argv[1:])
