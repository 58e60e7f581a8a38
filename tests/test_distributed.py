"""Two processes that train together (gloo, CPU), as `UNPOISON_PROCESSES` starts them, against one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trained_together import HANDS, train
from unpoison.data.imageset import ImageSet

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def results(splits: dict[str, ImageSet], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What one process has, and the first and the second of two."""
    folder = tmp_path_factory.mktemp("together")
    # An epoch's last batch would be a single image: it joins the one before.
    data = splits["train"].subset(np.arange(2 * 66 + 1))
    np.savez(folder / "data.npz", images=data.base, labels=data.labels)
    path = os.pathsep.join(str(ROOT / name) for name in ("src", "stages"))
    environment = {"PYTHONPATH": path, "UNPOISON_DEVICE": "cpu", "OMP_NUM_THREADS": "1", "UNPOISON_PROCESSES": "2"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "trained_together.py")],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # The first process speaks for all.
    assert done.stdout.count("train_together: wrote result-0-of-2.json") == done.stdout.count("wrote") == 1
    together = [json.loads((folder / f"result-{rank}-of-2.json").read_text()) for rank in (0, 1)]
    return [json.loads(json.dumps(train(data.base, data.labels))), *together]


@pytest.mark.parametrize("kind", ["without", "shaped", *HANDS])
def test_without_batch_norm_two_processes_are_one(kind: str, results: list[dict[str, Any]]) -> None:
    # Of an attack's as well: what it stamps on which sample does not depend on who trains on it.
    alone, first, _ = (result[kind] for result in results)
    assert np.shape(alone["losses"]) == (3, 133)
    assert np.allclose(alone["losses"], first["losses"], atol=2e-3)
    assert [row["loss"] for row in alone["rows"]] == pytest.approx([row["loss"] for row in first["rows"]], abs=1e-4)


def test_with_batch_norm_the_curve_is_the_same_within_noise(results: list[dict[str, Any]]) -> None:
    alone, first, _ = (result["batch norm"] for result in results)
    # Each process normalises by its own half of the batch.
    for one, two in zip(alone["rows"], first["rows"], strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=0.1)
        assert one["lr"] == two["lr"]


def test_all_processes_end_with_the_same_model_and_history(results: list[dict[str, Any]]) -> None:
    alone, first, second = results
    assert first == second
    assert first["batch norm"]["digest"] != alone["batch norm"]["digest"]
