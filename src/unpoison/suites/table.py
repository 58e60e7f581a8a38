"""A published table beside ours: a suite's settings and its recorded runs in, lines, Markdown and CSV out."""

from __future__ import annotations

import json
import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..reporting.escaping import code, prose, spreadsheet
from ..reporting.escaping import markdown as literal
from ..reporting.page import Table
from . import matrices
from .git import Repository
from .reading import read_suite
from .record import Run, cell, csv_text, read_record, write_text
from .suite import METRICS, Experiment, Overrides, Suite

NO_REASON = "reason not found yet"
LINE_KEYS = ("scale", "label", "data", "experiment", "value", "method", "source", "runs", "wanted")
FIGURES = ("published", "mean", "std", "difference")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the table.

    Attributes:
        experiment, value: the experiment's name in the suite's file, and the value of what the suite varies.
        runs, wanted: how many of how many seeds were run.
        published, mean, std, difference: by metric; `std` is the sample standard deviation, empty for a single run.
        columns: mean and standard deviation of each further column, as far as there are such figures.
        verdict: `within tolerance`, `deviates`, `no tolerance`, `not run` or `no published figure`.
    """

    scale: str
    label: str
    data: str
    experiment: str
    value: str
    method: str
    runs: int
    wanted: int
    published: dict[str, float]
    source: str
    mean: dict[str, float]
    std: dict[str, float]
    difference: dict[str, float]
    columns: dict[str, tuple[float | None, float | None]]
    verdict: str
    why: str


def write_table(repository: Repository, name: str) -> str:
    """The page, written with its CSV, from the suite's file and its record alone."""
    suite = read_suite(name, repository.suites)
    runs = read_record(repository.report(f"{name}.runs.csv"))
    page = markdown(suite, runs)
    write_text(repository.report(f"{name}.md"), page)
    write_text(repository.report(f"{name}.csv"), table_csv(suite, runs))
    return page


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
    valid, rows = counted(suite, runs), []
    for scale in suite.scales:
        of_scale = [run for run in valid if run.scale == scale]
        for data in sorted({run.data for run in of_scale}) or [""]:
            for experiment in suite.experiments:
                group = [run for run in of_scale if (run.experiment, run.data) == (experiment, data)]
                rows += [_line(suite, scale, data, experiment, method, group) for method in suite.methods]
    return rows


def _line(suite: Suite, scale: str, data: str, experiment: str, method: str, group: Sequence[Run]) -> Line:
    settings, about, chosen = suite.scales[scale], suite.methods[method], suite.experiments[experiment]
    graded = [run for run in group if f"{about.metrics}.acc" in run.metrics]
    values = {metric: _values(graded, f"{about.metrics}.{metric}") for metric in METRICS}
    mean = {metric: statistics.fmean(figures) for metric, figures in values.items() if figures}
    published = chosen.published.get(method)
    figures = published.figures if published else {}
    # Rounded, so that 0.93 - 0.91 is the 0.02 it is meant to be when it is held against a tolerance of 0.02.
    difference = {metric: round(mean[metric] - value, 6) for metric, value in figures.items() if metric in mean}
    reason = suite.reason(scale, experiment, method)
    if not graded:
        verdict, why = "not run", f"`{suite.command(scale)}`"
    elif not figures:
        verdict, why = "no published figure", about.unpublished
    elif not suite.tolerances:
        verdict, why = "no tolerance", reason
    elif len(difference) == len(figures) and all(abs(by) <= suite.tolerances[m] for m, by in difference.items()):
        verdict, why = "within tolerance", ""
    else:
        verdict, why = "deviates", reason or NO_REASON
    return Line(
        scale=scale,
        label=settings.label,
        data=data,
        experiment=chosen.name,
        value=chosen.value,
        method=method,
        runs=len(graded),
        wanted=len(settings.seeds),
        published=figures,
        source=published.source if published else "",
        mean=mean,
        std={metric: statistics.stdev(figures) for metric, figures in values.items() if len(figures) > 1},
        difference=difference,
        columns={heading: _spread(_values(graded, column.metric)) for heading, column in suite.columns.items()},
        verdict=verdict,
        why=why,
    )


def _values(runs: Sequence[Run], metric: str) -> list[float]:
    return [run.metrics[metric] for run in runs if metric in run.metrics]


