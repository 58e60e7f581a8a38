"""Inspect the backdoored model with one method, without the training data: `python stages/inspect_model.py mm_bd`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from common import BACKDOORED, BASE, VERDICTS, run_stage, say

from parameters import FAMILIES, PARAMS, load_params, own_parameters, seed_of
from unpoison import models
from unpoison.core.errors import file_of, keys_of
from unpoison.core.hyperparameters import one_of
from unpoison.core.manifest import made_from_of
from unpoison.data.store import open_split
from unpoison.data.verdicts import save_verdict
from unpoison.inspection import INSPECTORS


def main(method: str) -> list[Path]:
    params = load_params()
    with file_of(PARAMS):
        inspector = one_of(method, INSPECTORS, key="detect.models")
    seed, arguments = seed_of(params), own_parameters(params, "detectors", method, inspector.parameters)
    reserve = open_split(BASE, "reserve")
    model = models.load(BACKDOORED, reserve)
    made_from = made_from_of(BACKDOORED, models.DESCRIPTION) | {"backdoored": models.digest_of(BACKDOORED)}
    with file_of(FAMILIES["detectors"]), keys_of(method):
        verdict = inspector.inspect(model, reserve, seed=seed, **arguments)
    save_verdict(verdict, VERDICTS / method, method=method, parameters=arguments, made_from=made_from)
    flagged = [reserve.classes[label] for label in verdict.flagged.nonzero()[0]]
    say(f"inspect_model@{method}: {verdict.forward_passes:g} passes; flagged: {', '.join(flagged) or 'no class'}")
    return [VERDICTS / method]


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    run_stage(f"inspect_model@{name}", lambda: main(name))
