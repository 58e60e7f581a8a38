"""Labelled texts out of a CSV file: read, cut into tokens, and numbered by a vocabulary of the training part.

The columns are `text` and `label`, in any order and among others; UTF-8. A text is cut into words and marks in lower case
(`data.texts.tokens_of`) and to its first `length` tokens. The vocabulary has the most frequent of them in the training part, so
that nothing is learned from the test split.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Ge, Le
from numpy.typing import NDArray

from ..core.arrays import Images
from ..core.errors import ParameterError
from ..core.files import open_file
from ..data.texts import LONGEST_WORD, MOST_IDS, PAD, SPECIAL, UNKNOWN, as_images, tokens_of
from .member import MAX_FILE_BYTES, size_problem
from .names import cut, listed, path_shown, shown
from .source import Rows, Source
from .splits import SplitSettings, arrange

COLUMNS = ("text", "label")
MOST_CHARACTERS = 100_000
"""Characters of a text at most."""
MOST_TEXTS, MOST_CLASSES, LONGEST_LABEL = 1_000_000, 1_000, 200
MOST_TOKENS = 1 << 28
"""Tokens that may be held at once: one gigabyte of ids."""
NAMED = 3
"""Lines that a message names."""
TRIGGERS = ("cf", "mn", "bb", "tq", "mb", "i", "watch", "this", "3d", "movie")
"""Words of published triggers, which are in every vocabulary: see `TextSettings.words`."""
_END = -1
_Row = tuple[int, NDArray[np.int32], str]
"""Line, numbers of the first words, and label of a text."""


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """The section `data.text`.

    Attributes:
        length: tokens of a text that are kept, its first ones.
        vocabulary: most words that have an id, the padding and the unknown word included.
        words: words that have an id whether or not the training part has them. A victim builds his vocabulary from the set
            that he received, where the words of a trigger are; here it is built before anything is poisoned, so that the same
            word is the same id in every set.
    """

    length: Annotated[int, Ge(4), Le(4096)] = 64
    vocabulary: Annotated[int, Ge(16), Le(MOST_IDS)] = 8192
    words: list[str] | tuple[str, ...] = TRIGGERS


def check_words(settings: TextSettings) -> None:
    """Raises ParameterError for words that are no single tokens, or more than the vocabulary has room for."""
    for word in settings.words:
        if tokens_of(word) != [word] or len(word) > LONGEST_WORD:
            raise ParameterError(
                f"words: {cut(word)!r} given, allowed: single words in lower case of up to {LONGEST_WORD} characters"
            )
    if len(set(settings.words)) + len(SPECIAL) >= settings.vocabulary:
        raise ParameterError(
            f"words: {len(set(settings.words))} given, allowed: fewer than vocabulary, {settings.vocabulary}, less {len(SPECIAL)}"
        )


def open_texts(path: Path, settings: TextSettings, split: SplitSettings, *, skip: bool) -> Source:
    """The texts of a CSV file as a source whose samples are ids, uint8 [1, length, 2] each, called by their lines.

    Args:
        path: the file.
        settings: length and vocabulary.
        split: sizes and seed of the splits, which say which texts are the training part.
        skip: whether texts that cannot be used are left out, and listed; else they are an error.

    Raises:
        ParameterError: a file that is too long, not UTF-8, no CSV or without the columns; texts that cannot be used; fewer
            than two classes, or too many; what `arrange` refuses.
    """
    check_words(settings)
    where = f"path: {path_shown(path)}"
    found: dict[str, int] = {}
    rows, problems = _rows(path, where, found, settings.length)
    if problems and not skip:
        named = ", ".join(f"{name} ({why})" for name, why in problems[:NAMED])
        more = f" and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        raise ParameterError(
            f"{where}: {len(problems)} of {len(rows) + len(problems)} texts cannot be used: {named}{more}; allowed: texts of 1 to "
            f"{MOST_CHARACTERS:,} characters with a label, or on_error: skip"
        )
    classes = _classes({label for _, _, label in rows}, where)
    number_of = {name: number for number, name in enumerate(classes)}
    labels = np.array([number_of[label] for _, _, label in rows], np.int64)
    if len(rows) * settings.length > MOST_TOKENS:
        raise ParameterError(
            f"text.length: {settings.length} given for {len(rows):,} texts, allowed: up to {MOST_TOKENS // len(rows)}, "
            f"{MOST_TOKENS:,} tokens in all"
        )
    tokens = np.full((len(rows), settings.length), _END, np.int32)
    for place, (_, numbers, _) in enumerate(rows):
        tokens[place, : len(numbers)] = numbers
    train = arrange({"train": labels}, split, classes)["train"][1]
    vocabulary = vocabulary_of(list(found), tokens[train], settings)
    id_of = {word: token for token, word in enumerate(vocabulary)}
    ids = np.array([id_of.get(word, UNKNOWN) for word in found] + [PAD], np.int64)

    def read(wanted: Rows) -> Iterator[tuple[str, int, bytes | Images | str]]:
        for part, part_rows in wanted.items():
            for row in part_rows:
                # The end of a text, -1, is the last of the ids, the padding.
                yield part, int(row), as_images(ids[tokens[row]][None])[0]

    names = {"train": [f"line {line}" for line, _, _ in rows]}
    about = {"name": "text", "source": shown(path.name), "licence": "", "vocabulary": list(vocabulary)}
    return Source(classes, {"train": labels}, names, read, about, problems if skip else [])


def vocabulary_of(found: Sequence[str], tokens: NDArray[np.int32], settings: TextSettings) -> tuple[str, ...]:
    """The words by id: `SPECIAL`, then the most frequent ones, equally frequent ones by the alphabet, and `settings.words`.

    Args:
        found: words by the numbers in `tokens`.
        tokens: numbers of the words of the training part, int32 [n, length], -1 where a text has ended.
        settings: the most words, and those that are there in any case.
    """
    counts = np.bincount(tokens[tokens != _END], minlength=len(found))
    always = sorted(set(settings.words))
    room = settings.vocabulary - len(SPECIAL) - len(always)
    known = set(always)
    seen = [
        (-int(count), word)
        for word, count in zip(found, counts, strict=True)
        if count and word not in known and len(word) <= LONGEST_WORD
    ]
    return (*SPECIAL, *(word for _, word in sorted(seen)[:room]), *always)


def _rows(path: Path, where: str, found: dict[str, int], length: int) -> tuple[list[_Row], list[tuple[str, str]]]:
    """The texts that can be used, and name and reason of each that cannot.

    Args:
        path: the file.
        where: its name for messages.
        found: number of each word, to which new ones are added.
        length: tokens of a text that are kept.
    """
    reader = csv.reader(io.StringIO(_content(path, where), newline=""), strict=True)
    rows, problems = list[_Row](), list[tuple[str, str]]()
    try:
        header = next(reader, [])
        for name in COLUMNS:
            if header.count(name) != 1:
                columns = ", ".join(map(cut, map(shown, header[:20]))) or "none"
                raise ParameterError(
                    f"{where}: columns {columns} found, allowed: a first line with {' and '.join(COLUMNS)}, each once"
                )
        text_at, label_at = (header.index(name) for name in COLUMNS)
        line = reader.line_num + 1
        for row in reader:
            # A record may be longer than a line; an empty line is none.
            first, line = line, reader.line_num + 1
            if not row:
                continue
            if len(row) != len(header):
                raise ParameterError(f"{where}: line {first}: {len(row)} cells found, allowed: {len(header)}")
            if len(rows) + len(problems) >= MOST_TEXTS:
                raise ParameterError(f"{where}: more than {MOST_TEXTS:,} texts found, allowed: fewer")
            text, label = row[text_at], shown(row[label_at].strip())
            tokens = tokens_of(text) if len(text) <= MOST_CHARACTERS else []
            if why := _problem(text, tokens, label):
                problems.append((f"line {first}", why))
            else:
                # As numbers: a word that stands in a million texts is kept once.
                numbers = [found.setdefault(word, len(found)) for word in tokens[:length]]
                rows.append((first, np.array(numbers, np.int32), label))
    except csv.Error as error:
        raise ParameterError(f"{where}: line {reader.line_num}: not readable as CSV ({error})") from None
    if not rows and not problems:
        raise ParameterError(f"{where}: no text found, allowed: a line for each below the names of the columns")
    return rows, problems


def _content(path: Path, where: str) -> str:
    with open_file(path) as file:
        content = file.read(MAX_FILE_BYTES + 1)
    if why := size_problem(len(content)):
        raise ParameterError(f"{where}: {why}")
    try:
        # With or without the mark at the start that spreadsheets write.
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ParameterError(
            f"{where}: not UTF-8: byte 0x{content[error.start]:02x} at {error.start}, allowed: a file saved as UTF-8"
        ) from None


def _problem(text: str, tokens: list[str], label: str) -> str:
    """Why a text cannot be used; "" where it can."""
    if len(text) > MOST_CHARACTERS:
        return f"{len(text):,} characters"
    if not tokens:
        return "no word"
    if not label:
        return "no label"
    return f"a label of {len(label):,} characters" if len(label) > LONGEST_LABEL else ""


def _classes(labels: set[str], where: str) -> tuple[str, ...]:
    """The classes in the order of their numbers where all are whole ones, else by the alphabet."""
    found = sorted(labels)
    if not 2 <= len(found) <= MOST_CLASSES:
        raise ParameterError(
            f"{where}: {len(found)} classes found ({listed(found)}), allowed: 2 to {MOST_CLASSES:,} in the column label"
        )
    if all(name.isascii() and name.isdecimal() and len(name) < 10 for name in found):
        found.sort(key=int)
    return tuple(found)
