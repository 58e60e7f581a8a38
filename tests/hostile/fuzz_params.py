"""Mutated parameter files: whatever is read is a scenario that passes every check, or one line says what is wrong."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import check_params
from hostile.fuzz import Reader
from parameters import FAMILIES, PARAMS, load_params

ROOT = Path(__file__).resolve().parents[2]


def read(data: bytes, folder: Path, name: Path) -> Any:
    """All parameters with one file mutated, read and checked as `check_params` does."""
    for path in (PARAMS, *FAMILIES.values()):
        (folder / path).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / path, folder / path)
    (folder / name).write_bytes(data)
    params = load_params(folder)
    check_params.check_all(params)
    return params


def is_scenario(seed: Any, value: Any) -> bool:
    """Whether a value is right. YAML has no checksum: another scenario that passes all checks cannot be told."""
    return isinstance(value, dict) and set(value) == set(seed)


READERS = [
    Reader(
        "params",
        lambda: [(ROOT / PARAMS).read_bytes()],
        lambda data, folder: read(data, folder, PARAMS),
        is_scenario,
    ),
    Reader(
        "detectors",
        lambda: [(ROOT / FAMILIES["detectors"]).read_bytes()],
        lambda data, folder: read(data, folder, FAMILIES["detectors"]),
        is_scenario,
    ),
]
