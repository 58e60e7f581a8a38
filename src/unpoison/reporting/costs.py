"""Cost of each stage, from the record its last run left: `python -m unpoison.reporting.costs .unpoison/costs`.

Seconds differ from run to run, so no artefact holds them and no report shows them.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ..core.files import read_json
from .page import Table


def costs_table(folder: Path) -> str:
    """A row per stage, the longest first, as Markdown; "" where no stage was run."""
    costs = {path.stem: read_json(path) for path in folder.glob("*.json")}
    if not costs:
        return ""
    ordered = sorted(costs.items(), key=lambda item: (-item[1]["seconds"], item[0]))
    rows = [[name, f"{cost['seconds']:.1f}", str(cost["peak_mib"])] for name, cost in ordered]
    # Stages run one after the other: seconds add up, of memory the largest peak counts.
    total = sum(cost["seconds"] for cost in costs.values())
    rows.append(["all", f"{total:.1f}", str(max(cost["peak_mib"] for cost in costs.values()))])
    return Table(("stage", "seconds", "peak MiB"), rows).markdown() + "\n"


if __name__ == "__main__":
    sys.stdout.write(costs_table(Path(sys.argv[1])))
