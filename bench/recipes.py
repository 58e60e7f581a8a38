"""Accuracy and attack success of training recipes, side by side on the poisoned set of this working copy.

    dvc repro stamp_test && python bench/recipes.py                    # `fast` against `default`, three seeds
    python bench/recipes.py --recipes fast backdoorbench --seeds 0    # others

Network, data and attack are those of params.yaml; `train` in it has no part here. A seed is that of weights, order and
augmentation: the poisoned set is the same in all runs. Adds to bench/results/recipes.csv and prints mean and deviation.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import pandas as pd
from ruamel.yaml import YAML

from unpoison import models
from unpoison.compute.device import machine
from unpoison.data.store import open_poisoned, open_split, read_about
from unpoison.evaluation.grading import model_metrics
from unpoison.poisoning.triggered import read_triggered
from unpoison.poisoning.truth import read_truth
from unpoison.training.loop import fit
from unpoison.training.recipes import RECIPES

ROOT = Path(__file__).resolve().parent.parent
BASE = Path("data/base")
FIGURES = ("acc", "asr", "ra")
RESULTS = ROOT / "bench" / "results" / "recipes.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=["default", "fast"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    network = {k: v for k, v in YAML(typ="safe").load(ROOT / "params.yaml")["model"].items() if v is not None}
    data, test = open_poisoned(BASE, Path("data/poisoned")), open_split(BASE, "test")
    truth, triggered = read_truth(Path("data/truth")), read_triggered(Path("data/triggered"), BASE)
    assert truth is not None, "attack none: nothing to grade"
    source = read_about(BASE)
    about = {
        "data": f"{source['source'] if source['name'] == 'folder' else source['name']}, {len(data)} images",
        "attack": f"{truth.attack}, {truth.policy.poison_rate:.0%}",
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
            figures = model_metrics(model, test, truth, triggered)
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
