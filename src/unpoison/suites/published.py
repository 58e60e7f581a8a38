"""Published figures of many attacks, methods and rates, in a CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import ParameterError, UserError, file_of
from ..core.files import open_file
from ..core.hyperparameters import Fraction, check
from .suite import METRICS
from .yaml_file import LARGEST

HEADER = ("attack", "method", "rate", *METRICS)
PublishedFigures = Mapping[tuple[str, str, float], dict[str, float]]
"""Published figures by name (ACC, ASR, RA), of each attack, method and rate; the method `none` is no defence."""


@dataclass(frozen=True, kw_only=True)
class _Figures:
    rate: Fraction
    acc: Fraction
    asr: Fraction
    ra: Fraction


def read_published(path: Path) -> PublishedFigures:
    """Published figures of a CSV file with the columns attack, method, rate, acc, asr and ra, all as fractions.

    Raises:
        UserError: a file that is too large, another header, a line that is none, or a cell that is there twice.
    """
    with open_file(path) as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise UserError(f"{path}: larger than {LARGEST:,} bytes, allowed: a table of figures")
    try:
        rows = list(csv.reader(io.StringIO(content.decode("ascii")), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not readable as CSV ({error})") from None
    if not rows or tuple(rows[0]) != HEADER:
        raise UserError(
            f"{path}: line 1: columns {', '.join(rows[0]) if rows else 'none'} found, allowed: {', '.join(HEADER)}"
        )
    found: dict[tuple[str, str, float], dict[str, float]] = {}
    for number, row in enumerate(rows[1:], 2):
        with file_of(f"{path}: line {number}"):
            if len(row) != len(HEADER):
                raise ParameterError(f"{len(row)} cells found, allowed: {len(HEADER)}")
            try:
                figures = {key: float(value) for key, value in zip(HEADER[2:], row[2:], strict=True)}
            except ValueError:
                raise ParameterError(f"{', '.join(row[2:])!r} found, allowed: numbers") from None
            numbers = check(figures, _Figures)
            key = row[0], row[1], numbers.pop("rate")
            if key in found:
                raise ParameterError(f"{', '.join(map(str, key))} found once more, allowed: once")
        found[key] = numbers
    return found
