"""What is known to end without a result is said before a scan starts, not by a stage that comes after the training."""

from __future__ import annotations

from pathlib import Path

from ..core.errors import UserError
from ..sources.reserve import open_reserve
from ..sources.splits import MOST
from ..workflow import committed
from .rules import Survey, detectors_of, reserve_of


def check(found: Survey, *, trusted: Path | None, canary: bool) -> None:
    """Raises UserError where a scan of this data could not end.

    Args:
        found: what is known of the data.
        trusted: folder or archive of trusted images; None: those that the data give.
        canary: whether canaries are to be planted.
    """
    # Here and not above: torch takes seconds to load, which no error of the command line should wait for.
    from ..detection import DETECTORS
    from .canaries import targets_of

    if trusted is not None:
        key, count = "TRUSTED", len(open_reserve(trusted, found.classes).labels["reserve"])
    else:
        key, count = "DATA", reserve_of(found, None)["data.reserve"] or found.parts["reserve"]
    own = committed("params/detectors.yaml")
    chosen = detectors_of(found.total, found.sample.shape[1])
    least, name = max((DETECTORS[name].needs_trusted(**own.get(name) or {}), name) for name in chosen)
    if min(count, MOST["reserve"]) < least:
        raise UserError(f"{key}: {count} images to compare others with, allowed: at least {least}, {name} needs them")
    if canary:
        targets_of(found.counts, seed=0)
