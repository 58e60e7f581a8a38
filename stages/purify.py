"""Purify the backdoored model with one method: `python stages/purify.py fst`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from common import BACKDOORED, BASE, PURIFIED, run_stage

from parameters import FAMILIES, PARAMS, load_params, own_parameters, seed_of
from unpoison import models
from unpoison.compute.device import machine
from unpoison.compute.passes import counted_passes
from unpoison.core.errors import UserError, file_of, keys_of
from unpoison.core.hyperparameters import one_of
from unpoison.data.store import open_split
from unpoison.purification import PURIFIERS


def main(method: str) -> list[Path]:
    params = load_params()
    with file_of(PARAMS):
        purifier = one_of(method, PURIFIERS, key="purify.methods")
    seed, arguments = seed_of(params), own_parameters(params, "purifiers", method, purifier.parameters)
    reserve = open_split(BASE, "reserve")
    if not len(reserve):
        raise UserError(f"{BASE}/reserve: 0 trusted images, allowed: at least 10; raise data.reserve")
    with file_of(FAMILIES["purifiers"]), keys_of(method):
        backdoored = models.load(BACKDOORED, reserve)
        with counted_passes() as passes:
            purified = purifier.purify(backdoored, reserve, seed=seed, **arguments)
    models.save(
        purified,
        PURIFIED / method,
        classes=reserve.classes,
        made_by={
            "stage": f"purify@{method}",
            "seed": seed,
            "parameters": arguments,
            "passes": asdict(passes),
            "machine": machine(),
        },
        made_from={"backdoored": models.digest_of(BACKDOORED), "base": reserve.digest},
    )
    return [PURIFIED / method]


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    run_stage(f"purify@{name}", lambda: main(name))
