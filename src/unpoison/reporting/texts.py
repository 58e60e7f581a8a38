"""The report's samples where they are texts: tables of words in the place of pictures.

Words are foreign text, as names are: they reach the page in cells of tables alone, which escape them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..core.arrays import Images, IntArray
from ..data.texts import written
from ..poisoning.triggered import Triggered
from .page import Page, Table
from .run import Run

LONGEST = 400
"""Characters of a text that are shown."""


def shown(run: Run, images: Images) -> list[str]:
    """Samples uint8 [n, 1, length, 2] in words, their ends left out where they are long."""
    texts = (written(image, run.vocabulary) for image in images)
    return [text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…" for text in texts]


def training_texts(page: Page, run: Run, samples: IntArray) -> None:
    """Texts of the training set as received, and clean where the truth is known."""
    columns = ["sample", "label", "received"]
    received = shown(run, run.data.gather(samples))
    texts: list[Sequence[str]] = [received]
    if run.truth is not None:
        columns.append("clean")
        texts.append(shown(run, np.array(run.data.base[samples])))
    rows = [
        [run.sources[sample], run.data.classes[run.data.labels[sample]], *both]
        for sample, *both in zip(samples.tolist(), *texts, strict=True)
    ]
    page.table(Table(columns, rows, frozenset(range(1, len(columns)))), both=False)


def triggered_texts(page: Page, run: Run, name: str, triggered: Triggered, rows: IntArray) -> None:
    """Test texts of one trigger, with it and without."""
    page.text(f"{name}: test texts that ASR counts", both=False)
    stamped = shown(run, triggered.overlay.images[rows])
    clean = shown(run, triggered.test.gather(triggered.overlay.index[rows]))
    wanted = [run.data.classes[label] for label in triggered.overlay.labels[rows]]
    table = Table(
        ("wanted", "with the trigger", "clean"), list(zip(wanted, stamped, clean, strict=True)), frozenset({1, 2})
    )
    page.table(table, both=False)


def suspect_texts(page: Page, run: Run, samples: IntArray) -> None:
    """The most suspicious texts of a detector, in order."""
    rows = []
    for sample, text in zip(samples.tolist(), shown(run, run.data.gather(samples)), strict=True):
        marked = run.poisoned is not None and bool(run.poisoned[sample])
        label = f"{run.data.classes[run.data.labels[sample]]}{', poisoned' if marked else ''}"
        rows.append([run.sources[sample], label, text])
    page.table(Table(("sample", "label", "text"), rows, frozenset({1, 2})), both=False)
