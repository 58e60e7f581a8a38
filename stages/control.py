"""The control of an attack: the victim's network trained on the clean set. What that answers to the trigger is no backdoor."""

from __future__ import annotations

from common import CHECKED

from unpoison.core.errors import file_of
from unpoison.core.files import read_json
from unpoison.core.manifest import typed

WITHOUT = CHECKED / "control.json"
"""Why a run is without a control, by `check_params`: `train_clean` depends on that and not on the attack."""


def why_without() -> str | None:
    """Why this run has no control; None where it has one."""
    about = read_json(WITHOUT)
    with file_of(WITHOUT):
        return typed("because", about.get("because", ""), str | None)
