"""A suite of two attacks, its runs, and a repository to run it in: what the tests of suites share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from conftest import with_value
from unpoison.suites.reading import read_suite
from unpoison.suites.record import Run
from unpoison.suites.suite import Suite

ROOT = Path(__file__).resolve().parent.parent
FILE: dict[str, Any] = {
    "title": "Two attacks",
    "sources": {"paper": "A paper, table 1"},
    "protocol": ["Nothing is as published."],
    "tolerances": {"acc": 0.02, "asr": 0.05, "ra": 0.05},
    "methods": {
        "none": {"metrics": "backdoored"},
        "fst": {"metrics": "purified.fst", "unpublished": "the paper has no such table"},
    },
    "set": {"data.name": "digits"},
    "experiments": {
        "badnets": {
            "set": {"attack.name": "badnets", "params/attacks.yaml:badnets.size": 3},
            "published": {"none": {"source": "paper", "acc": 0.91, "asr": 0.95}},
        },
        "blended": {
            "set": {"attack.name": "blended"},
            "published": {"none": {"source": "paper", "acc": 0.5, "ra": 0.0}},
        },
    },
    "scales": {
        "small": {"label": "200 digits", "seeds": [0, 1, 2], "cost": "a minute"},
        "full": {"label": "all digits", "seeds": [0], "cost": "a year", "set": {"data.train_limit": None}},
    },
}
# Two rates of the first attack, one of the second, and further columns; nothing is judged.
VARIED: dict[str, Any] = {
    **{key: value for key, value in FILE.items() if key != "tolerances"},
    "methods": {"none": {"metrics": "backdoored", "unpublished": "the paper has no such rate"}},
    "vary": {"attack.poison_rate": [0.1, 0.05]},
    "columns": {"PSNR, dB": {"metric": "attack.trigger.*.psnr", "form": ".1f"}, "cover": {"metric": "attack.cover"}},
    "experiments": {
        "badnets": {
            "set": {"attack.name": "badnets"},
            "published": {"none": {"source": "paper", "acc": 0.9, "asr": {0.1: 0.95}}},
        },
        "blended": {
            "set": {"attack.name": "blended"},
            "vary": {"attack.poison_rate": [0.4]},
            "published": {"none": {"source": "paper", "asr": {0.4: 1}}},
        },
    },
}


def changed(key: str, value: Any, file: dict[str, Any] = FILE) -> dict[str, Any]:
    """The file with the value at `key`, parts divided by /, replaced."""
    return with_value(file, key.split("/"), value)


def read(folder: Path, file: Any) -> Suite:
    """The suite `tiny` of the repository at `folder`, written there first."""
    (folder / "suites").mkdir(exist_ok=True)
    (folder / "suites" / "tiny.yaml").write_text(yaml.safe_dump(file, sort_keys=False))
    return read_suite("tiny", folder / "suites")


def ran(suite: Suite, experiment: str, seed: int, *figures: float, scale: str = "small", data: str = "digits") -> Run:
    """A run of the suite with figures of its methods in turn: ACC, ASR and RA."""
    names = [f"{method.metrics}.{metric}" for method in suite.methods.values() for metric in ("acc", "asr", "ra")]
    return Run(
        scale=scale,
        experiment=experiment,
        seed=seed,
        settings=suite.settings(scale, experiment),
        commit="0123abcd",
        data=data,
        device="cpu: X, 2 cores, 2 threads",
        torch="2.15.0",
        seconds=60.0,
        metrics=dict(zip(names, figures, strict=True)),
    )
