"""YAML within limits: a small text may stand for an endless one."""

from __future__ import annotations

from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, ScalarEvent

from .errors import UserError

LARGEST = 1 << 17
"""Bytes of a file; the largest one here has a fifth of it."""
DEEPEST = 20
LONGEST = 1 << 20
"""Characters and values, with every alias replaced by what it stands for."""


def parse_yaml(text: str | bytes, shown: str) -> dict[str, Any]:
    """A YAML 1.2 text of keys, as DVC reads it; `shown` is the file's name for messages.

    Raises:
        UserError: a text that is no YAML, no block of keys, or past a limit.
    """
    if len(text) > LARGEST:
        raise UserError(f"{shown}: longer than {LARGEST} bytes, allowed: up to that")
    try:
        # DVC reads UTF-8 alone; left to itself the parser would take UTF-16 as well.
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        _check_extent(text)
        values = YAML(typ="safe", pure=True).load(text)
    # Besides its own errors the parser lets those of Python's numbers, dates and encodings through, and some of its bugs.
    except Exception as error:
        raise UserError(f"{shown}: not readable as YAML ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{shown}: a {type(values).__name__} found, allowed: a block of keys")
    return values


def _check_extent(text: str | bytes) -> None:
    """Raises ValueError where the text has more levels or, with its aliases replaced, more values than a file of settings needs.

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
