"""Two processes that train together (gloo, CPU) against one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
# Trains both networks and, as every process does the same, lets the first one speak.
SCRIPT = """
import hashlib, json, sys
from unpoison import models
from unpoison.sources import digits
from unpoison.data.imageset import ImageSet
from unpoison.training.distributed import world
from unpoison.training.loop import fit
from unpoison.training.recipe import Recipe
images, labels = digits.build({"train": 331})["train"]
data = ImageSet(images, labels, digits.CLASSES)
results = {}
for name, arguments in (("timm:test_vit", {}), ("resnet18", {"width": 8, "stem": "conv3_pool"})):
    model = models.build(name, num_classes=10, image_size=(32, 32), **arguments)
    recipe = Recipe(epochs=3, batch_size=66, lr=0.02, augment=["crop", "flip"])
    history = fit(model, data, recipe, seed=0, what="test")
    digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in model.state_dict().values())).hexdigest()
    results[name] = {"losses": history.losses.tolist(), "rows": history.epochs, "digest": digest}
open(f"{sys.argv[1]}-{world().rank}-of-{world().size}.json", "w").write(json.dumps(results))
"""


def run(folder: Path, *launcher: str) -> None:
    (folder / "train.py").write_text(SCRIPT)
    command = [sys.executable, *launcher, str(folder / "train.py"), str(folder / "result")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "UNPOISON_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("together")
    run(folder)
    run(folder, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    return [json.loads((folder / f"result-{name}.json").read_text()) for name in ("0-of-1", "0-of-2", "1-of-2")]


def test_without_batch_norm_two_processes_are_one(results: list[dict]) -> None:
    alone, first, _ = (result["timm:test_vit"] for result in results)
    assert np.allclose(alone["losses"], first["losses"], atol=2e-3)
    assert alone["rows"][-1]["loss"] == pytest.approx(first["rows"][-1]["loss"], abs=1e-4)


def test_with_batch_norm_the_curve_is_the_same_within_noise(results: list[dict]) -> None:
    alone, first, _ = (result["resnet18"] for result in results)
    # Each process normalises by its own half of the batch.
    for one, two in zip(alone["rows"], first["rows"], strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=0.1)
        assert one["lr"] == two["lr"]


def test_all_processes_end_with_the_same_model_and_history(results: list[dict]) -> None:
    _, first, second = results
    assert first == second
