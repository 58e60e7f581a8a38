"""No attack: data of unknown origin. Nothing is stamped, and no truth is known."""

from __future__ import annotations

from dataclasses import dataclass

from ..crafting.attack import Plan


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """No parameters."""


# No intent: there is no trigger to make and no sample to choose, and the data are passed on unchanged.
ATTACK = Plan(parameters=Parameters, intents=lambda attacks, policy, own, sections: [])
