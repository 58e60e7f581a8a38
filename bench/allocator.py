"""Seconds of Cognitive Distillation and STRIP with and without glibc keeping freed memory (`compute/device.py`).

    python bench/allocator.py     # prints a table and writes bench/results/allocator.csv

Each measurement is a process of its own, as the setting lasts as long as a process; with and without take turns.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

RESULTS = Path(__file__).parent / "results" / "allocator.csv"
METHODS = {"cd": {"steps": 10}, "strip": {"overlays": 12}}


def one(method: str, *, keep: bool) -> float:
    """Seconds that a detector takes on 1,024 images with an untrained network of the default shape."""
    from unpoison import models
    from unpoison.compute import device
    from unpoison.compute.inference import features_of
    from unpoison.data.imageset import ImageSet
    from unpoison.detection import DETECTORS
    from unpoison.detection.detector import Suspect
    from unpoison.sources import digits

    if not keep:
        device._keep_freed_memory = lambda: None  # type: ignore[assignment]
    splits = digits.build({"train": 1024, "reserve": 100})
    data, reserve = (ImageSet(*splits[name], digits.CLASSES) for name in ("train", "reserve"))
    model = models.build("resnet18", num_classes=10, image_size=(32, 32), width=16, stem="conv3_pool").eval()
    features, trusted, score = features_of(model, data), features_of(model, reserve), DETECTORS[method].score
    suspect = Suspect(model=model, data=data, features=features, reserve=reserve, reserve_features=trusted)
    score(suspect.subset(np.arange(128)), seed=0, **METHODS[method])  # warm-up
    start = time.perf_counter()
    score(suspect, seed=0, **METHODS[method])
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "keep|return"), help="one measurement, for this program")
    arguments = parser.parse_args()
    if arguments.one:
        print(one(arguments.one[0], keep=arguments.one[1] == "keep"))
        return
    rows = []
    for method in METHODS:
        pairs = []
        for _ in range(arguments.runs):
            command = [sys.executable, __file__, "--one", method]
            pairs.append([float(subprocess.check_output([*command, how]).split()[-1]) for how in ("return", "keep")])
        returned, kept = np.array(pairs).T
        rows.append(
            {
                "method": method,
                "returned_s": round(float(np.median(returned)), 2),
                "kept_s": round(float(np.median(kept)), 2),
                "ratio": round(float(np.median(kept / returned)), 2),
                "ratio_min": round(float((kept / returned).min()), 2),
                "ratio_max": round(float((kept / returned).max()), 2),
                "runs": arguments.runs,
            }
        )
    table = pd.DataFrame(rows)
    table.to_csv(RESULTS, index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
