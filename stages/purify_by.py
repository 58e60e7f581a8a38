"""Purify the backdoored model with one method that builds on scores or on a verdict: `python stages/purify_by.py dbr`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from common import PURIFIED, run_stage

from by_artefact import DESCRIPTIONS, artefact_of, read_scored, read_verdict
from not_applicable import without_set
from parameters import load_params
from purifying import BY_ARTEFACT, purify_with
from unpoison.core.files import sha256_file
from unpoison.data.scores import Scored
from unpoison.data.verdicts import Verdict


def main(method: str) -> list[Path]:
    params = load_params()
    folder = artefact_of(params, "purify", BY_ARTEFACT, method)
    kind = BY_ARTEFACT[method].by
    assert kind is not None
    if kind == "scores" and without_set(f"purify_by@{method}", PURIFIED / method):
        return [PURIFIED / method]
    by: Scored | Verdict = read_scored(folder) if kind == "scores" else read_verdict(folder)
    made_from: dict[str, str] = {kind: sha256_file(folder / DESCRIPTIONS[kind])}
    return purify_with(f"purify_by@{method}", params, by, made_from=made_from)


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    run_stage(f"purify_by@{name}", lambda: main(name))
