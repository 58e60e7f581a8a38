"""Readers of JSON files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hostile.fuzz import Reader
from unpoison.core.files import read_json


def _read(data: bytes, folder: Path) -> Any:
    (folder / "value.json").write_bytes(data)
    return read_json(folder / "value.json")


def _right(_: Any, value: Any) -> bool:
    # JSON carries no digest: any object may have been meant.
    return isinstance(value, dict)


READERS = [
    Reader("json", lambda: [json.dumps({"a": [1, 2.5, None, "text"], "b": {"c": True}}).encode()], _read, _right)
]
