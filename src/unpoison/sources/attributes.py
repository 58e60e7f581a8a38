"""A table of attributes beside a folder data set: named whole numbers for each sample, as CelebA has them for its faces.

Two layouts, told apart by the first line. CSV: a header (a column of samples, then the attributes' names) and a line for each
sample. CelebA's own text (Liu et al., "Deep Learning Face Attributes in the Wild", ICCV 2015, `list_attr_celeba.txt`): the number
of samples, the attributes' names, and a line for each sample, all parted by spaces.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..core.arrays import IntArray
from ..core.errors import ParameterError, keys_of
from ..core.files import open_file
from .names import cut, normal, path_shown, shown

MOST_BYTES = 256 << 20
"""Of a table; CelebA's, of 202,599 faces and 40 attributes, has 26 MiB."""
MOST_COLUMNS = 1000
MOST_VALUE = 10**9
MOST_CLASSES = 20_000
"""Classes of a head that an attribute's values are given a place in; CelebA has 10,177 identities."""
LONGEST_NAME = 100
ALLOWED = "0 or 1, or -1 or 1, or whole numbers from 0 throughout a column"
_USUAL = {"0": 0, "1": 1, "-1": -1}

Line = tuple[int, list[str]]
"""Number of a line, from 1, and its cells."""


@dataclass(frozen=True)
class Table:
    """Attributes by sample.

    Attributes:
        path: file that they were read from.
        names: names of the attributes.
        rows: row of each sample, by the name that the file has for it, as it is shown.
        values: int64 [rows, attributes], from 0; of an attribute of -1 and 1, -1 became 0.
    """

    path: Path
    names: tuple[str, ...]
    rows: Mapping[str, int]
    values: IntArray

    def largest(self, name: str) -> int:
        """The largest value of an attribute. Raises ParameterError for `attribute` where there is none of that name."""
        if name not in self.names:
            raise ParameterError(
                f"attribute: {name!r} given, allowed: attributes of {path_shown(self.path)}, {cut(', '.join(self.names))}"
            )
        return int(self.values[:, self.names.index(name)].max())


