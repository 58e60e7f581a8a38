"""YAML of a suite or of a commit's parameters, whose texts can be shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.errors import UserError
from ..core.yaml_file import LARGEST, parse_yaml
from ..reporting.escaping import JOINERS, visible

__all__ = ["LARGEST", "read_yaml"]


def read_yaml(text: str | bytes, shown: str) -> dict[str, Any]:
    """A YAML 1.2 text of keys, as DVC reads it; `shown` is the file's name for messages.

    Raises:
        UserError: a text that is no YAML, no block of keys, past a limit, or with characters that no reader shows.
    """
    values = parse_yaml(text, shown)
    try:
        _check_texts(values)
    except ValueError as error:
        raise UserError(f"{shown}: not readable as YAML ({error})") from None
    return values


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
