"""Seconds of each stage of the default run, of a commit, in a clone of its own with an empty cache.

    python bench/pipeline.py                    # the last commit; appends to bench/results/pipeline.csv
    python bench/pipeline.py --commit d3add27   # an earlier one, to compare with on the same machine and day
    python bench/pipeline.py --keep run         # leaves the clone, with all artefacts, in the new folder `run`

For each stage: the wall time from DVC's "Running stage" to the next one (start of the process, work, DVC's hashing and
caching), and the part of it that the stage measured itself, after its imports. The rest is start and DVC.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results" / "pipeline.csv"
STARTS = re.compile(r"Running stage '([^']+)'")


def run(clone: Path) -> tuple[list[tuple[str, float]], float]:
    """(stage, when it started) in order, and when `dvc repro` ended; seconds from its start."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(clone / "src"),
        "PYTHONUNBUFFERED": "1",
        "DVC_NO_ANALYTICS": "1",
    }
    begin, starts = time.perf_counter(), []
    command = [sys.executable, "-m", "dvc", "repro"]
    with subprocess.Popen(command, cwd=clone, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if found := STARTS.match(line):
                starts.append((found[1], time.perf_counter() - begin))
    if process.returncode:
        sys.exit(f"error: dvc repro ended with status {process.returncode}")
    return starts, time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", default="HEAD")
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    commit = subprocess.check_output(["git", "rev-parse", "--short", arguments.commit], cwd=ROOT, text=True).strip()
    with tempfile.TemporaryDirectory() as folder:
        clone = (arguments.keep or Path(folder) / "clone").resolve()
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        subprocess.run(["git", "checkout", "-q", commit], cwd=clone, check=True)
        starts, end = run(clone)
        ends = [when for _, when in starts[1:]] + [end]
        costs = {path.stem: json.loads(path.read_text()) for path in (clone / ".unpoison" / "costs").glob("*.json")}
        metrics = pd.json_normalize(json.loads((clone / "reports" / "metrics.json").read_text())).iloc[0]
    rows = [{"stage": "dvc repro", "wall": end, "work": None}]
    rows += [
        {"stage": stage, "wall": until - since, "work": costs.get(stage, {}).get("seconds")}
        for (stage, since), until in zip(starts, ends, strict=True)
    ]
    table = pd.DataFrame(rows)
    table["wall"] = table["wall"].round(1)
    table["rest"] = (table["wall"] - table["work"]).round(1)
    for name, value in {
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
    }.items():
        table[name] = value
    earlier = [pd.read_csv(RESULTS)] if RESULTS.is_file() else []
    pd.concat([*earlier, table]).to_csv(RESULTS, index=False)
    print(table.to_string(index=False))
    print(metrics.to_string())


if __name__ == "__main__":
    main()
