"""A trusted reserve out of another folder or archive than the base data set's own: out of distribution."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..core.arrays import Images
from ..core.errors import ParameterError
from .folder import open_folder
from .names import listed, path_shown, shown
from .source import Rows, Source

PART = "reserve"


def open_reserve(path: Path, classes: Sequence[str]) -> Source:
    """The images of known classes in a folder or archive, as a source that has a `reserve` part alone.

    They are those of its `reserve` part, or else of its training part, which is all where the top folders are classes.
    Images of other classes are left out, with a note. Labels are the base's, and names begin with the name of `path`.

    Args:
        path: the folder or archive.
        classes: class names of the base data set, in the order of its labels.

    Raises:
        UserError: what `open_folder` refuses; a class of the base without an image.
    """
    with _about_reserve(path):
        other = open_folder(path)
    part = PART if PART in other.labels else "train"
    held = {other.classes[number] for number in np.unique(other.labels[part])}
    if missing := [name for name in classes if name not in held]:
        raise ParameterError(
            f"reserve_path: {path_shown(path)}: no image of {len(missing)} of {len(classes)} classes ({listed(missing)}); "
            f"found: {listed(sorted(held))}; allowed: a folder of the same name for each class of the data"
        )
    number_of = {name: number for number, name in enumerate(classes)}
    labels = np.array([number_of.get(name, -1) for name in other.classes], np.int64)[other.labels[part]]
    kept = np.flatnonzero(labels >= 0)
    notes = list(other.notes)
    if extra := sorted(held - set(classes)):
        count = len(labels) - len(kept)
        notes.append(f"the data have no classes {listed(extra)}: {count} images left out of the reserve")

    def read(rows: Rows) -> Iterator[tuple[str, int, bytes | Images | str]]:
        with _about_reserve(path):
            for _, row, content in other.read({part: kept[rows[PART]]}):
                yield PART, int(np.searchsorted(kept, row)), content

    top = shown(path.name)
    return Source(
        tuple(classes),
        {PART: labels[kept]},
        {PART: [f"{top}/{other.names[part][row]}" for row in kept]},
        read,
        other.about,
        [(f"{top}/{name}", problem) for name, problem in other.problems],
        [f"{top}/{name}" for name in other.ignored],
        [f"{top}: {note}" for note in notes],
    )


@contextmanager
def _about_reserve(path: Path) -> Iterator[None]:
    """Put the right key in front of what the reader of folders says, which knows its own arguments alone."""
    try:
        yield
    except ParameterError as error:
        said = str(error)
        own = said.startswith("path: ")
        raise ParameterError(f"reserve_{said}" if own else f"reserve_path: {path_shown(path)}: {said}") from None
