"""Score the set with canaries by every detector in use: `python stages/detect_canary.py 0`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from common import BASE, say

import numpy as np

from canary import CALIBRATION, MODELS, PLANTED, TRUTH, open_planted, run_of_round
from detect import settings
from parameters import FAMILIES, load_params, methods_of, own_parameters, seed_of
from unpoison import models
from unpoison.compute.inference import features_of
from unpoison.core.content_store import ContentStore
from unpoison.core.errors import file_of, keys_of
from unpoison.core.files import new_folder
from unpoison.core.manifest import check_made_from
from unpoison.core.seeding import derive
from unpoison.data.features import Features
from unpoison.data.scores import save_scores
from unpoison.data.store import open_split
from unpoison.detection import DETECTORS
from unpoison.detection.detector import Suspect
from unpoison.detection.sample import draw_sample


def main(number: int) -> list[Path]:
    params = load_params()
    seed, data, reserve = derive(seed_of(params), "canary", number), open_planted(number), open_split(BASE, "reserve")
    check_made_from(MODELS / str(number), models.DESCRIPTION, canaries=data.digest)
    model = models.load(MODELS / str(number), data)
    made_from = {"canaries": data.digest, "model": models.digest_of(MODELS / str(number))}
    # A reserve of no images has no batch to say how wide the arrays are.
    none = Features(np.zeros((0, len(data.classes)), np.float32), np.zeros((0, model.head.in_features), np.float32))
    suspect = Suspect(
        model=model,
        data=data,
        features=features_of(model, data),
        reserve=reserve,
        reserve_features=features_of(model, reserve) if len(reserve) else none,
        store=ContentStore(None),
        made_from=made_from,
    )
    count, index = len(data), None
    if (wanted := settings(params).sample) is not None:
        index = draw_sample(data.labels, wanted, seed=seed)
        suspect = suspect.subset(index)
    with new_folder(CALIBRATION / str(number)) as staging:
        for method in methods_of(params, "detect", DETECTORS):
            detector = DETECTORS[method]
            arguments = own_parameters(params, "detectors", method, detector.parameters)
            with file_of(FAMILIES["detectors"]), keys_of(method):
                scores = detector.score(suspect, seed=seed, **arguments)
            scores = scores if index is None else scores.within(index)
            save_scores(scores, staging / method, method=method, parameters=arguments, made_from=made_from, count=count)
            say(f"detect_canary@{number}: {method} scored {len(suspect.data)} samples")
        # Beside the scores, so that who reads them knows which are of canaries.
        shutil.copytree(PLANTED / str(number) / TRUTH, staging / TRUTH)
    return [CALIBRATION / str(number)]


if __name__ == "__main__":
    run_of_round("detect_canary", main)
