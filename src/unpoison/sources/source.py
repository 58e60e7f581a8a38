"""`Source`: what `prepare` reads, whatever it is: a folder, an archive, a published set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..core.arrays import Images, IntArray

Rows = Mapping[str, IntArray]
"""part -> rows of that part, sorted"""
Read = Callable[[Rows], Iterator[tuple[str, int, bytes | Images | str]]]
"""Yields (part, row, the file's bytes or its pixels, or why there is neither) for the rows asked for, in any order."""


@dataclass(frozen=True)
class Source:
    """A labelled collection of images before it is split, decoded and resized.

    Attributes:
        classes: class names, in the order of the labels.
        labels: for each part (`train`, and where the source has them `test`, `reserve`, `public`) int64 [n], -1 where
            unlabelled.
        names: for each part the n names under which a user finds the samples.
        read: gives the images.
        about: what the manifest says (name, source, licence).
        problems: (name, reason) of files that are known to be unusable before any is decoded.
        ignored: names of files that are no samples.
    """

    classes: tuple[str, ...]
    labels: dict[str, IntArray]
    names: dict[str, list[str]]
    read: Read
    about: dict[str, Any]
    problems: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
