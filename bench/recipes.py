"""What was tried for the recipe `compact`: accuracy and attack success after each epoch, and minutes on CPU cores.

    dvc exp run prepare -S data.name=folder -S data.path=... -S data.trusted=test -S data.reserve=5000 -S data.public=10
    python bench/recipes.py run [GROUP ...] [--processes 12]    # trainings of recipes.yaml; adds to results/recipes.csv
    python bench/recipes.py rates [GROUP ...]                   # speed beside that of `compact`: results/rates.csv
    python bench/recipes.py table                               # last epochs, mean over the seeds, as Markdown
    python bench/recipes.py plot                                # ACC and ASR against minutes: results/recipes.png

Trains on the whole training part of data/base, poisoned here, and grades on the trusted reserve, clean and triggered, never on
test images: recipes are chosen by these figures. In fp32 on a GPU as well, as the figures stand for CPUs without bf16; there
`--processes` trains several at a time, best under NVIDIA's MPS. Minutes are those of training on two CPU cores: `RATE`, a measured
training of `compact`, and the ratios to it (`rates`).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from ruamel.yaml import YAML

import shapes
from pairs import by_turns, row, timed
from unpoison import models
from unpoison.attacks import ATTACKS
from unpoison.compute.device import machine
from unpoison.crafting.attack import Attack, intent
from unpoison.crafting.context import Context
from unpoison.crafting.craft import craft
from unpoison.data.imageset import ImageSet
from unpoison.data.store import open_split
from unpoison.evaluation.grading import model_metrics
from unpoison.models.classifier import Classifier
from unpoison.poisoning.triggered import triggered_of
from unpoison.training import loop
from unpoison.training.recipe import Recipe
from unpoison.training.recipes import recipe_named

matplotlib.use("Agg")

HERE = Path(__file__).resolve().parent
TRIED, RESULTS, RATES = HERE / "recipes.yaml", HERE / "results" / "recipes.csv", HERE / "results" / "rates.csv"
FIGURES = ["acc", "asr", "ra"]
# Trainings at 1 % whose way is drawn.
SHOWN = {
    "compact": "compact",
    "compact_low_rate": "compact_low_rate (alternating flip)",
    "compact_low_rate, no augmentation": "… no augmentation",
    "compact_low_rate, translate": "… translate",
    "plain: SGD, one cycle, batches of 128, smoothing 0, crop, flip": "plain SGD, crop, flip",
}
# Images a second of `compact` on both cores, and of all else by its ratio to it: a whole training in 14.4 minutes, at a time when
# the machine gave from 560 to 740.
RATE = 580


@dataclass(frozen=True)
class Trial:
    """A training to try: an entry of recipes.yaml.

    Attributes:
        group: lever that it belongs to.
        name: what differs from `compact`.
        train: block of settings as in params.yaml.
        network: `name` and arguments of a network, or those of `shapes.build`.
        attack: attack with its published settings, besides `arguments`.
        arguments: the attack's own.
        rate: share of all training images that is poisoned.
        resolution: pixels per side, and for which share of the training images are made as small.
        average: decay per step of an average of the weights, which is graded in the place of the last ones.
        seeds: one training each.
    """

    group: str
    name: str
    train: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, Any] = field(default_factory=lambda: {"name": "compact", "width": 32})
    attack: str = "badnets"
    arguments: Mapping[str, Any] = field(default_factory=lambda: {"pattern": "white", "size": 3})
    rate: float = 0.1
    resolution: tuple[int, float] | None = None
    average: float | None = None
    seeds: tuple[int, ...] = (0,)

    @property
    def kind(self) -> str:
        """What its speed depends on: trainings of the same kind are as fast."""
        recipe = self.recipe
        step = {"batch": recipe.batch_size, "optimizer": recipe.optimizer, "whiten": recipe.whiten}
        return json.dumps({**self.network, **step, "resolution": self.resolution}, sort_keys=True)

    @property
    def recipe(self) -> Recipe:
        return recipe_named({"recipe": "compact", **self.train})

    def build(self, data: ImageSet, seed: int) -> Classifier:
        about = {"num_classes": len(data.classes), "image_size": data.image_size, "channels": data.channels}
        if "name" in self.network:
            return models.build(**{**about, **self.network}, seed=seed)
        return shapes.build(models.build("compact", **about, seed=seed), seed, **self.network)


def trials(groups: list[str]) -> list[Trial]:
    """Entries of recipes.yaml, of all groups where none is given."""
    entries = [Trial(**entry) for entry in YAML(typ="safe").load(TRIED)]
    return [entry for entry in entries if not groups or entry.group in groups]


class SmallAtFirst:
    """A loss that trains on smaller images until a step is reached."""

    def __init__(self, plain: loop.Loss, pixels: int, steps: float) -> None:
        self.plain, self.pixels, self.steps, self.step = plain, pixels, steps, 0

    def __call__(
        self, model: Classifier, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.step < self.steps:
            images = F.interpolate(images, size=(self.pixels, self.pixels), mode="area")
        self.step += 1
        return self.plain(model, images, labels)


def run(trial: Trial, seed: int) -> pd.DataFrame:
    """Train once; a row per epoch."""
    # Whatever the device gains by bf16, the figures are those of fp32.
    os.environ["UNPOISON_PRECISION"] = "fp32"
    train, reserve = open_split(Path("data/base"), "train"), open_split(Path("data/base"), "reserve")
    method = ATTACKS[trial.attack]
    assert isinstance(method, Attack)
    policy = {"poison_rate": trial.rate, "rate_of": "all", "poison_target_class": True}
    aim = intent(trial.attack, method, policy, trial.arguments)
    poisoned = craft(trial.attack, [aim], Context(train=train, seed=seed))
    data, recipe = poisoned.received(train), trial.recipe
    triggered = {trial.attack: triggered_of(reserve, aim.policy, poisoned.triggers[0])}
    model, rows = trial.build(train, seed), list[dict[str, Any]]()
    steps, done, average = -(-len(data) // recipe.batch_size), 0, dict[str, torch.Tensor]()

    @torch.no_grad()
    def graded(model: Classifier) -> None:
        nonlocal done
        done += 1
        state = model.state_dict()
        if trial.average is not None:
            for key, value in state.items():
                kept = average.setdefault(key, value.clone())
                kept.lerp_(value, 1 - trial.average) if value.is_floating_point() else kept.copy_(value)
        if done % steps:
            return
        # Graded as a copy, so that training goes on from the last weights.
        shown = deepcopy(model).eval()
        if average:
            shown.load_state_dict(average)
        figures = model_metrics(shown, reserve, poisoned.truth, triggered)
        about = {"group": trial.group, "name": trial.name, "attack": trial.attack, "rate": trial.rate, "seed": seed}
        epoch = {"epoch": done // steps, "epochs": recipe.epochs, "images": done // steps * len(data)}
        rows.append({**about, **epoch, **{key: round(float(figures[key]), 4) for key in FIGURES}, "machine": machine()})

    loss = _loss(trial, recipe, steps)
    loop.fit(model, data, recipe, seed=seed, what=trial.name, loss=loss, after_step=graded)
    return pd.DataFrame(rows)


def _loss(trial: Trial, recipe: Recipe, steps: int) -> loop.Loss:
    plain = partial(loop.cross_entropy, label_smoothing=recipe.label_smoothing)
    if trial.resolution is None:
        return plain
    pixels, share = trial.resolution
    return SmallAtFirst(plain, pixels, share * steps * recipe.epochs)


def all_of(chosen: list[Trial], processes: int) -> None:
    """Run the trials, several at a time; their rows are added as each ends, in the place of those of the same training."""
    # Spawned: a forked process cannot use the GPU.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        running = [pool.submit(run, trial, seed) for trial in chosen for seed in trial.seeds]
        for done in as_completed(running):
            rows = done.result()
            print(rows.iloc[-1].to_dict(), flush=True)
            _add(RESULTS, rows, ["group", "name", "seed"])


def rates(chosen: list[Trial]) -> None:
    """How fast each kind of training is beside that of `compact`, by turns, on noise: the machine's speed moves by the minute."""
    reference = Trial("", "")
    seen = {reference.kind}
    for trial in chosen:
        if trial.kind in seen:
            continue
        seen.add(trial.kind)
        ways = {"compact": partial(_rate, reference), "trial": partial(_rate, trial)}
        found = row(trial.kind, by_turns(ways, 2), "trial", "compact")
        print(found, flush=True)
        rows = pd.DataFrame([{**found, "threads": torch.get_num_threads(), "machine": machine()}])
        _add(RATES, rows, ["what"])


