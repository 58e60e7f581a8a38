"""Where the canaries of a round lie, and how they are read."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from common import BASE, check_code, run_stage, say

from parameters import PARAMS
from unpoison.core.errors import UserError
from unpoison.data.imageset import ImageSet
from unpoison.data.store import open_poisoned

PLANTED, MODELS, CALIBRATION = Path("data/canaries"), Path("models/canaries"), Path("data/calibration")
"""The set with canaries and which they are; the model trained on it; what detectors say of it."""
SET, TRUTH = "set", "truth"


def run_of_round(stage: str, main: Callable[[int], list[Path]], *, together: bool = False) -> None:
    """Run a stage for the round that the command line names: `python stages/STAGE.py 0`."""
    given = sys.argv[1] if len(sys.argv) == 2 else ""

    def checked() -> list[Path]:
        if not given.isdecimal():
            say(f"usage: python stages/{stage}.py ROUND")
            raise UserError(f"{PARAMS}: detect.canary: round {given!r} given, allowed: a whole number from 0")
        check_code(stage)
        return main(int(given))

    run_stage(f"{stage}@{given}", checked, together=together)


def open_planted(number: int) -> ImageSet:
    """The training set with the canaries of a round."""
    return open_poisoned(BASE, PLANTED / str(number) / SET)
