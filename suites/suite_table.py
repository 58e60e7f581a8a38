"""A published table beside ours: a suite's settings and its recorded runs in, lines, Markdown and CSV out."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unpoison.core.files import sha256_json
from unpoison.core.hyperparameters import Fraction, Whole
from unpoison.reporting.page import Table

METRICS = ("acc", "asr", "ra")
NO_REASON = "reason not found yet"


@dataclass(frozen=True, kw_only=True)
class Published:
    """Published figures, fractions in [0, 1]; `source` is a key of the suite's sources."""

    source: str
    acc: Fraction | None = None
    asr: Fraction | None = None
    ra: Fraction | None = None

    @property
    def figures(self) -> dict[str, float]:
        given = {metric: getattr(self, metric) for metric in METRICS}
        return {metric: value for metric, value in given.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Method:
    """Where a method's figures lie in `metrics.json` (`purified.ft`), and why none are published where none are."""

    metrics: str
    unpublished: str = ""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """An attack: its overrides, and what is published of it, by method."""

    set: dict[str, Any]
    published: dict[str, Published]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """One size the table is run at.

    Attributes:
        label: what the size is, in words; every line of the table says it.
        seeds: one run per experiment and seed.
        cost: estimate of what all its runs cost, in words.
        set: overrides of every run at this scale.
        why: why its figures deviate from the published ones.
        reasons: the same for one line, by `EXPERIMENT.METHOD`.
    """

    label: str
    seeds: list[Whole]
    cost: str
    set: dict[str, Any] = field(default_factory=dict)
    why: str = ""
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A published table. `tolerances` are absolute, in the metrics' own unit; `protocol` tells the differences in words."""

    name: str
    title: str
    sources: dict[str, str]
    protocol: list[str]
    tolerances: dict[str, float]
    set: dict[str, Any]
    methods: dict[str, Method]
    experiments: dict[str, Experiment]
    scales: dict[str, Scale]

    def overrides(self, scale: str, experiment: str) -> dict[str, Any]:
        """Dotted key to value; an experiment's override comes before its scale's, and that before the suite's."""
        return {**self.set, **self.scales[scale].set, **self.experiments[experiment].set}

    def settings(self, scale: str, experiment: str) -> str:
        """Eight digits that change with the overrides; not with the data set, which the command line may replace."""
        overrides = self.overrides(scale, experiment)
        return sha256_json({key: value for key, value in overrides.items() if key != "data.name"})[:8]

    def command(self, scale: str) -> str:
        return f"make suite SUITE={self.name} SCALE={scale}"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run, one line of the record. `seconds` is wall time, None where unknown; metrics by flattened name."""

    scale: str
    experiment: str
    seed: int
    settings: str
    commit: str
    data: str
    device: str
    torch: str
    seconds: float | None
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the table; dictionaries by metric, `std` the sample standard deviation, empty for a single run.

    `runs` of `wanted` seeds were made; `verdict` is `within tolerance`, `deviates`, `not run` or `no published figure`.
    """

    scale: str
    label: str
    data: str
    experiment: str
    method: str
    runs: int
    wanted: int
    published: dict[str, float]
    source: str
    mean: dict[str, float]
    std: dict[str, float]
    difference: dict[str, float]
    verdict: str
    why: str


def counted(suite: Suite, runs: Iterable[Run]) -> list[Run]:
    """The runs of this suite as it is now; a run of other settings, experiments or seeds is not one of its table."""
    return [
        run
        for run in runs
        if run.scale in suite.scales
        and run.experiment in suite.experiments
        and run.seed in suite.scales[run.scale].seeds
        and run.settings == suite.settings(run.scale, run.experiment)
    ]


def lines(suite: Suite, runs: Iterable[Run]) -> list[Line]:
    """One line per scale, experiment and method. Runs on different data sets are never averaged: each has its lines."""
    valid, found = counted(suite, runs), []
    for scale in suite.scales:
        of_scale = [run for run in valid if run.scale == scale]
        for data in sorted({run.data for run in of_scale}) or [""]:
            for experiment in suite.experiments:
                group = [run for run in of_scale if (run.experiment, run.data) == (experiment, data)]
                found += [_line(suite, scale, data, experiment, method, group) for method in suite.methods]
    return found


def _line(suite: Suite, scale: str, data: str, experiment: str, method: str, group: Sequence[Run]) -> Line:
    settings, about = suite.scales[scale], suite.methods[method]
    names = {metric: f"{about.metrics}.{metric}" for metric in METRICS}
    graded = [run for run in group if all(name in run.metrics for name in names.values())]
    values = {metric: [run.metrics[name] for run in graded] for metric, name in names.items() if graded}
    mean = {metric: statistics.fmean(each) for metric, each in values.items()}
    published = suite.experiments[experiment].published.get(method)
    figures = published.figures if published else {}
    # Rounded, so that 0.93 - 0.91 is the 0.02 it is meant to be when it is held against a tolerance of 0.02.
    difference = {metric: round(mean[metric] - value, 6) for metric, value in figures.items() if mean}
    if not graded:
        verdict, why = "not run", f"`{suite.command(scale)}`; estimate for all its runs: {settings.cost}"
    elif not figures:
        verdict, why = "no published figure", about.unpublished
    elif all(abs(value) <= suite.tolerances[metric] for metric, value in difference.items()):
        verdict, why = "within tolerance", ""
    else:
        verdict = "deviates"
        why = settings.reasons.get(f"{experiment}.{method}") or settings.why or NO_REASON
    return Line(
        scale=scale,
        label=settings.label,
        data=data,
        experiment=experiment,
        method=method,
        runs=len(graded),
        wanted=len(settings.seeds),
        published=figures,
        source=published.source if published and figures else "",
        mean=mean,
        std={metric: statistics.stdev(each) for metric, each in values.items() if len(each) > 1},
        difference=difference,
        verdict=verdict,
        why=why,
    )


def markdown(suite: Suite, runs: Sequence[Run]) -> str:
    """The page of a suite; the same suite and runs give the same text."""
    valid = counted(suite, runs)
    tolerances = ", ".join(f"{metric.upper()} {value}" for metric, value in suite.tolerances.items())
    parts = [
        f"# {suite.title}",
        "\n".join(f"- Source `{key}`: {text}" for key, text in suite.sources.items()),
        "## What differs from the published protocol",
        "\n".join(f"- {text}" for text in suite.protocol),
    ]
    for scale in suite.scales:
        parts += [f"## Scale {scale}", "\n".join(_about(suite, scale, [run for run in valid if run.scale == scale]))]
    parts += ["## Table", f"Figures are mean ± sample standard deviation over n seeds. Tolerances: {tolerances}."]
    if len(valid) < len(runs):
        parts.append(f"Recorded runs of other settings than the suite has now, not counted: {len(runs) - len(valid)}.")
    return "\n\n".join([*parts, _table(lines(suite, runs)).markdown()]) + "\n"


def _about(suite: Suite, scale: str, runs: Sequence[Run]) -> list[str]:
    """What was run at a scale, on what, and how long it took."""
    about = suite.scales[scale]
    wanted = len(suite.experiments) * len(about.seeds)
    folders = {run.data.removeprefix("folder ") for run in runs if run.data.startswith("folder ")}
    commands = [suite.command(scale), *(f"{suite.command(scale)} DATA={name}" for name in sorted(folders))]
    facts = [f"- {about.label}; seeds {', '.join(map(str, about.seeds))}"]
    facts.append("- " + "; ".join(f"`{command}`" for command in (commands[1:] or commands)))
    blocks = {"every run": {**suite.set, **about.set}, **{name: each.set for name, each in suite.experiments.items()}}
    for name, block in blocks.items():
        settings = (f"{key}={json.dumps(value)}".replace('"', "") for key, value in block.items())
        facts.append(f"- {name}: " + ", ".join(f"`{setting}`" for setting in settings))
    if not runs:
        return [*facts, f"- not run; estimate for all {wanted} runs: {about.cost}"]
    for name, key in {"data": "data", "hardware": "device", "torch": "torch", "commit of the code": "commit"}.items():
        values = sorted({getattr(run, key) for run in runs})
        facts.append(f"- {name}: " + "; ".join(value or "not recorded" for value in values))
    minutes = [run.seconds / 60 for run in runs if run.seconds is not None]
    wall = f": {min(minutes):.1f} to {max(minutes):.1f} min each, {sum(minutes):.1f} min in all" if minutes else ""
    return [*facts, f"- {len(runs)} of {wanted} runs{wall}; a stage that came from the cache took no time"]


def _table(rows: Sequence[Line]) -> Table:
    header = ["scale", "attack", "method", "published ACC / ASR / RA", "source", "ours ACC / ASR / RA", "n"]
    body = []
    for line in rows:
        ours = {m: f"{v:.3f}" + (f" ± {line.std[m]:.3f}" if m in line.std else "") for m, v in line.mean.items()}
        cells = (
            f"{line.scale} scale: {line.label}" + (f"; {line.data}" if line.data else ""),
            line.experiment,
            line.method,
            _triple({metric: f"{value:.3f}" for metric, value in line.published.items()}),
            line.source,
            _triple(ours),
            str(line.runs) if line.runs == line.wanted else f"{line.runs} of {line.wanted}",
            _triple({metric: f"{value:+.3f}" for metric, value in line.difference.items()}),
            line.verdict,
            line.why,
        )
        body.append(cells)
    return Table([*header, "difference", "verdict", "why"], body, frozenset({1, 2, 4, 8, 9}))


def _triple(texts: Mapping[str, str]) -> str:
    return " / ".join(texts.get(metric, "–") for metric in METRICS) if texts else "–"
