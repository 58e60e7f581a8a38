"""Where the clients of a federation run: one after another in this process, or as nodes of Flower's simulation.

The environment chooses, never a parameter: the result has the same bytes, and DVC need not make it again.
"""

from __future__ import annotations

import os
from typing import Any

from ..core.errors import UserError
from .clients import ENGINE, Engine, in_turn
from .flower import simulated

ENGINES: dict[str, Engine[Any]] = {"local": in_turn, "flower": simulated}


def engine_of_clients() -> Engine[Any]:
    """The engine that `UNPOISON_FEDERATION` names, `local` without it. Raises UserError for another name."""
    name = os.environ.get(ENGINE) or "local"
    if name not in ENGINES:
        raise UserError(f"{ENGINE}: {name!r} given, allowed: {', '.join(ENGINES)}")
    return ENGINES[name]
