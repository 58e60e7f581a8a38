"""Tables of all methods: one figure of each, for each attack and rate of a suite, and how many attacks each solves."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence

from ..reporting.escaping import code, prose
from ..reporting.escaping import markdown as literal
from ..reporting.page import Table
from .record import Run
from .suite import Matrix, Solved, Suite

CONTROL = "clean.asr"


def sections(suite: Suite, runs: Sequence[Run]) -> list[str]:
    """Heading, table and notes of each of the suite's matrices at each scale with such figures."""
    parts: list[str] = []
    for scale, about in suite.scales.items():
        for data in sorted({run.data for run in runs if run.scale == scale}):
            here = [run for run in runs if (run.scale, run.data) == (scale, data)]
            where = f"{prose(about.label)}; {literal(data)}"
            if suite.solved is not None and (names := names_of(f"{suite.solved.methods}.acc", here)):
                parts += [f"### Attacks solved: {where}", _solved(suite, suite.solved, names, here).markdown(str)]
                first, drop = next(iter(suite.methods)), suite.solved.ra_drop
                right = "" if drop is None else f", and RA at most {drop:g} below the method's own ACC"
                parts.append(
                    f"Solved: ASR of at most {suite.solved.asr:g}, and at most {suite.solved.acc_drop:g} of the ACC lost that "
                    f"`{first}` has{right}. Means are over the attacks that took."
                )
            for title, matrix in suite.matrices.items():
                if names := names_of(matrix.metric, here):
                    parts += [f"### {prose(title)}: {where}", _table(suite, matrix, names, here).markdown(str)]
    if parts and any(CONTROL in run.metrics for run in runs):
        parts.append(
            "Control: a network like the victim's that was trained on the clean set. Its ASR is what the trigger does without "
            "a backdoor; a defence cannot be asked for less."
        )
    if parts and suite.taken is not None:
        below = f"ASR below {suite.taken:g}"
        parts.append(f"† {below}: the attack did not take. Such rows are in neither mean nor worst case.")
    return parts


def names_of(metric: str, runs: Iterable[Run]) -> list[str]:
    """What the `*` of a metric stands for in the metrics that were recorded, in the order of the alphabet."""
    form = re.compile(re.escape(metric).replace(r"\*", "([^.]+)"))
    return sorted({found[1] for run in runs for metric in run.metrics if (found := form.fullmatch(metric))})


def _table(suite: Suite, matrix: Matrix, names: Sequence[str], runs: Sequence[Run]) -> Table:
    of_victim = {"ASR": f"{_undefended(suite)}.asr"}
    if any(CONTROL in run.metrics for run in runs):
        of_victim["control"] = CONTROL
    body, taken = [], []
    for experiment, about in suite.experiments.items():
        of_experiment = [run for run in runs if run.experiment == experiment]
        means = {name: _mean(of_experiment, matrix.metric.replace("*", name)) for name in names}
        if not any(value is not None for value in means.values()):
            continue
        own = {head: _mean(of_experiment, metric) for head, metric in of_victim.items()}
        asr = own["ASR"]
        if took := suite.taken is None or (asr is not None and asr >= suite.taken):
            taken.append(means)
        first = literal(about.name) + ("" if took else " †")
        value = [literal(about.value)] if suite.vary else []
        body.append([first, *value, *map(_cell, own.values()), *_cells(means, names)])
    columns = {name: [row[name] for row in taken if row[name] is not None] for name in names}
    whole = {name: [value for value in values if value is not None] for name, values in columns.items()}
    varied = [literal(suite.vary.rpartition(".")[2])] if suite.vary else []
    blank = [""] * (len(varied) + len(of_victim))
    for title, of in (("mean", statistics.fmean), ("worst", max if matrix.lower_is_better else min)):
        summary = {name: of(values) if values else None for name, values in whole.items()}
        body.append([f"**{title}** of {len(taken)}", *blank, *_cells(summary, names)])
    for title, published in matrix.published.items():
        first = f"{prose(title)} ({code(published.source)})"
        body.append([first, *blank, *_cells(published.figures, names)])
    if matrix.rows == "methods":
        # The attacks' own columns become the head, and their ASR the first rows.
        labels = 1 + len(varied)
        head = [" ".join(filter(None, row[:labels])) for row in body]
        titles = {"ASR": "ASR of the victim", "control": "ASR of the control"}
        rows = [*(titles[name] for name in of_victim), *map(literal, names)]
        across = [[title, *(row[labels + place] for row in body)] for place, title in enumerate(rows)]
        return Table(["method", *head], across, frozenset({0}))
    return Table(["attack", *varied, *of_victim, *map(literal, names)], body)


def _solved(suite: Suite, solved: Solved, names: Sequence[str], runs: Sequence[Run]) -> Table:
    """A row per method, those that solve most first: attacks solved, and mean figures over the attacks that took."""
    keys = ("acc", "asr", *(column.metric for column in solved.columns.values()))
    forms = [".3f", ".3f", *(column.form for column in solved.columns.values())]
    counts, figures = dict.fromkeys(names, (0, 0)), {name: list[list[float | None]]() for name in names}
    for experiment in suite.experiments:
        of_experiment = [run for run in runs if run.experiment == experiment]
        acc, asr = (_mean(of_experiment, f"{_undefended(suite)}.{figure}") for figure in ("acc", "asr"))
        if acc is None or asr is None or asr < (suite.taken or 0):
            continue
        for name in names:
            place = solved.methods.replace("*", name)
            found = [_mean(of_experiment, f"{place}.{key}") for key in keys]
            kept, left = found[:2]
            if kept is None or left is None:
                continue
            # To six places, as metrics are written: 0.87 - 0.85 is the 0.02 that is allowed.
            good = left <= solved.asr and round(acc - kept, 6) <= solved.acc_drop
            if solved.ra_drop is not None:
                ra = _mean(of_experiment, f"{place}.ra")
                good = good and ra is not None and round(kept - ra, 6) <= solved.ra_drop
            counts[name] = counts[name][0] + good, counts[name][1] + 1
            figures[name].append(found)
    means = {name: [_average(values) for values in zip(*rows, strict=True)] for name, rows in figures.items() if rows}
    order = sorted(means, key=lambda name: (-counts[name][0], means[name][1], name))
    body = [
        [literal(name), f"{counts[name][0]} of {counts[name][1]}", *map(_cell, means[name], forms)] for name in order
    ]
    return Table(["method", "solved", "ACC", "ASR", *map(literal, solved.columns)], body, frozenset({0}))


def _undefended(suite: Suite) -> str:
    """Where the figures of the suite's first method lie: those of the victim."""
    return next(iter(suite.methods.values())).metrics


def _average(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return statistics.fmean(present) if present else None


def _cell(value: float | None, form: str = ".3f") -> str:
    return "–" if value is None else f"{value:{form}}"


def _cells(figures: Mapping[str, float | None], names: Sequence[str]) -> list[str]:
    found = (figures.get(name) for name in names)
    return [_cell(value) for value in found]


def _mean(runs: Iterable[Run], metric: str) -> float | None:
    values = [run.metrics[metric] for run in runs if metric in run.metrics]
    return statistics.fmean(values) if values else None
