"""A suite's YAML file: read, checked, and turned into the parameters of each of its runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, TypeVar

from suite_table import METRICS, Experiment, Method, Published, Scale, Suite

from common import Params, load_params
from unpoison.core.errors import UserError
from unpoison.core.hyperparameters import Fraction, check

SCALES = ("small", "full")
MetricName = Literal["acc", "asr", "ra"]
NAME = re.compile(r"[a-z][a-z0-9_]*")
Schema = TypeVar("Schema")
Block = dict[str, Any]


def read_suite(name: str, folder: Path) -> Suite:
    """The suite `folder/NAME.yaml`.

    Raises:
        UserError: no suite of that name, or the first thing in its file that is wrong, as `FILE: KEY: what is allowed`.
    """
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in names:
        raise UserError(f"SUITE: {name!r} given, allowed: {', '.join(names)}")
    path = folder / f"{name}.yaml"
    shown = path.relative_to(folder.parent)
    if not NAME.fullmatch(name):
        raise UserError(f"{shown}: {name!r} given as a name, allowed: small letters, digits and _")
    try:
        return _suite(name, dict(load_params(path)))
    except UserError as error:
        message = str(error).removeprefix(f"{path}: ").removeprefix(".")
        raise UserError(f"{shown}: {message}") from None


def params_of(suite: Suite, params: Params, overrides: Mapping[str, Any]) -> Params:
    """`params` with the overrides of a run of `suite` in place; what the values mean is not checked here.

    Raises:
        UserError: an override in a section that does not exist, or a method of the table that the run does not make.
    """
    changed: Any = deepcopy(dict(params))
    for key, value in overrides.items():
        *sections, last = key.split(".")
        block = changed
        for number, part in enumerate(sections):
            block = block.get(part)
            if not isinstance(block, dict):
                raise UserError(f"{key}: no section {'.'.join(sections[: number + 1])} in params.yaml")
        block[last] = value
    purified = changed["purify"]["methods"]
    if not isinstance(purified, list):
        raise UserError(f"purify.methods: {purified!r} given, allowed: a list")
    made = ["backdoored", "student", *(f"purified.{method}" for method in purified)]
    for name, method in suite.methods.items():
        if method.metrics not in made:
            raise UserError(f"methods.{name}.metrics: {method.metrics!r} given, allowed: {', '.join(made)}")
    return dict(changed)


def value_at(params: Params, key: str) -> Any:
    """The value of a dotted key, or None where there is none."""
    value: Any = params
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _suite(name: str, values: Block) -> Suite:
    top = check(values, _top, where="")
    for key in ("title", "sources", "protocol", "tolerances", "methods", "experiments", "scales"):
        if not top[key]:
            raise UserError(f"{key}: {top[key]!r} given, allowed: at least one")
    for metric in METRICS:
        if metric not in top["tolerances"]:
            raise UserError(f"tolerances.{metric}: nothing given, allowed: a number from 0 to 1")
    top["set"] = _overrides(top.get("set", {}), "set")
    top["methods"] = _named(top["methods"], "methods", Method)
    top["experiments"] = {
        key: _experiment(block, f"experiments.{key}", top["methods"], top["sources"])
        for key, block in _names(top["experiments"], "experiments")
    }
    top["scales"] = _named(top["scales"], "scales", Scale, SCALES)
    lines = [f"{experiment}.{method}" for experiment in top["experiments"] for method in top["methods"]]
    for key, scale in top["scales"].items():
        _overrides(scale.set, f"scales.{key}.set")
        _known(scale.reasons, f"scales.{key}.reasons", lines)
        if not scale.seeds or len(set(scale.seeds)) < len(scale.seeds):
            raise UserError(f"scales.{key}.seeds: {scale.seeds!r} given, allowed: whole numbers, each once")
    return Suite(name=name, **top)


def _top(
    *,
    title: str,
    sources: dict[str, str],
    protocol: list[str],
    tolerances: dict[MetricName, Fraction],
    methods: dict[str, Any],
    experiments: dict[str, Any],
    scales: dict[str, Any],
    set: dict[str, Any] = {},  # noqa: B006 (never written to)
) -> None:
    """The keys of a suite's file; the blocks in them are checked one by one."""


def _experiment(block: Any, where: str, methods: Mapping[str, Method], sources: Mapping[str, str]) -> Experiment:
    values = check(block, _experiment_keys, where=where)
    published = _named(values.get("published", {}), f"{where}.published", Published, methods)
    for method, figures in published.items():
        key = f"{where}.published.{method}"
        _known([figures.source], f"{key}.source", sources)
        if not figures.figures:
            raise UserError(f"{key}: no figure given, allowed: {', '.join(METRICS)}")
    for method in methods:
        if method not in published and not methods[method].unpublished:
            raise UserError(f"{where}.published.{method}: nothing given, allowed: its figures, or a reason in methods")
    return Experiment(set=_overrides(values["set"], f"{where}.set"), published=published)


def _experiment_keys(*, set: dict[str, Any], published: dict[str, Any] = {}) -> None:  # noqa: B006 (never written to)
    """The keys of an experiment."""


def _overrides(values: Block, where: str) -> Block:
    """Dotted keys to plain values; the seed and the place of the data are not a suite's to say."""
    for key, value in values.items():
        if key in ("seed", "data.path"):
            raise UserError(f"{where}.{key}: {value!r} given, allowed: `seeds` of a scale, DATA on the command line")
        flat = value if isinstance(value, list) else [value]
        if not all(item is None or isinstance(item, str | int | float) for item in flat):
            raise UserError(f"{where}.{key}: {value!r} given, allowed: a text, a number, true, false, null or a list")
    return values


def _named(
    blocks: Block, where: str, schema: Callable[..., Schema], allowed: Iterable[str] | None = None
) -> dict[str, Schema]:
    """Name to the value of `schema`, a dataclass, that its block stands for."""
    named = _names(blocks, where, allowed)
    return {key: schema(**check(block, schema, where=f"{where}.{key}")) for key, block in named}


def _names(blocks: Block, where: str, allowed: Iterable[str] | None = None) -> Iterable[tuple[str, Any]]:
    if allowed is not None:
        _known(blocks, where, allowed)
    for key in blocks:
        if not NAME.fullmatch(key):
            raise UserError(f"{where}: {key!r} given as a name, allowed: small letters, digits and _")
    return blocks.items()


def _known(names: Iterable[str], where: str, allowed: Iterable[str]) -> None:
    for name in names:
        if name not in allowed:
            raise UserError(f"{where}: {name!r} given, allowed: {', '.join(allowed)}")
