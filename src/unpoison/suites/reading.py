"""A suite's YAML file, read and checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from ..core.errors import ParameterError, UserError, file_of, keys_of
from ..core.files import open_file
from ..core.hyperparameters import Fraction, check
from .published import read_published
from .suite import (
    METRICS,
    Column,
    Experiment,
    Figures,
    Matrix,
    Method,
    MetricName,
    Overrides,
    Published,
    Scale,
    Solved,
    Suite,
)
from .yaml_file import LARGEST, read_yaml

# Names become those of files and of Git references, which have no `..` and may not be long.
NAME = re.compile(r"[a-z][a-z0-9_]{0,59}")
VALUE = re.compile(r"-?[a-z0-9](?!.*\.\.)[a-z0-9_.+-]{0,59}")
KEY = re.compile(r"([\w./-]+:)?[\w-]+(\.[\w-]+)*")
FORM = re.compile(r"\+?,?(\.\d{1,2})?[efg%]")
LARGEST_SEED, MOST = 2**32 - 1, 1e300
NAMES_ALLOWED = "allowed: small letters, digits and _, up to 60"
Schema = TypeVar("Schema")
Block = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Keys:
    """The keys of a suite's file; the blocks in them are checked one by one."""

    title: str
    sources: dict[str, str]
    protocol: list[str]
    methods: Block
    experiments: Block
    scales: Block
    published: Block = field(default_factory=dict)
    tolerances: dict[MetricName, Fraction] = field(default_factory=dict)
    set: Block = field(default_factory=dict)
    vary: Block = field(default_factory=dict)
    columns: Block = field(default_factory=dict)
    matrices: Block = field(default_factory=dict)
    solved: Block | None = None
    taken: Fraction | None = None


@dataclass(frozen=True, kw_only=True)
class PublishedKeys:
    """The keys of `published`: a CSV file beside the suite, and the key of `sources` that its figures are from."""

    source: str
    file: str


@dataclass(frozen=True, kw_only=True)
class ExperimentKeys:
    """The keys of an experiment. A published figure may be a block: a value of the varied parameter to the figure."""

    set: Block
    vary: Block = field(default_factory=dict)
    published: Block = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MatrixKeys:
    """The keys of a matrix."""

    metric: str
    lower_is_better: bool = False
    rows: Literal["attacks", "methods"] = "attacks"
    published: Block = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SolvedKeys:
    """The keys of `solved`."""

    methods: str
    asr: Fraction
    acc_drop: Fraction
    ra_drop: Fraction | None = None
    columns: Block = field(default_factory=dict)


def read_suite(name: str, folder: Path) -> Suite:
    """The suite `folder/NAME.yaml`.

    Raises:
        UserError: no suite of that name, or the first thing in its file that is wrong, as `FILE: KEY: what is allowed`.
    """
    values, shown = _values(name, folder), f"{folder.name}/{name}.yaml"
    if (other := values.pop("like", None)) is not None:
        if not isinstance(other, str) or other == name:
            raise UserError(f"{shown}: like: {other!r} given, allowed: the name of another suite")
        base = _values(other, folder)
        if "like" in base:
            raise UserError(
                f"{shown}: like: {other!r} given, which is like another itself; allowed: a suite that is not"
            )
        overrides = [block for block in (base.get("set"), values.get("set")) if isinstance(block, dict)]
        # What is published of the other's experiments is nothing that these reproduce: they are given anew.
        values = {**base, **values, "set": {key: value for block in overrides for key, value in block.items()}}
    with file_of(shown):
        return _suite(name, values, folder)


def _values(name: str, folder: Path) -> Block:
    """The keys of a suite's file, as they stand there."""
    path = path_of(name, folder)
    shown = f"{folder.name}/{name}.yaml"
    if path.resolve().parent != folder.resolve():
        raise UserError(f"{shown}: a link that leads out of {folder.name}, allowed: a file in it")
    with open_file(path) as file:
        # One byte more than is allowed tells a file that is too long from one that fits.
        return read_yaml(file.read(LARGEST + 1), shown)


def path_of(name: str, folder: Path) -> Path:
    """The file of a suite. Raises UserError where there is none of that name."""
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in names:
        raise UserError(f"SUITE: {name!r} given, allowed: {', '.join(names)}")
    if not NAME.fullmatch(name):
        raise UserError(f"{folder.name}/{name}.yaml: {name!r} given as a name, {NAMES_ALLOWED}")
    return folder / f"{name}.yaml"


