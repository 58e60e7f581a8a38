"""One pass of the backdoored model over the training set and the reserve: logits and features that detectors share."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from common import BACKDOORED, BASE, FEATURES, POISONED, run_stage

import numpy as np

from unpoison import models
from unpoison.compute.inference import passes
from unpoison.core.manifest import check_made_from
from unpoison.data.features import write_features
from unpoison.data.store import open_poisoned, open_split


def main() -> list[Path]:
    data = open_poisoned(BASE, POISONED)
    check_made_from(BACKDOORED, models.DESCRIPTION, poisoned=data.digest)
    model = models.load(BACKDOORED, data)
    made_from = {"poisoned": data.digest, "backdoored": models.digest_of(BACKDOORED)}
    for name, images in (("training", data), ("reserve", open_split(BASE, "reserve"))):
        # A reserve of no images has no batch to say how wide the arrays are.
        none = np.zeros((0, len(data.classes)), np.float32), np.zeros((0, model.head.in_features), np.float32)
        batches = passes(model, images, what=f"{name} features") if len(images) else [none]
        write_features(FEATURES / name, batches, len(images), made_from)
    return [FEATURES / "training", FEATURES / "reserve"]


if __name__ == "__main__":
    run_stage("extract", main)
