"""Tables with a column per method: one figure of every detector, say, for each attack and rate of a suite."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence

from ..reporting.escaping import code, prose
from ..reporting.escaping import markdown as literal
from ..reporting.page import Table
from .record import Run
from .suite import Matrix, Suite


def sections(suite: Suite, runs: Sequence[Run]) -> list[str]:
    """Heading, table and notes of each of the suite's matrices at each scale with such figures."""
    parts: list[str] = []
    for scale, about in suite.scales.items():
        for data in sorted({run.data for run in runs if run.scale == scale}):
            here = [run for run in runs if (run.scale, run.data) == (scale, data)]
            for title, matrix in suite.matrices.items():
                if names := names_of(matrix, here):
                    where = f"{prose(about.label)}; {literal(data)}"
                    parts += [f"### {prose(title)}: {where}", _table(suite, matrix, names, here).markdown(str)]
    if parts and suite.taken is not None:
        below = f"ASR below {suite.taken:g}"
        parts.append(f"† {below}: the attack did not take. Such rows are in neither mean nor worst case.")
    return parts


def names_of(matrix: Matrix, runs: Iterable[Run]) -> list[str]:
    """What `*` stands for in the metrics that were recorded, in the order of the alphabet."""
    form = re.compile(re.escape(matrix.metric).replace(r"\*", "([^.]+)"))
    return sorted({found[1] for run in runs for metric in run.metrics if (found := form.fullmatch(metric))})


def _table(suite: Suite, matrix: Matrix, names: Sequence[str], runs: Sequence[Run]) -> Table:
    asr_of = f"{next(iter(suite.methods.values())).metrics}.asr"
    body, taken = [], []
    for experiment, about in suite.experiments.items():
        of_experiment = [run for run in runs if run.experiment == experiment]
        means = {name: _mean(of_experiment, matrix.metric.replace("*", name)) for name in names}
        if not any(value is not None for value in means.values()):
            continue
        asr = _mean(of_experiment, asr_of)
        if took := suite.taken is None or (asr is not None and asr >= suite.taken):
            taken.append(means)
        first = literal(about.name) + ("" if took else " †")
        value = [literal(about.value)] if suite.vary else []
        body.append([first, *value, "–" if asr is None else f"{asr:.3f}", *_cells(means, names)])
    columns = {name: [row[name] for row in taken if row[name] is not None] for name in names}
    whole = {name: [value for value in values if value is not None] for name, values in columns.items()}
    blank = [""] * (2 if suite.vary else 1)
    for title, of in (("mean", statistics.fmean), ("worst", max if matrix.lower_is_better else min)):
        summary = {name: of(values) if values else None for name, values in whole.items()}
        body.append([f"**{title}** of {len(taken)}", *blank, *_cells(summary, names)])
    for title, published in matrix.published.items():
        first = f"{prose(title)} ({code(published.source)})"
        body.append([first, *blank, *_cells(published.figures, names)])
    varied = [literal(suite.vary.rpartition(".")[2])] if suite.vary else []
    return Table(["attack", *varied, "ASR", *map(literal, names)], body)


def _cells(figures: Mapping[str, float | None], names: Sequence[str]) -> list[str]:
    found = (figures.get(name) for name in names)
    return ["–" if value is None else f"{value:.3f}" for value in found]


def _mean(runs: Iterable[Run], metric: str) -> float | None:
    values = [run.metrics[metric] for run in runs if metric in run.metrics]
    return statistics.fmean(values) if values else None
