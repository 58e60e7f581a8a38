"""The metrics of a run, read back from `reports/metrics.json`: nested blocks of figures, each finite and in its range."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from ..core.errors import ParameterError, file_of
from ..core.files import read_json
from ..data.stress import Figure

SHARES = frozenset(
    (
        "acc",
        "acc_without_target",
        "asr",
        "ra",
        "cross_acc",
        "der",
        *get_args(Figure),
        "auroc",
        "ap",
        "tpr_at_1fpr",
        "tpr_at_5fpr",
        "precision_at_count",
        "flagged_tpr",
        "flagged_fpr",
        "hit",
        "poisoned",
        "cover",
        "changed",
    )
)
"""Figures that are fractions in [0, 1]."""
SHOWN = (
    "acc_without_target",
    "asr",
    "ra",
    "cross_acc",
    "der",
    *get_args(Figure),
)
"""Figures of a model besides `acc` that the report shows where they are there."""
DEEPEST = 8
NAME = re.compile(r"[\w*][\w.*-]{0,199}")
"""Names of figures, which become those of columns; with dots where blocks are flattened."""


def read_metrics(path: Path, classes: int, *, attacked: bool) -> dict[str, Any]:
    """The metrics that `evaluate` wrote, with all that the report shows of them.

    Args:
        path: place of the file.
        classes: number of classes.
        attacked: whether the attack is known, and so stands in them.

    Raises:
        UserError: a figure that is absent, no number, not finite or out of its range.
    """
    metrics = read_json(path)
    with file_of(path):
        check_figures(metrics)
        check_models(metrics, classes)
        if attacked:
            attack = block_at(metrics, "attack")
            figure_at(attack, "tested", "attack")
            for name in block_at(attack, "trigger", "attack"):
                block_at(attack["trigger"], name, "attack.trigger")
        for kind in ("detection", "inputs"):
            for name in block_at(metrics, kind) if kind in metrics else ():
                _check_detector(block_at(metrics[kind], name, kind), f"{kind}.{name}")
        for name in block_at(metrics, "models") if "models" in metrics else ():
            values = block_at(metrics["models"], name, "models")
            for key in ("flagged", "anomaly", *(key for key in ("hit", "false_alarms") if key in values)):
                figure_at(values, key, f"models.{name}")
    return metrics


def best_first(graded: Mapping[str, Any]) -> list[str]:
    """Detectors by what a list of suspects is worth where few clean samples may be lost; among equals, by the whole order."""
    return sorted(graded, key=lambda name: (-graded[name]["tpr_at_1fpr"], -graded[name]["auroc"], name))


def _check_detector(values: Mapping[str, Any], where: str) -> None:
    """Raises ParameterError where a figure of a graded detector is absent."""
    keys = ["auroc", "ap", "tpr_at_1fpr", "tpr_at_5fpr", "precision_at_count"]
    keys += ["scored", "scored_poisoned"] if "scored" in values else []
    keys += ["flagged", "flagged_tpr", "flagged_fpr"] if "flagged" in values else []
    for key in keys:
        figure_at(values, key, where)


def check_figures(values: Any, where: str = "", depth: int = 0) -> None:
    """Raises ParameterError where nested blocks hold anything but finite numbers, or a share that is none."""
    if isinstance(values, Mapping):
        if depth > DEEPEST:
            raise ParameterError(f"{where}: blocks in blocks found, allowed: {DEEPEST} levels")
        for key, value in values.items():
            if not NAME.fullmatch(key):
                raise ParameterError(
                    f"{where or 'a block'}: {key[:80]!r} found as a name, allowed: letters, digits, _ and -"
                )
            check_figures(value, f"{where}.{key}" if where else key, depth + 1)
        return
    names = where.split(".")
    share = names[-1] in SHARES or "asr_of" in names
    # A whole number may be too long for a float; a flag is a whole number for Python.
    if isinstance(values, bool) or not isinstance(values, int | float) or not abs(values) < 1e15:
        raise ParameterError(f"{where}: {shown(values)} found, allowed: a finite number")
    if share and not 0 <= values <= 1:
        raise ParameterError(f"{where}: {values!r} found, allowed: a fraction from 0 to 1")


def check_models(metrics: Mapping[str, Any], classes: int) -> None:
    """Raises ParameterError where a graded model has no accuracy, or a collapse leads to no class."""
    block_at(metrics, "backdoored")
    models = {name: block_at(metrics, name) for name in ("backdoored", "clean", "student") if name in metrics}
    for family in ("purified", "robust"):
        for name in block_at(metrics, family) if family in metrics else ():
            models[f"{family}.{name}"] = block_at(metrics[family], name, family)
    for where, values in models.items():
        # Of a run without a test split no model has figures.
        if not values:
            continue
        figure_at(values, "acc", where)
        for key in SHOWN:
            if key in values:
                figure_at(values, key, where)
        if "asr_of" in values:
            block_at(values, "asr_of", where)
        if "collapsed" in values:
            fallen = figure_at(block_at(values, "collapsed", where), "class", f"{where}.collapsed")
            figure_at(values["collapsed"], "share", f"{where}.collapsed")
            if fallen not in range(classes):
                raise ParameterError(f"{where}.collapsed.class: {fallen:g} found, allowed: 0 to {classes - 1}")


def block_at(values: Mapping[str, Any], key: str, where: str = "") -> Mapping[str, Any]:
    """The block of keys at `key`."""
    value = values.get(key)
    if not isinstance(value, Mapping):
        raise ParameterError(
            f"{where}{'.' if where else ''}{key}: {found_at(values, key)} found, allowed: a block of keys"
        )
    return value


def figure_at(values: Mapping[str, Any], key: str, where: str = "") -> float:
    """The figure at `key`."""
    if isinstance(values.get(key), bool) or not isinstance(values.get(key), int | float):
        raise ParameterError(f"{where}{'.' if where else ''}{key}: {found_at(values, key)} found, allowed: a number")
    return float(values[key])


def found_at(values: Mapping[str, Any], key: str) -> str:
    """What stands at `key`, for a message."""
    return shown(values[key]) if key in values else "nothing"


def shown(value: Any) -> str:
    """A value for a message. A whole number may be too long to be written."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**15:
        return "a huge number"
    return f"a {type(value).__name__}" if isinstance(value, list | Mapping) else repr(value)[:80]
