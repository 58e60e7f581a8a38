"""Methods that build on scores or on a verdict: which ones `FAMILY.by` in `params.yaml` names, and what they are handed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import BACKDOORED, BASE, POISONED

from parameters import PARAMS, Params, methods_of, section
from unpoison import models
from unpoison.core.errors import UserError, file_of
from unpoison.core.hyperparameters import one_of
from unpoison.core.manifest import check_made_from
from unpoison.data import scores as scores_
from unpoison.data import verdicts as verdicts_
from unpoison.data.scores import Scored, load_scores
from unpoison.data.store import open_poisoned, open_split
from unpoison.data.verdicts import Verdict, load_verdict

DESCRIPTIONS = {"scores": scores_.DESCRIPTION, "verdicts": verdicts_.DESCRIPTION}
"""The file that describes an artefact, by kind: it holds the digests of all others."""


def plain_methods(params: Params, family: str, methods: Mapping[str, Any]) -> list[str]:
    """The list `FAMILY.methods`. Raises UserError where one of them builds on an artefact."""
    chosen = methods_of(params, family, methods)
    for name in chosen:
        if (kind := methods[name].by) is not None:
            raise UserError(
                f"{PARAMS}: {family}.methods: {name!r} given, which builds on {kind}; allowed: {family}.by.{name}: {kind}/NAME"
            )
    return chosen


def artefacts_of(params: Params, family: str, methods: Mapping[str, Any]) -> dict[str, str]:
    """The mapping `FAMILY.by`: a method to the artefact that it builds on, `scores/NAME` or `verdicts/NAME`; it may be empty.

    Args:
        family: `purify` or `robust`.
        methods: those of the family that build on an artefact, each with its kind as `by`.

    Raises:
        UserError: no mapping, a method that builds on nothing, or an artefact of another kind than it needs.
    """
    given = section(params, family).get("by", {})
    if not isinstance(given, Mapping):
        raise UserError(f"{PARAMS}: {family}.by: {given!r} given, allowed: artefacts by method; none: {{}}")
    for name, artefact in given.items():
        with file_of(PARAMS):
            kind = one_of(name, methods, key=f"{family}.by").by
        found, _, source = artefact.partition("/") if isinstance(artefact, str) else ("", "", "")
        if found != kind or not source or "/" in source:
            raise UserError(f"{PARAMS}: {family}.by.{name}: {artefact!r} given, allowed: {kind}/NAME")
    return dict(given)


def artefact_of(params: Params, family: str, methods: Mapping[str, Any], name: str) -> Path:
    """The folder of the artefact that one method builds on. Raises UserError where none is named."""
    with file_of(PARAMS):
        kind = one_of(name, methods, key=f"{family}.by").by
    chosen = artefacts_of(params, family, methods)
    if name not in chosen:
        raise UserError(f"{PARAMS}: {family}.by.{name}: missing, allowed: {kind}/NAME")
    return Path("data") / chosen[name]


def read_scored(folder: Path) -> Scored:
    """A detector's scores with the samples that they are of. Raises UserError where they are not of this run."""
    data = open_poisoned(BASE, POISONED)
    made_from = {"poisoned": data.digest, "backdoored": models.digest_of(BACKDOORED)}
    check_made_from(folder, scores_.DESCRIPTION, **made_from)
    scores = load_scores(folder, method=folder.name, count=len(data))
    scored = data if scores.index is None else data.subset(scores.index)
    return Scored(data=scored, values=scores.values, index=scores.index, flagged=scores.flagged, detector=folder.name)


def read_verdict(folder: Path) -> Verdict:
    """An inspector's verdict on the backdoored model. Raises UserError where it is of another model."""
    check_made_from(folder, verdicts_.DESCRIPTION, backdoored=models.digest_of(BACKDOORED))
    return load_verdict(folder, method=folder.name, classes=len(open_split(BASE, "reserve").classes))
