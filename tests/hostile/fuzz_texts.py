"""Readers of tables as text: labelled texts, and attributes of samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hostile.fuzz import Reader
from unpoison.data.texts import SPECIAL
from unpoison.sources.attributes import read_table
from unpoison.sources.splits import SplitSettings
from unpoison.sources.texts import TextSettings, open_texts

LENGTH, VOCABULARY = 8, 32
SAMPLES = 20
TEXTS = "text,label\n" + "".join(
    f'"a film, the {number}th of ""{number % 3}"", well made",{("bad", "good")[number % 2]}\n'
    for number in range(SAMPLES)
)
ATTRIBUTES = "sample,young,smiling\n" + "".join(
    f"{number:03}.jpg,{number % 2},{number % 3}\n" for number in range(SAMPLES)
)
CELEBA = f"{SAMPLES}\nyoung smiling\n" + "".join(
    f"{number:03}.jpg 1 {-1 + 2 * (number % 2)}\n" for number in range(SAMPLES)
)


def _read_texts(data: bytes, folder: Path) -> Any:
    (folder / "texts.csv").write_bytes(data)
    settings = TextSettings(length=LENGTH, vocabulary=VOCABULARY, words=["cf"])
    source = open_texts(folder / "texts.csv", settings, SplitSettings(reserve=2, public=2), skip=False)
    labels = source.labels["train"]
    samples = [image for _, _, image in source.read({"train": np.arange(len(labels))})]
    return list(source.classes), labels.tolist(), list(source.about["vocabulary"]), samples


def _right_texts(_: Any, found: Any) -> bool:
    # A word may be another, or a line gone, which a table carries no digest against.
    classes, labels, vocabulary, samples = found
    return (
        len(labels) == len(samples)
        and set(labels) == set(range(len(classes)))
        and tuple(vocabulary[: len(SPECIAL)]) == SPECIAL
        and len(set(vocabulary)) == len(vocabulary) <= VOCABULARY
        and all(sample.shape == (1, LENGTH, 2) and sample.dtype == np.uint8 for sample in samples)
        and all(sample.view(np.uint16).max() < len(vocabulary) for sample in samples)
    )


def _read_attributes(data: bytes, folder: Path) -> Any:
    (folder / "attributes.csv").write_bytes(data)
    table = read_table(folder / "attributes.csv")
    return list(table.names), dict(table.rows), table.values


def _right_attributes(_: Any, found: Any) -> bool:
    names, rows, values = found
    places = list(rows.values())
    return values.shape == (len(rows), len(names)) and places == list(range(len(rows))) and bool((values >= 0).all())


READERS = [
    Reader("table-of-texts", lambda: [TEXTS.encode(), TEXTS.replace("\n", "\r\n").encode()], _read_texts, _right_texts),
    Reader("table-of-attributes", lambda: [ATTRIBUTES.encode(), CELEBA.encode()], _read_attributes, _right_attributes),
]