def _rate(trial: Trial) -> float:
    """Images a second in one epoch of ten steps."""
    recipe = replace(trial.recipe, epochs=1)
    noise = np.random.default_rng(0).integers(0, 256, (10 * recipe.batch_size, 32, 32, 3), np.uint8)
    data = ImageSet(noise, np.arange(len(noise)) % 10, tuple("0123456789"))
    loss = _loss(trial, recipe, -(-len(data) // recipe.batch_size))
    model = trial.build(data, 0)
    return len(data) / timed(lambda: loop.fit(model, data, recipe, seed=0, what=trial.name, loss=loss))


def _add(path: Path, rows: pd.DataFrame, keys: list[str]) -> None:
    earlier = pd.read_csv(path) if path.is_file() else rows.iloc[:0]
    same = earlier.set_index(keys).index.isin(rows.set_index(keys).index)
    pd.concat([earlier[~same], rows]).to_csv(path, index=False)


def minutes() -> pd.DataFrame:
    """All rows with the minutes they take at `RATE`, each kind of training by its ratio to `compact`."""
    ratio = pd.read_csv(RATES).set_index("what")["ratio"]
    kind = {(trial.group, trial.name): trial.kind for trial in trials([])}
    table = pd.read_csv(RESULTS)
    ratios = [
        ratio.get(kind[key], 1.0 if kind[key] == Trial("", "").kind else np.nan)
        for key in zip(table["group"], table["name"], strict=True)
    ]
    return table.assign(minutes=table["images"] / (np.array(ratios) * RATE) / 60)


def table() -> str:
    """The last epoch of each trial: mean over its seeds, Markdown."""
    last = minutes().query("epoch == epochs")
    lines = ["| lever | training | attack | min | ACC | ASR | n |", "|---|---|---|---:|---:|---:|---:|"]
    for (group, name, attack, rate), rows in last.groupby(["group", "name", "attack", "rate"], sort=False):
        mean = rows[["minutes", *FIGURES]].mean()
        took = "" if np.isnan(mean["minutes"]) else f"{mean['minutes']:.1f}"
        lines.append(
            f"| {group} | {name} | {attack} {rate:.0%} | {took} | {mean['acc']:.3f} | {mean['asr']:.3f} | {len(rows)} |"
        )
    return "\n".join(lines)


def plot() -> Path:
    """ACC and ASR of each training at 10 % against its minutes, and the way of some at 1 %."""
    from matplotlib.figure import Figure

    known = minutes()
    last = known.query("epoch == epochs").groupby(["group", "name", "rate"], sort=False)[["minutes", *FIGURES]].mean()
    last = last.reset_index()
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    acc, asr, low = figure.subplots(1, 3)
    high = last[last["rate"] == 0.1]
    apart = ["width", "residual", "shape", "resolution"]
    for group, rows in [
        ("all else, width 32", high[~high["group"].isin(apart)]),
        *((g, high[high["group"] == g]) for g in apart),
    ]:
        colour = "0.6" if group not in apart else None
        acc.plot(rows["minutes"], rows["acc"], "o", color=colour, label=group)
        asr.plot(rows["minutes"], rows["asr"], "o", color=colour)
    for name, label in SHOWN.items():
        chosen = known[(known["rate"] == 0.01) & (known["attack"] == "badnets") & (known["name"] == name)]
        rows = chosen.groupby("epoch")[["minutes", "asr"]].mean()
        low.plot(rows["minutes"], rows["asr"], marker=".", label=label)
    acc.set(title="10 %: ACC", xlabel="minutes of training on two CPU cores")
    asr.set(title="10 %: ASR", xlabel="minutes", ylim=(0.9, 1.005))
    low.set(title="1 %: ASR after each epoch", xlabel="minutes", ylim=(0, 1.01))
    for axis in (acc, asr, low):
        axis.grid(alpha=0.3)
    acc.legend(loc="lower right")
    low.legend(loc="lower right", bbox_to_anchor=(1, 0.08))
    path = RESULTS.with_suffix(".png")
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("run", "rates"):
        commands.add_parser(command).add_argument("groups", nargs="*", help="of recipes.yaml; none: all")
    commands.choices["run"].add_argument("--processes", type=int, default=1, help="trainings at a time")
    commands.add_parser("table")
    commands.add_parser("plot")
    arguments = parser.parse_args()
    if arguments.command == "run":
        all_of(trials(arguments.groups), arguments.processes)
    elif arguments.command == "rates":
        rates(trials(arguments.groups))
    elif arguments.command == "table":
        print(table())
    else:
        print(f"wrote {plot().relative_to(HERE.parent)}")


if __name__ == "__main__":
    main()
