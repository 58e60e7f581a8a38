"""Which robust methods a run has: of the set as received, `robust.methods`, and by a detector's scores, `robust.by`."""

from __future__ import annotations

from by_artefact import artefacts_of, plain_methods
from parameters import PARAMS, Params, section
from unpoison.core.errors import UserError
from unpoison.robust import ROBUST as METHODS

BY_SET = {name: method for name, method in METHODS.items() if method.by is None}
"""Methods that build on no artefact: `robust.methods`."""
BY_ARTEFACT = {name: method for name, method in METHODS.items() if method.by is not None}
"""Methods that build on scores as well: `robust.by`."""


def robust_of(params: Params) -> list[str]:
    """The robust methods of a run, by which its models are called; that of `distill_student` is not among them."""
    chosen = plain_methods(params, "robust", METHODS)
    for name in chosen:
        check_inputs(name)
    return [*chosen, *artefacts_of(params, "robust", BY_ARTEFACT)]


def check_inputs(name: str) -> None:
    """Raises UserError for a method that trains on what `train_robust` does not depend on: DVC would not know when to run it."""
    if missing := METHODS[name].made_elsewhere:
        raise UserError(
            f"{PARAMS}: robust.methods: {name!r} given, allowed: methods that need no {', '.join(missing)}; this one "
            "has a stage of its own"
        )


def check_private(params: Params, name: str) -> None:
    """Raises UserError for a method whose trainings a private recipe does not account for, where `train.privacy` asks for one."""
    if section(params, "train").get("privacy") is not None and not METHODS[name].private:
        allowed = ", ".join(other for other, method in METHODS.items() if method.private)
        raise UserError(
            f"{PARAMS}: robust: {name!r} given, allowed with train.privacy: {allowed}, as the others train several times, by "
            "losses of their own, or look at the samples otherwise"
        )
