"""Purify the backdoored model with one method: `python stages/purify.py fst`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from common import run_stage

from parameters import PARAMS, load_params
from purifying import BY_RESERVE, purify_with
from unpoison.core.errors import file_of
from unpoison.core.hyperparameters import one_of


def main(method: str) -> list[Path]:
    params = load_params()
    with file_of(PARAMS):
        one_of(method, BY_RESERVE, key="purify.methods")
    return purify_with(f"purify@{method}", params)


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    run_stage(f"purify@{name}", lambda: main(name))
