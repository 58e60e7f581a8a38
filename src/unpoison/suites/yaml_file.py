"""YAML of a suite or of a commit's parameters, read within limits: a small text may stand for an endless one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, ScalarEvent

from ..core.errors import UserError
from ..reporting.escaping import JOINERS, visible

LARGEST = 1 << 17
"""Bytes of a file; the largest suite here has a tenth of it."""
DEEPEST = 20
LONGEST = 1 << 20
"""Characters and values, with every alias replaced by what it stands for."""


def read_yaml(text: str | bytes, shown: str) -> dict[str, Any]:
    """A YAML 1.2 text of keys, as DVC reads it; `shown` is the file's name for messages.

    Raises:
        UserError: a text that is no YAML, no block of keys, past a limit, or with characters that no reader shows.
    """
    if len(text) > LARGEST:
        raise UserError(f"{shown}: longer than {LARGEST} bytes, allowed: up to that")
    try:
        _check_extent(text)
        values = YAML(typ="safe", pure=True).load(text)
        _check_texts(values)
    # Besides its own errors the parser lets those of Python's numbers, dates and encodings through, and some of its bugs.
    except Exception as error:
        raise UserError(f"{shown}: not readable as YAML ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{shown}: a {type(values).__name__} found, allowed: a block of keys")
    return values


def _check_extent(text: str | bytes) -> None:
    """Raises ValueError where the text has more levels or, with its aliases replaced, more values than a suite needs.

    Looked at before anything is built: nine lists of nine aliases each make a thousand million values, and keys that are
    merged (`<<`) are copied for every alias.
    """
    extents: dict[str, tuple[int, int]] = {}
    # Of each block that is open: its anchor, its extent so far and its deepest level below.
    blocks: list[tuple[str | None, int, int]] = []
    for event in YAML(typ="safe", pure=True).parse(text):
        if isinstance(event, CollectionStartEvent):
            blocks.append((event.anchor, 1, 0))
            extent, depth = 0, 0
        elif isinstance(event, CollectionEndEvent):
            anchor, extent, depth = blocks.pop()
            depth += 1
            if anchor:
                extents[anchor] = extent, depth
        elif isinstance(event, AliasEvent):
            if event.anchor not in extents:
                raise ValueError(f"*{event.anchor} stands for no value that ends before it")
            extent, depth = extents[event.anchor]
        elif isinstance(event, ScalarEvent):
            extent, depth = 1 + len(event.value), 0
            if event.anchor:
                extents[event.anchor] = extent, depth
        else:
            continue
        if blocks:
            anchor, before, deepest = blocks[-1]
            blocks[-1] = anchor, before + extent, max(deepest, depth)
            if before + extent > LONGEST:
                raise ValueError(f"aliases that stand for more than {LONGEST} characters")
        if len(blocks) + depth > DEEPEST:
            raise ValueError(f"blocks in blocks, allowed: {DEEPEST} levels")


def _check_texts(value: Any) -> None:
    """Raises ValueError for a text, a key among them, with characters that do something instead of being seen."""
    if isinstance(value, str):
        if visible(value, keep="\n\t" + JOINERS) != value:
            raise ValueError(f"{value[:80]!r} found, allowed: text without control characters")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _check_texts(key)
            _check_texts(item)
    elif isinstance(value, list):
        for item in value:
            _check_texts(item)
