"""Purify the backdoored model with one method that builds on scores or on a verdict: `python stages/purify_by.py dbr`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from common import BACKDOORED, BASE, POISONED, PURIFIED, run_stage

from not_applicable import without_set
from parameters import PARAMS, load_params
from purifying import BY_ARTEFACT, by_artefact, purify_with
from unpoison import models
from unpoison.core.errors import UserError, file_of
from unpoison.core.files import sha256_file
from unpoison.core.hyperparameters import one_of
from unpoison.core.manifest import check_made_from
from unpoison.data import scores as scores_
from unpoison.data import verdicts as verdicts_
from unpoison.data.scores import load_scores
from unpoison.data.store import open_poisoned, open_split
from unpoison.data.verdicts import Verdict, load_verdict
from unpoison.purification.purifier import Scored


def read_scored(folder: Path) -> Scored:
    """A detector's scores with the samples that they are of. Raises UserError where they are not of this run."""
    data = open_poisoned(BASE, POISONED)
    made_from = {"poisoned": data.digest, "backdoored": models.digest_of(BACKDOORED)}
    check_made_from(folder, scores_.DESCRIPTION, **made_from)
    scores = load_scores(folder, method=folder.name, count=len(data))
    return Scored(data=data if scores.index is None else data.subset(scores.index), values=scores.values)


def read_verdict(folder: Path) -> Verdict:
    """An inspector's verdict on the backdoored model. Raises UserError where it is of another model."""
    check_made_from(folder, verdicts_.DESCRIPTION, backdoored=models.digest_of(BACKDOORED))
    return load_verdict(folder, method=folder.name, classes=len(open_split(BASE, "reserve").classes))


def main(method: str) -> list[Path]:
    params = load_params()
    with file_of(PARAMS):
        kind = one_of(method, BY_ARTEFACT, key="purify.by").by
    chosen = by_artefact(params)
    if method not in chosen:
        raise UserError(f"{PARAMS}: purify.by.{method}: missing, allowed: {kind}/NAME")
    if kind == "scores" and without_set(f"purify_by@{method}", PURIFIED / method):
        return [PURIFIED / method]
    folder = Path("data") / chosen[method]
    by: Scored | Verdict
    if kind == "scores":
        by, about = read_scored(folder), scores_.DESCRIPTION
    else:
        by, about = read_verdict(folder), verdicts_.DESCRIPTION
    # The description holds the digests of all files of the artefact.
    return purify_with(f"purify_by@{method}", params, by, made_from={kind: sha256_file(folder / about)})


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    run_stage(f"purify_by@{name}", lambda: main(name))
