"""Score every training sample with one detector: `python stages/detect.py cd`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from common import BACKDOORED, BASE, FEATURES, POISONED, SCORES, run_stage

from parameters import FAMILIES, PARAMS, load_params, own_parameters, seed_of
from unpoison import models
from unpoison.core.errors import file_of, keys_of
from unpoison.core.hyperparameters import one_of
from unpoison.core.manifest import check_made_from
from unpoison.data import features as features_
from unpoison.data.features import read_features
from unpoison.data.scores import save_scores
from unpoison.data.store import open_poisoned, open_split
from unpoison.detection import DETECTORS


def main(method: str) -> list[Path]:
    params = load_params()
    with file_of(PARAMS):
        detector = one_of(method, DETECTORS, key="detect.methods")
    seed, arguments = seed_of(params), own_parameters(params, "detectors", method, detector.parameters)
    data, reserve = open_poisoned(BASE, POISONED), open_split(BASE, "reserve")
    made_from = {"poisoned": data.digest, "backdoored": models.digest_of(BACKDOORED)}
    check_made_from(BACKDOORED, models.DESCRIPTION, poisoned=data.digest)
    check_made_from(FEATURES, features_.DESCRIPTION, **made_from)
    model, features = models.load(BACKDOORED, data), read_features(FEATURES)
    with file_of(FAMILIES["detectors"]), keys_of(method):
        scores = detector.score(model, data, reserve, features, seed=seed, **arguments)
    save_scores(scores, SCORES / method, method=method, parameters=arguments, made_from=made_from)
    print(f"detect@{method}: {len(data)} samples, {scores.forward_passes:g} forward passes each", flush=True)
    return [SCORES / method]


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    run_stage(f"detect@{name}", lambda: main(name))
