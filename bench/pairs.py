"""What the benches of `make bench` share: ways that take turns, ratios of neighbours, and a row for each in a CSV file."""

from __future__ import annotations

import argparse
import os
import subprocess
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch

from unpoison.compute.device import machine, pick_device

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
Rates = dict[str, list[float]]
"""Images per second of each way, one for each round."""


def arguments(documentation: str | None, runs: int) -> argparse.Namespace:
    """`runs` and `quick` of the command line; a quick bench has one run."""
    parser = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=runs)
    parser.add_argument(
        "--quick", action="store_true", help="few images, one run, nothing written: whether it runs at all"
    )
    given = parser.parse_args()
    if given.quick:
        given.runs = 1
    return given


def of_seeds(
    documentation: str | None,
    ways: Collection[str],
    name: str,
    measured: Callable[[str, int, bool], dict[str, Any]],
    *,
    default: Collection[str] | None = None,
) -> None:
    """The command line of a bench that measures each way for each seed, and a row for each, as they come, in the file `name`.

    Args:
        documentation: the script's.
        ways: what may be asked for.
        name: name of the CSV file.
        measured: way, seed and whether the bench is a quick one to the row.
        default: the ways where none are asked for; None: all.
    """
    parser = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--ways", nargs="+", choices=ways, default=list(default or ways))
    parser.add_argument(
        "--quick", action="store_true", help="few images, two epochs, nothing written: whether it runs at all"
    )
    given = parser.parse_args()
    for seed in range(given.seeds):
        for way in given.ways:
            report([measured(way, seed, given.quick)], name, write=not given.quick)


def timed(function: Callable[[], Any]) -> float:
    """Seconds of a call, those of the GPU included."""
    start = time.perf_counter()
    function()
    if pick_device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def by_turns(ways: Mapping[str, Callable[[], float]], runs: int) -> Rates:
    """Rates of ways that take turns: the machine's speed may change from minute to minute, and neighbours share it."""
    rounds = [{name: way() for name, way in ways.items()} for _ in range(runs)]
    return {name: [each[name] for each in rounds] for name in ways}


def row(what: str, rates: Rates, way: str, against: str) -> dict[str, Any]:
    """A way's rate over another one's: the median of pairs, their range, and each pair."""
    ratios = [one / other for one, other in zip(rates[way], rates[against], strict=True)]
    return {
        "what": what,
        "way": way,
        "against": against,
        "images_per_s": round(median(rates[way]), 1),
        "against_images_per_s": round(median(rates[against]), 1),
        "ratio": round(median(ratios), 2),
        "ratio_min": round(min(ratios), 2),
        "ratio_max": round(max(ratios), 2),
        "n": len(ratios),
        "ratios": " ".join(f"{ratio:.3f}" for ratio in ratios),
    }


def report(rows: list[dict[str, Any]], file: str, *, write: bool) -> None:
    """Print the rows and, unless they are of a quick bench, add them to a file of bench/results."""
    table = pd.DataFrame(rows)
    print(table.drop(columns="ratios", errors="ignore").to_string(index=False), flush=True)
    if not write:
        return
    about = {
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "commit": subprocess.check_output(["git", "describe", "--always", "--dirty"], cwd=ROOT, text=True).strip(),
        # Of other work, measured before it or beside it.
        "load": round(os.getloadavg()[0], 1),
        "date": time.strftime("%Y-%m-%d"),
    }
    earlier = [pd.read_csv(RESULTS / file)] if (RESULTS / file).is_file() else []
    pd.concat([*earlier, table.assign(**about)]).to_csv(RESULTS / file, index=False)
