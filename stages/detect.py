"""Score the training samples, or a sample of them, with one detector: `python stages/detect.py cd`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from common import BACKDOORED, BASE, FEATURES, POISONED, SCORES, SCRATCH, run_stage

from not_applicable import without_set
from parameters import FAMILIES, PARAMS, Params, checked, load_params, own_parameters, seed_of
from unpoison import models
from unpoison.compute.distributed import world
from unpoison.compute.engines import engine
from unpoison.core.content_store import ContentStore
from unpoison.core.errors import UserError, file_of, keys_of
from unpoison.core.hyperparameters import Count, Whole, one_of
from unpoison.core.manifest import check_made_from
from unpoison.data import features as features_
from unpoison.data.features import read_features
from unpoison.data.scores import save_scores
from unpoison.data.store import open_poisoned, open_split
from unpoison.detection import DETECTORS, INPUT_DETECTORS
from unpoison.detection.detector import Suspect
from unpoison.detection.sample import check_sample, draw_sample
from unpoison.inspection import INSPECTORS


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The section `detect`, but for its list of methods.

    Attributes:
        sample: number of training samples that are scored, drawn with the classes' shares, and the most test inputs; null:
            all.
        inputs: detectors that score test inputs as well.
        models: inspectors that look at the model itself, class by class.
        canary: rounds of canaries by number; each plants other samples and trains once more.
    """

    sample: Count | None = None
    inputs: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    canary: list[Whole] = field(default_factory=list)


def settings(params: Params) -> Settings:
    wanted = Settings(**checked(params, "detect", Settings, without=("methods",)))
    for key, given, known in (("inputs", wanted.inputs, INPUT_DETECTORS), ("models", wanted.models, INSPECTORS)):
        if len(set(given)) != len(given) or not set(given) <= set(known):
            raise UserError(f"{PARAMS}: detect.{key}: {given!r} given, allowed: a list out of {', '.join(known)}")
    if len(set(wanted.canary)) != len(wanted.canary):
        raise UserError(f"{PARAMS}: detect.canary: {wanted.canary!r} given, allowed: whole numbers, each once")
    return wanted


def read_suspect(store: ContentStore) -> Suspect:
    """What every detector is handed: the artefacts of this run.

    Args:
        store: where a detector that scores in shards keeps them.

    Raises:
        UserError: an artefact is missing, changed, or not made from the others.
    """
    data = open_poisoned(BASE, POISONED)
    check_made_from(BACKDOORED, models.DESCRIPTION, poisoned=data.digest)
    for split in ("training", "reserve"):
        check_made_from(
            FEATURES / split, features_.DESCRIPTION, poisoned=data.digest, backdoored=models.digest_of(BACKDOORED)
        )
    return Suspect(
        model=models.load(BACKDOORED, data),
        data=data,
        features=read_features(FEATURES / "training"),
        reserve=open_split(BASE, "reserve"),
        reserve_features=read_features(FEATURES / "reserve"),
        store=store,
        made_from={"poisoned": data.digest, "backdoored": models.digest_of(BACKDOORED)},
    )


def main(method: str) -> list[Path]:
    params = load_params()
    with file_of(PARAMS):
        detector = one_of(method, DETECTORS, key="detect.methods")
    wanted = settings(params).sample
    seed, arguments = seed_of(params), own_parameters(params, "detectors", method, detector.parameters)
    if without_set(f"detect@{method}", SCORES / method):
        return [SCORES / method]
    store = ContentStore(SCRATCH / "store", engine(SCRATCH)) if detector.sharded else ContentStore(None)
    suspect = read_suspect(store)
    data, count, index, made_from = suspect.data, len(suspect.data), None, suspect.made_from
    if wanted is not None:
        with file_of(PARAMS), keys_of("detect"):
            check_sample(wanted, most=count, classes=len(data.classes))
        # A detector is handed the sample as a set of its own and knows of no other.
        index = draw_sample(data.labels, wanted, seed=seed)
        suspect = suspect.subset(index)
    with file_of(FAMILIES["detectors"]), keys_of(method):
        scores = detector.score(suspect, seed=seed, **arguments)
    if world().rank:
        return []
    scores = scores if index is None else scores.within(index)
    save_scores(scores, SCORES / method, method=method, parameters=arguments, made_from=made_from, count=count)
    store.forget_parts()
    part = "" if index is None else f" of {count}"
    print(
        f"detect@{method}: {len(suspect.data)}{part} samples, {scores.forward_passes:g} forward passes each", flush=True
    )
    return [SCORES / method]


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    together = name in DETECTORS and DETECTORS[name].sharded
    run_stage(f"detect@{name}", lambda: main(name), together=together)
