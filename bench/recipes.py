"""Accuracy and attack success of training recipes while they train, on the poisoned set of this working copy.

    dvc repro poison && python bench/recipes.py run compact                  # the recipe, on params.yaml's network
    python bench/recipes.py run compact --set epochs=16 label_smoothing=0    # with changes
    python bench/recipes.py plot                                             # bench/results/recipes.png

Network, data and attack are those of params.yaml; `train` in it has no part here. After each epoch the model is graded on the
trusted reserve, clean and triggered, never on test images: recipes are chosen by these figures. Adds a row per epoch to
bench/results/recipes.csv. Seconds are of training alone, as the machine was: minutes in the plot are images over the rate on
idle cores that `--rate` gives, by default that of the run itself.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from ruamel.yaml import YAML

from unpoison import models
from unpoison.attacks import restored
from unpoison.compute.device import machine
from unpoison.core.hyperparameters import check
from unpoison.data.store import open_poisoned, open_split, read_about
from unpoison.evaluation.grading import model_metrics
from unpoison.poisoning.attacker import read_triggers
from unpoison.poisoning.triggered import triggered_of
from unpoison.poisoning.truth import read_truth
from unpoison.training.loop import fit
from unpoison.training.recipe import Recipe
from unpoison.training.recipes import RECIPES

matplotlib.use("Agg")

ROOT = Path(__file__).resolve().parent.parent
DATA = Path("data")
FIGURES = ("acc", "asr", "ra")
RESULTS = ROOT / "bench" / "results" / "recipes.csv"


def run(recipe: Recipe, name: str, seed: int) -> pd.DataFrame:
    """Train once; a row per epoch."""
    network = {k: v for k, v in YAML(typ="safe").load(ROOT / "params.yaml")["model"].items() if v is not None}
    data, reserve = open_poisoned(DATA / "base", DATA / "poisoned"), open_split(DATA / "base", "reserve")
    truth, (attacker, _) = read_truth(DATA / "truth"), read_triggers(DATA / "attacker" / "triggers", restored)
    assert truth is not None, "attack none: nothing to grade"
    triggered = {trigger: triggered_of(reserve, *held) for trigger, held in attacker.items()}
    source = read_about(DATA / "base")
    about: dict[str, Any] = {
        "recipe": name,
        "network": " ".join(str(value) for value in network.values()),
        "data": f"{source['source'] if source['name'] == 'folder' else source['name']}, {len(data)} images",
        "attack": f"{truth.attack}, {truth.policy.poison_rate:.0%}",
        "seed": seed,
    }
    model = models.build(
        **network, num_classes=len(data.classes), image_size=data.image_size, channels=data.channels, seed=seed
    )
    rows: list[dict[str, Any]] = []
    steps, grading = -(-len(data) // recipe.batch_size), 0.0
    start, done = time.perf_counter(), 0

    def graded(model: models.Classifier) -> None:
        nonlocal done, grading
        done += 1
        if done % steps:
            return
        before = time.perf_counter()
        figures = model_metrics(model.eval(), reserve, truth, triggered)
        model.train()
        row = {
            "epoch": done // steps,
            "images": done // steps * len(data),
            "seconds": round(before - start - grading, 1),
        }
        rows.append({**about, **row, **{key: round(figures[key], 4) for key in FIGURES}, "machine": machine()})
        print(rows[-1], flush=True)
        grading += time.perf_counter() - before

    fit(model, data, recipe, seed=seed, what=name, after_step=graded)
    return pd.DataFrame(rows)


def plot(rate: float | None) -> Path:
    """Accuracy and attack success of all runs against minutes, one line per recipe and attack."""
    from matplotlib.figure import Figure

    table = pd.read_csv(RESULTS)
    figure = Figure(figsize=(10, 4))
    left, right = figure.subplots(1, 2, sharex=True)
    for (recipe, network, attack), lines in table.groupby(["recipe", "network", "attack"], sort=False):
        last = lines.groupby("epoch")[["images", "seconds", *FIGURES]].mean()
        minutes = last["images"] / (rate or float((last["images"] / last["seconds"]).iloc[-1])) / 60
        for axes, metric in ((left, "acc"), (right, "asr")):
            axes.plot(minutes, last[metric], marker=".", label=f"{recipe}, {network}, {attack}")
    for axes, heading in ((left, "ACC on the reserve"), (right, "ASR on the triggered reserve")):
        axes.set_xlabel("minutes")
        axes.set_title(heading)
        axes.grid(alpha=0.3)
    right.set_ylim(0, 1.02)
    figure.legend(
        *left.get_legend_handles_labels(), loc="lower center", bbox_to_anchor=(0.5, -0.02 - 0.04 * 4), ncols=2
    )
    path = RESULTS.with_suffix(".png")
    figure.savefig(path, dpi=130, bbox_inches="tight", metadata={"Software": None})
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run")
    runner.add_argument("recipe", choices=RECIPES)
    runner.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="attributes of the recipe, as YAML")
    runner.add_argument("--seed", type=int, default=0)
    drawer = commands.add_parser("plot")
    drawer.add_argument("--rate", type=float, help="images per second of all runs")
    arguments = parser.parse_args()
    if arguments.command == "plot":
        print(f"wrote {plot(arguments.rate).relative_to(ROOT)}")
        return
    changes = {key: YAML(typ="safe").load(value) for key, _, value in (each.partition("=") for each in arguments.set)}
    recipe = replace(RECIPES[arguments.recipe], **check(changes, Recipe))
    rows = run(recipe, " ".join([arguments.recipe, *arguments.set]), arguments.seed)
    earlier = [pd.read_csv(RESULTS)] if RESULTS.is_file() else []
    pd.concat([*earlier, rows]).to_csv(RESULTS, index=False)


if __name__ == "__main__":
    main()
