"""Score every training sample with one detector: `python stages/detect.py cd`."""

from __future__ import annotations

import sys
from pathlib import Path

from common import BACKDOORED, BASE, POISONED, SCORES, load_params, method_arguments, run_stage, seed_of
from unpoison import models
from unpoison.data.scores import save_scores
from unpoison.data.store import open_poisoned, open_split
from unpoison.detection import DETECTORS


def main(method: str) -> list[Path]:
    params = load_params()
    seed, arguments = seed_of(params), method_arguments(params, "detect", method, DETECTORS)
    data, reserve = open_poisoned(BASE, POISONED), open_split(BASE, "reserve")
    scores = DETECTORS[method](models.load(BACKDOORED), data, reserve, seed=seed, **arguments)
    save_scores(scores, SCORES / method, method=method, parameters=arguments)
    print(f"detect@{method}: {len(data)} samples, {scores.forward_passes:g} forward passes each", flush=True)
    return [SCORES / method]


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    run_stage(f"detect@{name}", lambda: main(name))