def _suite(name: str, values: Block, folder: Path) -> Suite:
    keys = _checked(values, Keys)
    for key in ("title", "sources", "protocol", "methods", "experiments", "scales"):
        if not getattr(keys, key):
            raise ParameterError(f"{key}: {getattr(keys, key)!r} given, allowed: at least one")
    _check_overrides(keys.set, "set")
    _check_varied(keys.vary, "vary", list(keys.vary)[:1])
    methods = _named(keys.methods, "methods", Method)
    figures = _figures(keys, folder) if keys.published else {}
    experiments: dict[str, Experiment] = {}
    for key, block in _names(keys.experiments, "experiments"):
        experiments |= _experiments(key, block, keys.vary, methods, keys.sources, figures)
    _check_tolerances(keys.tolerances, experiments.values())
    scales = _named(keys.scales, "scales", Scale)
    for key, scale in scales.items():
        _check_scale(scale, f"scales.{key}", experiments, methods)
    return Suite(
        name=name,
        title=keys.title,
        sources=keys.sources,
        protocol=keys.protocol,
        tolerances={str(metric): value for metric, value in keys.tolerances.items()},
        set=keys.set,
        vary=next(iter(keys.vary), ""),
        columns={heading: _column(block, f"columns.{heading}") for heading, block in keys.columns.items()},
        matrices={title: _matrix(block, f"matrices.{title}", keys.sources) for title, block in keys.matrices.items()},
        solved=None if keys.solved is None else _solved(keys.solved),
        taken=keys.taken,
        methods=methods,
        experiments=experiments,
        scales=scales,
    )


def _figures(keys: Keys, folder: Path) -> dict[tuple[str, str, float], Published]:
    """The figures of `published` by experiment, method and value of what varies."""
    about = _checked(keys.published, PublishedKeys, "published")
    _check_known([about.source], "published.source", keys.sources)
    path = folder / about.file
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ParameterError(f"published.file: {about.file!r} given, allowed: a file in {folder.name}")
    if not keys.vary:
        raise ParameterError("published: allowed with `vary`, as the table's figures are by rate")
    return {place: Published(source=about.source, **figures) for place, figures in read_published(path).items()}


def _experiments(
    name: str,
    block: Any,
    vary: Block,
    methods: Mapping[str, Method],
    sources: Mapping[str, str],
    figures: Mapping[tuple[str, str, float], Published],
) -> dict[str, Experiment]:
    """One experiment, or one for each value of what varies, by the name of its runs.

    `figures` are published ones by experiment, method and value; those that the experiment itself names go before them.
    """
    where = f"experiments.{name}"
    keys = _checked(block, ExperimentKeys, where)
    _check_overrides(keys.set, f"{where}.set")
    _check_varied(keys.vary, f"{where}.vary", list(vary))
    if not vary:
        published = _published(keys.published, f"{where}.published", None, [], methods, sources, {})
        return {name: Experiment(name=name, set=keys.set, published=published)}
    (varied, values), experiments = next(iter({**vary, **keys.vary}.items())), {}
    for place, value in enumerate(values):
        others = {method: known for (attack, method, at), known in figures.items() if (attack, at) == (name, value)}
        experiments[f"{name}-{value}"] = Experiment(
            name=name,
            value=str(value),
            place=place,
            set={**keys.set, varied: value},
            published=_published(keys.published, f"{where}.published", value, values, methods, sources, others),
        )
    return experiments


def _check_varied(vary: Block, where: str, allowed: list[str]) -> None:
    """What varies is one parameter, the same in the whole suite; its values become names of runs."""
    _check_overrides(vary, where)
    for key, values in vary.items():
        if key not in allowed:
            keys = ", ".join(allowed) or "none without a `vary` of the suite"
            raise ParameterError(f"{where}: {key!r} given, allowed: {keys}")
        listed = values if isinstance(values, list) else []
        names = {str(value) for value in listed if not isinstance(value, bool)}
        if not names or len(names) < len(listed) or not all(map(VALUE.fullmatch, names)):
            raise ParameterError(f"{where}.{key}: {values!r} given, allowed: a list of numbers or names, each once")


def _published(
    blocks: Block,
    where: str,
    value: Any,
    values: list[Any],
    methods: Mapping[str, Method],
    sources: Mapping[str, str],
    others: Mapping[str, Published],
) -> dict[str, Published]:
    """What is published of an experiment's `value` out of `values`, by method; a method without any has a reason.

    `others` are figures by method for those that `blocks` has none of.
    """
    _check_known(blocks, where, methods)
    published = {method: others[method] for method in methods if method in others}
    for method, block in blocks.items():
        given = _block(block, f"{where}.{method}")
        if not any(given.get(metric) is not None for metric in METRICS) and "source" in given:
            raise ParameterError(f"{where}.{method}: no figure given, allowed: {', '.join(METRICS)}")
        chosen = {}
        for key, figure in given.items():
            if isinstance(figure, dict):
                _check_known(figure, f"{where}.{method}.{key}", values or ["a figure, as nothing varies"])
            chosen[key] = figure.get(value) if isinstance(figure, dict) else figure
        figures = _checked(chosen, Published, f"{where}.{method}")
        _check_known([figures.source], f"{where}.{method}.source", sources)
        if figures.figures:
            published[method] = figures
    for method, about in methods.items():
        if method not in published and not about.unpublished:
            raise ParameterError(f"{where}.{method}: nothing given, allowed: its figures, or a reason in methods")
    return published


