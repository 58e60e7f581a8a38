"""Weak scaling of the engines: variations/s of two workers on twice the images, against one worker and against this process.

    python bench/engines.py            # prints a table and adds it to bench/results/engines.csv
    python bench/engines.py --quick    # whether it runs

The default run's sampler; a worker has one thread and 4,096 variations to make. The start of the workers counts, so that the
ratio is of a run of this size. A group of torchrun needs processes of its own, and is not measured here.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from pairs import ROOT, arguments, by_turns, report, row, timed
from unpoison.compute.engines import engine
from unpoison.core.content_store import ContentStore
from unpoison.data.imageset import ImageSet
from unpoison.sources import digits
from unpoison.variations.generate import generate
from unpoison.variations.prior_training import PriorRecipe, train_prior
from unpoison.variations.sampling import Settings

LOCAL = "local, 1 process"
POOLS = ("submitit", "ray")


def by_workers(pool: str) -> tuple[str, str]:
    """Names of a pool's two ways."""
    return f"{pool}, 1 worker", f"{pool}, 2 workers"


def main() -> None:
    given = arguments(__doc__, runs=3)
    images, copies = (128, 1) if given.quick else (2_048, 2)
    torch.set_num_threads(1)
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    name = params["variations"]["method"]
    own: dict[str, Any] = yaml.safe_load((ROOT / "params" / "variations.yaml").read_text(encoding="utf-8"))[name]
    made = digits.build({"train": 2 * images, "test": 10, "reserve": 10, "public": 100})
    data, public = (ImageSet(*made[part], digits.CLASSES) for part in ("train", "public"))
    recipe = PriorRecipe(**{key: value for key, value in params["prior"].items() if key != "images"} | {"steps": 1})
    with tempfile.TemporaryDirectory() as scratch:
        prior, _ = train_prior(public, recipe, seed=0, scratch=Path(scratch) / "prior")

    def rate(pool: str, workers: int) -> float:
        """Variations a second."""
        part = data.subset(np.arange(workers * images))
        with tempfile.TemporaryDirectory() as folder:
            os.environ |= {"UNPOISON_ENGINE": pool, "UNPOISON_WORKERS": str(workers)}
            store = ContentStore(Path(folder) / "store", engine(Path(folder)))
            settings = Settings(num_variations=copies)
            return len(part) * copies / timed(lambda: generate(part, name, prior, settings, own, seed=0, store=store))

    ways = {LOCAL: lambda: rate("local", 1)}
    for pool in POOLS:
        for workers, way in enumerate(by_workers(pool), start=1):
            ways[way] = lambda pool=pool, workers=workers: rate(pool, workers)
    rates = by_turns(ways, given.runs)
    rows = [
        row("variations, twice the images", rates, two, against)
        for one, two in map(by_workers, POOLS)
        for against in (one, LOCAL)
    ]
    for line in rows:
        line["efficiency"] = round(line["ratio"] / 2, 2)
    report(rows, "engines.csv", write=not given.quick)


if __name__ == "__main__":
    main()
