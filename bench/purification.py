"""Seconds of every purifier as a multiple of plain fine-tuning: the published work of each, in the same run.

    python bench/purification.py            # prints a table and adds it to bench/results/purification.csv
    python bench/purification.py --quick    # whether it runs

The protocol of BackdoorBench on CIFAR-10: 2,500 trusted images, batches of 256 (or 128), 100 epochs of plain
fine-tuning. Here each method does a share of the work that its defaults stand for (`SHARES`): a tenth of the images and, unless
said, of the epochs, in batches an eighth as large, of an untrained network. Seconds are divided by that share: ratios are those of
the whole. RNP unlearns for all of its epochs. TSBD ends its ascent and LMR its repulsion with the first epoch, as an untrained
network is at chance: of these two only the rest is counted.

Methods that build on scores or on a verdict are handed them: the detector's time is not in theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch

from pairs import arguments, by_turns, report, row, timed
from unpoison import models
from unpoison.data.imageset import ImageSet
from unpoison.data.verdicts import Verdict
from unpoison.purification import PURIFIERS
from unpoison.purification.purifier import Scored
from unpoison.sources import digits

TRUSTED = 250
SCORED = 5000  # training samples, a tenth of those published
NETWORK = {"name": "resnet18", "width": 8, "stem": "conv3_pool"}
ACCURACY = 0.0  # below chance: ascent goes on for all epochs it is given
# Own parameters, and the share of the published epochs, rounds or steps that they are.
SHARES: dict[str, tuple[dict[str, Any], float]] = {
    "ft": ({"epochs": 10, "batch_size": 32}, 0.1),
    "lp": ({"epochs": 5, "batch_size": 16}, 0.5),
    "fe_tuning": ({"epochs": 5, "batch_size": 16}, 0.5),
    "ft_init": ({"epochs": 5, "batch_size": 16}, 0.5),
    "fst": ({"epochs": 5, "batch_size": 16}, 0.5),
    "fp": ({"epochs": 10, "batch_size": 32}, 0.1),
    "nad": ({"teacher_epochs": 5, "epochs": 5, "batch_size": 32}, 0.5),
    "ft_sam": ({"epochs": 5, "batch_size": 32}, 0.05),
    "anp": ({"iterations": 100, "batch_size": 16}, 0.4),
    "i_bau": ({"rounds": 2, "batch_size": 32}, 0.4),
    "sau": ({"epochs": 2, "batch_size": 32}, 0.02),
    "rnp": ({"epochs": 2, "mask_epochs": 2, "batch_size": 16, "accuracy": ACCURACY}, 0.1),
    "bti_dbf": (
        {"rounds": 1, "pretrain_epochs": 2, "mask_epochs": 4, "generator_epochs": 6, "epochs": 6, "batch_size": 16},
        0.04,
    ),
    "pam": (
        {"rounds": 1, "pretrain_epochs": 2, "mask_epochs": 4, "generator_epochs": 6, "epochs": 6, "batch_size": 16},
        0.04,
    ),
    "d3": ({"epochs": 10, "batch_size": 32}, 0.1),
    "lmr": ({"target": 0, "epochs": 2, "recovery_epochs": 1, "batch_size": 16}, 0.1),
    "tsbd": ({"unlearn_epochs": 1, "epochs": 2, "batch_size": 32}, 0.1),
    "clp": ({}, 1.0),
    "bnp": ({}, 1.0),
    "dbr": ({"epochs": 2, "batch_size": 16, "allowed_drop": None}, 0.1),
    "unlearn": ({"finetune_epochs": 4, "epochs": 1, "batch_size": 16, "allowed_drop": None}, 0.2),
    "nc_unlearn": ({"epochs": 10, "batch_size": 32}, 0.1),
}


def ways_of(trusted: int, scored: int) -> dict[str, Callable[[], float]]:
    """Published runs a second of each purifier, on `trusted` images and as many scored ones as `scored`."""
    splits = digits.build({"train": scored, "reserve": trusted})
    data, reserve = (ImageSet(*splits[part], digits.CLASSES) for part in ("train", "reserve"))
    model = models.build(num_classes=10, image_size=(32, 32), **NETWORK).eval()
    flagged = np.arange(10) == 0
    aux = {"masks": np.ones((10, 32, 32), np.float32), "patterns": np.zeros((10, 3, 32, 32), np.uint8)}
    given: dict[str | None, Any] = {
        "scores": Scored(data=data, values=np.arange(len(data), dtype=np.float32)),
        "verdicts": Verdict(flagged.astype(np.float32), flagged, "", 0, "", aux),
    }

    def once(name: str) -> float:
        own, share = SHARES[name]
        by = [given[PURIFIERS[name].by]] if PURIFIERS[name].by else []
        return share / timed(lambda: PURIFIERS[name].purify(model, reserve, *by, seed=0, **own))

    return {name: lambda name=name: once(name) for name in PURIFIERS}


def main() -> None:
    given = arguments(__doc__, runs=3)
    ways = ways_of(32, 400) if given.quick else ways_of(TRUSTED, SCORED)
    if not given.quick:
        torch.manual_seed(0)
        ways["ft"]()  # the first passes of a process are slow
    rates = by_turns(ways, given.runs)
    rows = []
    for name in PURIFIERS:
        # A rate of fine-tuning over that of a method is the method's seconds over those of fine-tuning.
        figures = row(name, rates, "ft", name)
        kept = {key: figures[key] for key in ("ratio", "ratio_min", "ratio_max", "n", "ratios")}
        rows.append({"what": name, "against": "ft", "seconds": round(1 / median(rates[name]), 1), **kept})
    report(rows, "purification.csv", write=not given.quick)


if __name__ == "__main__":
    main()
