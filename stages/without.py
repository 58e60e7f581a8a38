"""The branches that a run does without, and why, by `check_params`: stages depend on that and not on all that decides it."""

from __future__ import annotations

from typing import Literal

from common import CHECKED

from unpoison.core.errors import file_of
from unpoison.core.files import read_json
from unpoison.core.manifest import typed

WITHOUT = CHECKED / "without"
Branch = Literal["control", "prior"]
"""The network that is trained on the clean set; the diffusion prior."""


def why_without(branch: Branch) -> str | None:
    """Why this run has no such branch; None where it has it."""
    path = WITHOUT / f"{branch}.json"
    about = read_json(path)
    with file_of(path):
        return typed("because", about.get("because", ""), str | None)
