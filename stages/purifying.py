"""What the two stages of purification share: which methods a run has, what they build on, and how a purified model is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import BACKDOORED, BASE, PURIFIED

from by_artefact import artefacts_of, plain_methods
from parameters import FAMILIES, Params, own_parameters, seed_of
from unpoison import models
from unpoison.compute.device import machine
from unpoison.compute.passes import countable, counted_passes
from unpoison.core.errors import UserError, file_of, keys_of
from unpoison.data.store import open_split
from unpoison.purification import PURIFIERS

BY_RESERVE = {name: method for name, method in PURIFIERS.items() if method.by is None}
"""Purifiers that need the reserve and nothing else: `purify.methods`."""
BY_ARTEFACT = {name: method for name, method in PURIFIERS.items() if method.by is not None}
"""Purifiers that build on scores or on a verdict as well: `purify.by`."""


def purified_of(params: Params) -> list[str]:
    """The purifiers of a run, by which its purified models are called."""
    return [*plain_methods(params, "purify", PURIFIERS), *artefacts_of(params, "purify", BY_ARTEFACT)]


def purify_with(stage: str, params: Params, *by: Any, made_from: Mapping[str, str] | None = None) -> list[Path]:
    """Purify the backdoored model and write the new one.

    Args:
        stage: the stage's name as in `dvc.yaml` (`purify@fst`), which ends in the method's.
        params: all parameters.
        by: what the method builds on besides the reserve.
        made_from: digest by name of that.
    """
    method = stage.partition("@")[2]
    purifier = PURIFIERS[method]
    seed, arguments = seed_of(params), own_parameters(params, "purifiers", method, purifier.parameters)
    reserve = open_split(BASE, "reserve")
    if len(reserve) < purifier.needs_trusted:
        raise UserError(
            f"{BASE}/reserve: {len(reserve)} trusted images, allowed: at least {purifier.needs_trusted}, {method} needs them; "
            "raise data.reserve"
        )
    with file_of(FAMILIES["purifiers"]), keys_of(method):
        backdoored = models.load(BACKDOORED, reserve)
        with counted_passes() as passes:
            purified = purifier.purify(backdoored, reserve, *by, seed=seed, **arguments)
    models.save(
        purified,
        PURIFIED / method,
        classes=reserve.classes,
        made_by={
            "stage": stage,
            "seed": seed,
            "parameters": arguments,
            "passes": asdict(passes) if countable(backdoored) else None,
            "machine": machine(),
        },
        made_from={"backdoored": models.digest_of(BACKDOORED), "base": reserve.digest, **(made_from or {})},
    )
    return [PURIFIED / method]