def _check_tolerances(tolerances: Mapping[MetricName, float], experiments: Iterable[Experiment]) -> None:
    """Either no published figure is judged, or each has a tolerance."""
    published = {m for experiment in experiments for known in experiment.published.values() for m in known.figures}
    for metric in METRICS:
        if tolerances and metric in published and metric not in tolerances:
            raise ParameterError(f"tolerances.{metric}: nothing given, allowed: a number from 0 to 1")


def _check_scale(
    scale: Scale, where: str, experiments: Mapping[str, Experiment], methods: Mapping[str, Method]
) -> None:
    _check_overrides(scale.set, f"{where}.set")
    values = dict.fromkeys(experiment.value for experiment in experiments.values() if experiment.value)
    _check_known(map(str, scale.set_for), f"{where}.set_for", values)
    for value, overrides in scale.set_for.items():
        _check_overrides(overrides, f"{where}.set_for.{value}")
    names = dict.fromkeys(name for key, experiment in experiments.items() for name in (experiment.name, key))
    _check_known(scale.reasons, f"{where}.reasons", [f"{name}.{method}" for name in names for method in methods])
    if not scale.seeds or len(set(scale.seeds)) < len(scale.seeds) or max(scale.seeds) > LARGEST_SEED:
        raise ParameterError(
            f"{where}.seeds: {scale.seeds!r} given, allowed: whole numbers to {LARGEST_SEED}, each once"
        )


def _column(block: Any, where: str) -> Column:
    column = _checked(block, Column, where)
    # Without a width: one of a thousand million would fill the memory.
    if not FORM.fullmatch(column.form):
        raise ParameterError(f"{where}.form: {column.form!r} given, allowed: as Python's, .3f or .1%")
    return column


def _matrix(block: Any, where: str, sources: Mapping[str, str]) -> Matrix:
    keys = _checked(block, MatrixKeys, where)
    if keys.metric.count("*") != 1:
        raise ParameterError(f"{where}.metric: {keys.metric!r} given, allowed: a metric's name with one *")
    published = {}
    for title, figures in keys.published.items():
        published[title] = _checked(figures, Figures, f"{where}.published.{title}")
        _check_known([published[title].source], f"{where}.published.{title}.source", sources)
    if published and keys.rows == "methods":
        raise ParameterError(f"{where}.published: {', '.join(published)} given, allowed: with rows: attacks")
    return Matrix(metric=keys.metric, lower_is_better=keys.lower_is_better, rows=keys.rows, published=published)


def _solved(block: Any) -> Solved:
    keys = _checked(block, SolvedKeys, "solved")
    if keys.methods.count("*") != 1:
        raise ParameterError(f"solved.methods: {keys.methods!r} given, allowed: a place in the metrics with one *")
    columns = {heading: _column(column, f"solved.columns.{heading}") for heading, column in keys.columns.items()}
    return Solved(methods=keys.methods, asr=keys.asr, acc_drop=keys.acc_drop, ra_drop=keys.ra_drop, columns=columns)


def _check_overrides(values: Overrides, where: str) -> None:
    """Keys to plain values; the seed and the place of the data are not a suite's to say."""
    for key, value in values.items():
        if not KEY.fullmatch(key):
            raise ParameterError(f"{where}: {key!r} given, allowed: SECTION.KEY or FILE:SECTION.KEY")
        if key in ("seed", "data.path"):
            raise ParameterError(
                f"{where}.{key}: {value!r} given, allowed: `seeds` of a scale, DATA on the command line"
            )
        if not all(map(_is_plain, value if isinstance(value, list) else [value])):
            raise ParameterError(
                f"{where}.{key}: {value!r} given, allowed: a line of text, a number, true, false, null or a list"
            )


def _is_plain(value: Any) -> bool:
    """Whether a value can go through a command line into a parameter: NaN and endless numbers mean nothing there."""
    if isinstance(value, str):
        return value.isprintable()
    return value is None or (isinstance(value, int | float) and abs(value) <= MOST)


def _named(blocks: Block, where: str, schema: Callable[..., Schema]) -> dict[str, Schema]:
    """Name to the value of `schema`, a dataclass, that its block stands for."""
    return {key: _checked(block, schema, f"{where}.{key}") for key, block in _names(blocks, where)}


def _names(blocks: Block, where: str) -> Iterable[tuple[str, Any]]:
    for key in blocks:
        if not NAME.fullmatch(str(key)):
            raise ParameterError(f"{where}: {key!r} given as a name, {NAMES_ALLOWED}")
    return blocks.items()


def _checked(values: Any, schema: Callable[..., Schema], where: str = "") -> Schema:
    """The value of `schema`, a dataclass; `where` is its place in the file."""
    if not where:
        return schema(**check(values, schema))
    block = _block(values, where)
    with keys_of(where):
        return schema(**check(block, schema))


def _block(value: Any, where: str) -> Block:
    if not isinstance(value, dict):
        raise ParameterError(f"{where}: {value!r} given, allowed: a block of keys")
    return value


def _check_known(names: Iterable[Any], where: str, allowed: Iterable[Any]) -> None:
    for name in names:
        if name not in allowed:
            raise ParameterError(f"{where}: {name!r} given, allowed: {', '.join(map(str, allowed))}")