def read_table(path: Path) -> Table:
    """The attributes in a file.

    Raises:
        ParameterError: for `attributes`; a file that is no such table: no attribute, no sample, a line of another length, a
            sample or an attribute twice, a value that is no whole number, or a column of such below 0 that is not of -1 and 1.
        UserError: a file that cannot be opened.
    """
    with open_file(path) as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise _wrong(path, f"larger than {MOST_BYTES >> 20} MiB, allowed: a table of attributes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _wrong(path, f"byte {error.start} is no UTF-8, allowed: a table as text") from None
    names, lines = _celeba(path, text) if re.match(r"\s*[0-9]+[ \t]*\r?\n", text) else _csv(path, text)
    rows: dict[str, int] = {}
    line_of: list[int] = []
    values: list[list[int]] = []
    for line, cells in lines:
        if len(cells) != len(names) + 1:
            raise _wrong(
                path,
                f"line {line}: {len(cells)} cells found, allowed: {len(names) + 1}, a sample and {len(names)} values",
            )
        sample = shown(normal(cells[0].strip()))
        if not sample:
            raise _wrong(path, f"line {line}: no sample named, allowed: the path of one")
        if sample in rows:
            raise _wrong(
                path,
                f"line {line}: {cut(sample)} is there a second time, after line {line_of[rows[sample]]}; allowed: once",
            )
        rows[sample] = len(values)
        line_of.append(line)
        values.append([_value(path, line, name, cell) for name, cell in zip(names, cells[1:], strict=True)])
    if not values:
        raise _wrong(path, "no sample found, allowed: a line for each")
    table = np.array(values, np.int64)
    for column, name in enumerate(names):
        of = table[:, column]
        if of.min() < 0:
            # Of -1 and 1, as CelebA has them; beside other values -1 has no meaning.
            if not np.isin(of, (-1, 1)).all():
                bad = int(np.argmax(of < 0))
                raise _wrong(path, f"line {line_of[bad]}: {cut(name)}: {of[bad]} given, allowed: {ALLOWED}")
            of[of < 0] = 0
    return Table(path, names, rows, table)


def values_of(table: Table, names: Mapping[str, Sequence[str]]) -> tuple[dict[str, IntArray], int]:
    """The attributes of every sample.

    A row stands for the sample of its name, or, where it names no folder, for the one sample whose file is called so, wherever
    that lies.

    Args:
        table: the attributes.
        names: names of the samples by part, as the source has them.

    Returns:
        By part int64 [n, attributes]; and the number of rows that stand for no sample.

    Raises:
        ParameterError: for `attributes`; a sample without a row, two for one sample, or a row for several samples.
    """
    own = Counter(_own(name) for part in names.values() for name in part)
    found, used, missing = {}, set[int](), list[str]()
    for part, samples in names.items():
        places = np.zeros(len(samples), np.int64)
        for number, name in enumerate(samples):
            place, short = table.rows.get(name), table.rows.get(_own(name))
            if place is None and short is not None and own[_own(name)] > 1:
                raise _wrong(
                    table.path,
                    f"{cut(_own(name))} stands for {own[_own(name)]} samples, such as {cut(name)}; allowed: the paths of samples",
                )
            if place is not None and short is not None and short != place and own[_own(name)] == 1:
                raise _wrong(table.path, f"{cut(name)} has two rows, one by its path and one by its name; allowed: one")
            place = short if place is None else place
            if place is None:
                missing.append(name)
            else:
                places[number] = place
                used.add(place)
        found[part] = table.values[places]
    if missing:
        total = sum(map(len, names.values()))
        raise _wrong(
            table.path,
            f"no row for {len(missing)} of {total} samples, such as {cut(missing[0])}; allowed: one for each",
        )
    return found, len(table.rows) - len(used)


def classes_with(table: Table, name: str, classes: Sequence[str]) -> tuple[str, ...]:
    """Classes of a head that has a place for every value of an attribute as well: number v answers value v.

    Args:
        table: the attributes.
        name: the attribute.
        classes: class names of the labels.

    Returns:
        The classes, and behind them `NAME VALUE` for each value that is no number of one.

    Raises:
        ParameterError: for `classes_of`; an attribute that there is not, too many values, or a class that is called so already.
    """
    with keys_of("classes_of"):
        largest = table.largest(name)
    if largest >= MOST_CLASSES:
        raise ParameterError(
            f"classes_of: {name!r} given, whose values go up to {largest}, allowed: below {MOST_CLASSES}"
        )
    more = [f"{name} {value}" for value in range(len(classes), largest + 1)]
    if twice := sorted(set(more) & set(classes)):
        raise ParameterError(
            f"classes_of: {name!r} given, but a class is called {twice[0]!r} already; allowed: another name"
        )
    return (*classes, *more)


def _own(name: str) -> str:
    return name.rpartition("/")[2]


def _wrong(path: Path, what: str) -> ParameterError:
    return ParameterError(f"attributes: {path_shown(path)}: {what}")


def _value(path: Path, line: int, name: str, cell: str) -> int:
    if cell in _USUAL:
        return _USUAL[cell]
    text = cell.strip()
    if not re.fullmatch("-?[0-9]{1,10}", text) or int(text) > MOST_VALUE:
        raise _wrong(path, f"line {line}: {cut(name)}: {cut(text)!r} given, allowed: {ALLOWED}")
    return int(text)


def _names(path: Path, line: int, found: Sequence[str]) -> tuple[str, ...]:
    """Names of attributes as a header has them, once they are found to be names, each once."""
    names = tuple(name.strip() for name in found)
    if not 0 < len(names) <= MOST_COLUMNS:
        raise _wrong(
            path,
            f"line {line}: {len(names)} attributes named, allowed: 1 to {MOST_COLUMNS}, behind the column of samples",
        )
    for number, name in enumerate(names):
        if not name or not name.isprintable() or len(name) > LONGEST_NAME:
            raise _wrong(
                path,
                f"line {line}: attribute {number + 1} is called {cut(name)!r}, allowed: a name of up to {LONGEST_NAME} letters",
            )
        if name in names[:number]:
            raise _wrong(path, f"line {line}: {cut(name)!r} names two attributes, allowed: each name once")
    return names


def _csv(path: Path, text: str) -> tuple[tuple[str, ...], Iterator[Line]]:
    """Names of the attributes, and the lines below the header."""
    lines = _csv_lines(path, text)
    line, header = next(lines, (1, []))
    return _names(path, line, header[1:]), lines


def _csv_lines(path: Path, text: str) -> Iterator[Line]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise _wrong(path, f"line {reader.line_num}: no line of a table ({error})") from None
        if cells is None:
            return
        if cells:  # an empty line holds nothing
            yield reader.line_num, cells


def _celeba(path: Path, text: str) -> tuple[tuple[str, ...], Iterator[Line]]:
    """Names of the attributes, and the lines below the header, whose first one has to have announced as many."""
    lines = [(number, line.split()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    announced = lines[0][1][0]
    if len(announced) > 10 or int(announced) != max(0, len(lines) - 2):
        raise _wrong(
            path,
            f"line {lines[0][0]}: {cut(announced)} samples announced, {max(0, len(lines) - 2)} lines found; allowed: as many",
        )
    number, names = lines[1] if len(lines) > 1 else (2, [])
    return _names(path, number, names), iter(lines[2:])
