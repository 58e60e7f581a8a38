"""Seconds to stamp 50,000 images of 32 x 32 pixels against one image at a time: the same trigger, in the same run.

    python bench/attacks.py                        # all; prints a table and adds it to bench/results/attacks.csv
    python bench/attacks.py --only badnets sig     # these attacks; prints only

Each attack whose trigger needs no trained network. Its measurements are a process of its own, for the memory: what is resident
at most during the first batched call, the stamped images included, less what was before it. The loop takes 2,000 of the
images, which is scaled up. The two take turns, and a ratio is one of neighbours, as the machine's speed may change from
minute to minute.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results" / "attacks.csv"
IMAGES, LOOP, THREADS = 50_000, 2_000, 2
# Module, settings.
ATTACKS: list[tuple[str, dict[str, Any]]] = [
    ("badnets", {}),
    ("badnets", {"location": "random"}),
    ("badnets", {"location": "dynamic"}),
    ("blended", {}),
    ("sig", {}),
    ("sig", {"form": "strip"}),
    ("trojan", {}),
    ("nashville", {}),
    ("ctrl", {}),
    ("ftrojan", {}),
    ("adaptive_blend", {}),
    ("adaptive_patch", {}),
    ("tact", {}),
    ("physical", {}),
]
AIMS = {"seconds": "< 10", "ratio": ">= 20", "memory_over_overlay": "<= 2"}


def one(name: str, settings: dict[str, Any], runs: int) -> dict[str, Any]:
    """Figures of one attack, in a fresh process."""
    import numpy as np
    import torch

    from unpoison.attacks import SINGLE
    from unpoison.crafting.context import Context
    from unpoison.data.imageset import ImageSet
    from unpoison.poisoning.trigger import stamp

    torch.set_num_threads(THREADS)
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)
    keys = np.arange(IMAGES)
    context = Context(train=ImageSet(images, keys % 10, tuple("0123456789"), "random"), seed=0)
    trigger = SINGLE[name].make(context, **settings)
    memory = 0.0
    batched, looped = [], []
    for _ in range(runs):
        # From what is resident now: after a higher peak in the past, that peak would hide what the call takes.
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        start = time.perf_counter()
        stamped = stamp(trigger, images, keys, train=True)
        batched.append(time.perf_counter() - start)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        memory = memory or (peak - resident) / images.nbytes
        start = time.perf_counter()
        alone = [stamp(trigger, images[i : i + 1], keys[i : i + 1], train=True) for i in range(LOOP)]
        looped.append((time.perf_counter() - start) * IMAGES / LOOP)
        if not np.array_equal(np.concatenate(alone), stamped[:LOOP]):
            sys.exit(f"error: {name} {settings}: an image alone is stamped otherwise than among others")
        del stamped
    ratios = [slow / fast for slow, fast in zip(looped, batched, strict=True)]
    return {
        "seconds": round(median(batched), 2),
        "loop_seconds": round(median(looped), 1),
        "ratio": round(median(ratios), 1),
        "ratio_min": round(min(ratios), 1),
        "ratio_max": round(max(ratios), 1),
        "memory_over_overlay": round(memory, 2),
        "torch": torch.__version__,
    }


def markdown(table: pd.DataFrame) -> str:
    """The figures with their aims beside them."""
    shown = table[["attack", "settings", "seconds", "loop_seconds", "ratio", "memory_over_overlay"]]
    head = [f"{name} ({AIMS[name]})" if name in AIMS else name for name in shown]
    rows = [head, ["---"] * len(head), *shown.astype(str).to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", nargs="+", metavar="ATTACK", choices=sorted({name for name, _ in ATTACKS}))
    parser.add_argument("--one", nargs=2, metavar=("ATTACK", "SETTINGS"), help="one measurement, for this program")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.one[0], json.loads(arguments.one[1]), arguments.runs)))
        return
    about = {
        "runs": arguments.runs,
        "threads": THREADS,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "commit": subprocess.check_output(["git", "describe", "--always", "--dirty"], cwd=ROOT, text=True).strip(),
        "load": round(os.getloadavg()[0], 1),
        "date": time.strftime("%Y-%m-%d"),
    }
    # A thread that spins until another one gets a core waits 8 ms per call on a busy machine, in the loop most of all.
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    rows = []
    for name, settings in ATTACKS:
        if arguments.only and name not in arguments.only:
            continue
        command = [sys.executable, __file__, "--runs", str(arguments.runs), "--one", name, json.dumps(settings)]
        figures = json.loads(subprocess.check_output(command, text=True, env=environment).splitlines()[-1])
        words = ", ".join(f"{key} {value}" for key, value in settings.items()) or "defaults"
        rows.append({"attack": name, "settings": words, **figures, **about})
        print(f"{name}, {words}: {figures['seconds']} s", file=sys.stderr, flush=True)
    table = pd.DataFrame(rows)
    print(markdown(table))
    if not arguments.only:
        earlier = [pd.read_csv(RESULTS)] if RESULTS.is_file() else []
        pd.concat([*earlier, table]).to_csv(RESULTS, index=False)


if __name__ == "__main__":
    main()
