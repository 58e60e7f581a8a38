"""One pass of the backdoored model over the training set: the logits and features that several detectors share."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from common import BACKDOORED, BASE, FEATURES, POISONED, run_stage

from unpoison import models
from unpoison.compute.inference import passes
from unpoison.core.manifest import check_made_from
from unpoison.data.features import write_features
from unpoison.data.store import open_poisoned


def main() -> list[Path]:
    data = open_poisoned(BASE, POISONED)
    check_made_from(BACKDOORED, models.DESCRIPTION, poisoned=data.digest)
    model = models.load(BACKDOORED, data)
    made_from = {"poisoned": data.digest, "backdoored": models.digest_of(BACKDOORED)}
    write_features(FEATURES, passes(model, data), len(data), made_from)
    return [FEATURES]


if __name__ == "__main__":
    run_stage("extract", main)
