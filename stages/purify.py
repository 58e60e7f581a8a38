"""Purify the backdoored model with one method: `python stages/purify.py fst`."""

from __future__ import annotations

import sys
from pathlib import Path

from common import BACKDOORED, BASE, PURIFIED, load_params, method_arguments, run_stage, seed_of
from unpoison import models
from unpoison.core.errors import UserError
from unpoison.data.store import open_split
from unpoison.purification import PURIFIERS


def main(method: str) -> list[Path]:
    params = load_params()
    seed, arguments = seed_of(params), method_arguments(params, "purify", method, PURIFIERS)
    reserve = open_split(BASE, "reserve")
    if not len(reserve):
        raise UserError(f"{BASE}/reserve: 0 trusted images, allowed: at least 10; raise data.reserve")
    purified = PURIFIERS[method](models.load(BACKDOORED), reserve, seed=seed, **arguments)
    made_by = {"stage": f"purify@{method}", "seed": seed, "parameters": arguments}
    models.save(purified, PURIFIED / method, classes=reserve.classes, made_by=made_by)
    return [PURIFIED / method]


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    run_stage(f"purify@{name}", lambda: main(name))
