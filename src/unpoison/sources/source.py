"""`Source`: what `prepare` reads, whatever it is: a folder, an archive, a published set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..core.arrays import Images, IntArray

Rows = Mapping[str, IntArray]
"""Rows by part, sorted."""
Read = Callable[[Rows], Iterator[tuple[str, int, bytes | Images | str]]]
"""For the rows asked for, in any order: part, row, and the file's bytes, its pixels, or why there is neither."""


@dataclass(frozen=True)
class Source:
    """A labelled collection of images before it is split, decoded and resized.

    Attributes:
        classes: class names, in the order of the labels.
        labels: labels by part (`train`, and where the source has them `test`, `reserve`, `public`), int64 [n], -1 where
            unlabelled.
        names: names by part under which a user finds the samples, n each.
        read: reader of the images.
        about: entries for the manifest (name, source, licence).
        problems: name and reason of each file that is known to be unusable before any is decoded.
        ignored: names of files that are no samples.
        notes: lines for the user on what was passed over.
    """

    classes: tuple[str, ...]
    labels: dict[str, IntArray]
    names: dict[str, list[str]]
    read: Read
    about: dict[str, Any]
    problems: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
