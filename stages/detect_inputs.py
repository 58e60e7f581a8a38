"""Score test inputs, clean and triggered, with one detector of single inputs: `python stages/detect_inputs.py strip`.

What a service would see at test time: images without labels. Which of them carry a trigger is for `evaluate` to know.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from common import BACKDOORED, BASE, FEATURES, INPUT_SCORES, TRIGGERED, run_stage

import numpy as np

from detect import settings
from parameters import FAMILIES, PARAMS, load_params, own_parameters, seed_of
from unpoison import models
from unpoison.compute.inference import features_of
from unpoison.core.arrays import IntArray
from unpoison.core.errors import file_of, keys_of
from unpoison.core.hyperparameters import one_of
from unpoison.core.manifest import check_made_from, made_from_of
from unpoison.core.seeding import numpy_rng
from unpoison.data import features as features_
from unpoison.data.features import read_features
from unpoison.data.imageset import ImageSet
from unpoison.data.scores import save_scores
from unpoison.data.store import open_split
from unpoison.detection import INPUT_DETECTORS
from unpoison.detection.detector import Suspect
from unpoison.poisoning import triggered as triggered_
from unpoison.poisoning.triggered import read_triggered


def inputs_of(test: ImageSet, triggered: dict[str, triggered_.Triggered]) -> tuple[ImageSet, IntArray]:
    """All clean test images, then those of each trigger, without labels (all 0); and how many are clean and of each."""
    images = [test.gather(np.arange(len(test)))]
    images += [part.overlay.images[np.arange(len(part))] for part in triggered.values() if len(part)]
    counts = np.array([len(part) for part in images])
    return ImageSet(np.concatenate(images), np.zeros(counts.sum(), np.int64), test.classes), counts


def main(method: str) -> list[Path]:
    params = load_params()
    with file_of(PARAMS):
        detector = one_of(method, INPUT_DETECTORS, key="detect.inputs")
    seed, arguments = seed_of(params), own_parameters(params, "detectors", method, detector.parameters)
    made_from = made_from_of(TRIGGERED, triggered_.DESCRIPTION) | {"backdoored": models.digest_of(BACKDOORED)}
    check_made_from(BACKDOORED, models.DESCRIPTION, poisoned=made_from["poisoned"])
    check_made_from(FEATURES / "reserve", features_.DESCRIPTION, **made_from)
    model, test, reserve = models.load(BACKDOORED), open_split(BASE, "test"), open_split(BASE, "reserve")
    data, _ = inputs_of(test, read_triggered(TRIGGERED, BASE))
    count, index, wanted = len(data), None, settings(params).sample
    if wanted is not None and wanted < count:
        index = np.sort(numpy_rng(seed, "detect_inputs/sample").permutation(count)[:wanted])
        data = data.subset(index)
    suspect = Suspect(
        model=model,
        data=data,
        features=features_of(model, data, what=f"logits for {method}"),
        reserve=reserve,
        reserve_features=read_features(FEATURES / "reserve"),
    )
    with file_of(FAMILIES["detectors"]), keys_of(method):
        scores = detector.score(suspect, seed=seed, **arguments)
    scores = scores if index is None else scores.within(index)
    save_scores(scores, INPUT_SCORES / method, method=method, parameters=arguments, made_from=made_from, count=count)
    print(f"detect_inputs@{method}: {len(data)} of {count} images, {scores.forward_passes:g} passes each", flush=True)
    return [INPUT_SCORES / method]


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    run_stage(f"detect_inputs@{name}", lambda: main(name))
