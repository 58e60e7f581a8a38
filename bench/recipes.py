"""Accuracy and attack success of training recipes, side by side on the poisoned set of this working copy.

    dvc repro poison && python bench/recipes.py                       # `fast` against `default`, three seeds
    python bench/recipes.py --recipes fast backdoorbench --seeds 0    # others

Network, data and attack are those of params.yaml; `train` in it has no part here. A seed is that of weights, order and
augmentation: the poisoned set is the same in all runs. Adds to bench/results/recipes.csv and prints mean and deviation.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "stages"))

from common import BASE, POISONED, TRUTH, load_params, section  # noqa: E402
from evaluate import model_metrics  # noqa: E402
from train_backdoored import settings  # noqa: E402
from unpoison import models  # noqa: E402
from unpoison.compute.device import machine  # noqa: E402
from unpoison.data.store import open_poisoned, open_split  # noqa: E402
from unpoison.poisoning.truth import read_truth  # noqa: E402
from unpoison.training.loop import fit  # noqa: E402
from unpoison.training.recipes import RECIPES  # noqa: E402

FIGURES = ("acc", "asr", "ra")
RESULTS = ROOT / "bench" / "results" / "recipes.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=["default", "fast"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    params = load_params()
    network, _ = settings(params)
    data, test, truth = open_poisoned(BASE, POISONED), open_split(BASE, "test"), read_truth(TRUTH)
    source, attack = section(params, "data"), section(params, "attack")
    name = Path(source["path"]).name if source["name"] == "folder" else source["name"]
    about = {
        "data": f"{name}, {len(data)} images",
        "attack": f"{attack['name']}, {attack['poison_rate']:.0%}",
        "network": " ".join(str(value) for value in network.values()),
    }
    rows = []
    for seed in arguments.seeds:
        for recipe in arguments.recipes:
            model = models.build(
                **network, num_classes=len(data.classes), image_size=data.image_size, channels=data.channels, seed=seed
            )
            start = time.perf_counter()
            history = fit(model, data, RECIPES[recipe], seed=seed, what=recipe)
            seconds = time.perf_counter() - start
            figures = model_metrics(model, test, truth)
            last = history.epochs[-1]
            rows.append(
                {"recipe": recipe, "seed": seed, **about, **{name: round(figures[name], 4) for name in FIGURES}}
                | {"epochs": len(history.epochs), "train_accuracy": round(last["accuracy"], 4)}
                | {"seconds": round(seconds, 1), "machine": machine()}
            )
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    earlier = [pd.read_csv(RESULTS)] if RESULTS.is_file() else []
    pd.concat([*earlier, table]).to_csv(RESULTS, index=False)
    print(table.groupby(["data", "recipe"])[["acc", "asr", "ra", "seconds"]].agg(["mean", "std", "count"]).to_string())


if __name__ == "__main__":
    main()
