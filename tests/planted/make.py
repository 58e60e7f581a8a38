"""Train the planted network and write it: `python tests/planted/make.py`, a minute or two on one core.

With `--check` it is trained and compared with the committed one instead. Another machine or version of torch rounds
differently and makes another network, so this is no test: it says whether the committed files come from this script.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import planted
from unpoison import models
from unpoison.compute.device import machine
from unpoison.training.loop import fit
from unpoison.training.recipe import Recipe

NETWORK = {"name": "resnet18", "width": 8, "stem": "conv3_pool"}
RECIPE = Recipe(epochs=40, batch_size=32, lr=0.1, augment=["crop"])


def make(folder: Path) -> None:
    """Train and save in half precision, which is what is loaded ever after and takes half the room."""
    splits = planted.make_splits()
    data = planted.poison(splits["train"]).received(splits["train"])
    model = models.build(**NETWORK, num_classes=len(data.classes), image_size=data.image_size)
    fit(model, data, RECIPE, seed=0, what="planted")
    made_by = {"script": "tests/planted/make.py", "recipe": asdict(RECIPE), "seed": 0, "machine": machine()}
    models.save(model.half(), folder, classes=data.classes, made_by=made_by)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with the committed files and write nothing")
    check = parser.parse_args().check
    torch.set_num_threads(1)  # sums are split between threads, and round differently with their number
    if not check:
        make(planted.FOLDER)
    kept = planted.load(planted.make_splits())
    print(f"ACC {kept.acc(kept.model):.3f}, ASR {kept.asr(kept.model):.3f}, sha256 {models.digest_of(planted.FOLDER)}")
    if not check:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder) / "model")
        made = models.digest_of(Path(folder) / "model")
    same = made == models.digest_of(planted.FOLDER)
    print("the same network is made here" if same else f"another network is made here: sha256 {made}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
