"""A picture of what a suite varies: ACC and ASR of each experiment and method against the parameter's values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..core.errors import UserError
from ..core.files import new_file
from ..reporting import figures
from .git import Repository
from .reading import read_suite
from .record import read_record
from .suite import Suite
from .table import Line, lines

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]


def draw(repository: Repository, name: str) -> list[Path]:
    """Draw a suite's curves from its record, a picture for each scale and data set that has any.

    Returns:
        The pictures' paths: `NAME-SCALE-curves.png` beside the suite's page, with a number from the second data set on.

    Raises:
        UserError: a suite that varies nothing, or what are no numbers; no recorded run.
    """
    suite = read_suite(name, repository.suites)
    values = _numbers(suite)
    graded = [line for line in lines(suite, read_record(repository.report(f"{name}.runs.csv"))) if line.runs]
    paths = []
    for scale in suite.scales:
        of_scale = [line for line in graded if line.scale == scale]
        for number, data in enumerate(sorted({line.data for line in of_scale})):
            path = repository.report(f"{name}-{scale}-curves{f'-{number + 1}' if number else ''}.png")
            curves = curves_of(suite, values, [line for line in of_scale if line.data == data])
            with new_file(path) as staging:
                staging.write_bytes(figures.against(suite.vary.rpartition(":")[2], list(values.values()), curves))
            paths.append(path)
    if not paths:
        raise UserError(f"{name}: no recorded run, allowed: after `{suite.command(next(iter(suite.scales)))}`")
    return paths


def curves_of(suite: Suite, values: Mapping[str, float], graded: Sequence[Line]) -> dict[str, Curve]:
    """ACC and ASR at each value, NaN where there is none, by experiment, and by method where several are defended."""
    first, places = next(iter(suite.methods)), {value: place for place, value in enumerate(values)}
    curves: dict[str, Curve] = {}
    for line in graded:
        if line.method == first and len(suite.methods) > 1:
            continue
        several = len(suite.methods) > 2
        label = f"{line.experiment}, {line.method}" if several else line.experiment
        acc, asr = curves.setdefault(label, (np.full(len(values), np.nan), np.full(len(values), np.nan)))
        acc[places[line.value]] = line.mean.get("acc", np.nan)
        asr[places[line.value]] = line.mean.get("asr", np.nan)
    return curves


def _numbers(suite: Suite) -> dict[str, float]:
    """The values of what a suite varies, as they are written, and as numbers, which rise."""
    values = {experiment.value for experiment in suite.experiments.values() if experiment.value}
    try:
        return dict(sorted(((value, float(value)) for value in values), key=lambda pair: pair[1])) or _none(suite)
    except ValueError:
        return _none(suite)


def _none(suite: Suite) -> dict[str, float]:
    raise UserError(
        f"suites/{suite.name}.yaml: vary: {suite.vary or 'nothing'} given, allowed for curves: one with numbers"
    )