def _spread(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation, as far as there are enough values for them."""
    return statistics.fmean(values) if values else None, statistics.stdev(values) if len(values) > 1 else None


def markdown(suite: Suite, runs: Sequence[Run]) -> str:
    """The page of a suite; the same suite and runs give the same text."""
    valid = counted(suite, runs)
    tolerances = ", ".join(f"{metric.upper()} {value}" for metric, value in suite.tolerances.items())
    experiments = {experiment.name: experiment for experiment in reversed(suite.experiments.values())}
    parts = [
        f"# {prose(suite.title)}",
        "\n".join(f"- Source {code(key)}: {prose(text)}" for key, text in suite.sources.items()),
        "## What differs from the published protocol",
        "\n".join(f"- {prose(text)}" for text in suite.protocol),
        "## Experiments",
        "\n".join(_settings(name, suite, experiments[name]) for name in reversed(experiments)),
    ]
    for scale in suite.scales:
        parts += [f"## Scale {scale}", "\n".join(_about(suite, scale, [run for run in valid if run.scale == scale]))]
    parts.append("## Table")
    parts.append(
        "Figures are mean ± sample standard deviation over n seeds. "
        + (
            f"Tolerances: {tolerances}."
            if tolerances
            else "Published figures stand for orientation, no tolerance is set."
        )
    )
    if len(valid) < len(runs):
        parts.append(f"Recorded runs of other settings than the suite has now, not counted: {len(runs) - len(valid)}.")
    parts += [_table(suite, lines(suite, runs)).markdown(str), *matrices.sections(suite, valid)]
    return "\n\n".join(parts) + "\n"


def _settings(name: str, suite: Suite, experiment: Experiment) -> str:
    """An experiment's overrides, with all values of what varies."""
    fixed = {key: value for key, value in experiment.set.items() if key != suite.vary}
    values = ", ".join(other.value for other in suite.experiments.values() if other.name == name)
    return f"- {name}: {_inline(fixed)}" + (f"; {code(suite.vary)} {literal(values)}" if suite.vary else "")


def _inline(block: Overrides) -> str:
    return ", ".join(code(f"{key}={json.dumps(value)}".replace('"', "")) for key, value in block.items())


def _about(suite: Suite, scale: str, runs: Sequence[Run]) -> list[str]:
    """What was run at a scale, on what, and how long it took."""
    about = suite.scales[scale]
    wanted = len(suite.experiments) * len(about.seeds)
    folders = {run.data.removeprefix("folder ") for run in runs if run.data.startswith("folder ")}
    commands = [suite.command(scale), *(f"{suite.command(scale)} DATA={shlex.quote(name)}" for name in sorted(folders))]
    facts = [f"- {prose(about.label)}; seeds {', '.join(map(str, about.seeds))}"]
    facts.append("- " + "; ".join(map(code, commands[1:] or commands)))
    facts.append(f"- every run: {_inline({**suite.set, **about.set})}")
    if not runs:
        return [*facts, f"- none of {wanted} runs made; what they cost: {prose(about.cost)}"]
    for name, key in {"data": "data", "hardware": "device", "torch": "torch", "commit of the code": "commit"}.items():
        values = sorted({getattr(run, key) for run in runs})
        facts.append(f"- {name}: " + "; ".join(literal(value) or "not recorded" for value in values))
    minutes = [run.seconds / 60 for run in runs if run.seconds is not None]
    wall = f": {min(minutes):.1f} to {max(minutes):.1f} min each, {sum(minutes):.1f} min in all" if minutes else ""
    return [*facts, f"- {len(runs)} of {wanted} runs{wall}; a stage that came from the cache took no time"]


def _table(suite: Suite, rows: Sequence[Line]) -> Table:
    varied = [literal(suite.vary.rpartition(".")[2])] if suite.vary else []
    header = ["scale", "attack", *varied, "method", "published ACC / ASR / RA", "source", "ours ACC / ASR / RA"]
    header += [*map(literal, suite.columns), "n", "difference", "verdict", "why"]
    body = []
    for line in rows:
        ours = {m: f"{v:.3f}" + (f" ± {line.std[m]:.3f}" if m in line.std else "") for m, v in line.mean.items()}
        cells = (
            f"{line.scale} scale: {prose(line.label)}" + (f"; {literal(line.data)}" if line.data else ""),
            literal(line.experiment),
            *([literal(line.value)] if varied else []),
            literal(line.method),
            _triple({metric: f"{value:.3f}" for metric, value in line.published.items()}),
            literal(line.source),
            _triple(ours),
            *(_column(*line.columns[heading], column.form) for heading, column in suite.columns.items()),
            str(line.runs) if line.runs == line.wanted else f"{line.runs} of {line.wanted}",
            _triple({metric: f"{value:+.3f}" for metric, value in line.difference.items()}),
            line.verdict,
            prose(line.why),
        )
        body.append(cells)
    text = {"attack", "method", "source", "verdict", "why"}
    return Table(header, body, frozenset(place for place, name in enumerate(header) if name in text))


def _triple(texts: Mapping[str, str]) -> str:
    return " / ".join(texts.get(metric, "–") for metric in METRICS) if texts else "–"


def _column(mean: float | None, std: float | None, form: str) -> str:
    return "–" if mean is None else f"{mean:{form}}" + ("" if std is None else f" ± {std:{form}}")


def table_csv(suite: Suite, runs: Iterable[Run]) -> str:
    """The lines of the table for programs: one column per figure, empty where there is none."""
    columns = [(kind, metric) for kind in FIGURES for metric in METRICS]
    further = [f"{kind}_{column.metric}" for column in suite.columns.values() for kind in ("mean", "std")]
    header = [*LINE_KEYS, *(f"{kind}_{metric}" for kind, metric in columns), *further, "verdict", "why"]
    body = [
        [*(spreadsheet(str(getattr(line, key))) for key in LINE_KEYS)]
        + [cell(getattr(line, kind).get(metric)) for kind, metric in columns]
        + [cell(value) for heading in suite.columns for value in line.columns[heading]]
        + [line.verdict, spreadsheet(line.why)]
        for line in lines(suite, runs)
    ]
    return csv_text([header, *body])
