"""The whole pipeline, stage by stage in this process, on folders of images of other sizes than 32 px."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tiny import run_stages, write_params
from unpoison import models
from unpoison.data.store import open_split

COMMON: dict[str, Any] = {
    "data.name": "folder",
    "data.path": "images.tar",
    "params/attacks.yaml:badnets.size": 6,
    "train.epochs": 1,
    "train.batch_size": 8,
    "prior.steps": 2,
    "prior.batch_size": 2,
    "prior.channels": [8, 8],
    "prior.unshuffle": 8,
    "params/variations.yaml:sdedit.steps": 2,
    "distill.train.epochs": 1,
    "params/purifiers.yaml:ft.epochs": 1,
    "params/purifiers.yaml:fst.epochs": 1,
    "params/purifiers.yaml:ft.batch_size": 4,
    "params/purifiers.yaml:fst.batch_size": 4,
    "params/detectors.yaml:cd.steps": 1,
    "params/detectors.yaml:strip.overlays": 2,
    "report.suspects": 3,
}

# Where every pass takes long: a method of each family for those that read the model in the same way.
FEWER: dict[str, Any] = {"purify.methods": ["fst"], "detect.methods": ["cd", "strip"]}


def make_folder(folder: Path, side: int, train: int, test: int) -> Path:
    """Two classes, `left` and `right`, by which half is bright; one file in four is a JPEG of another size."""
    rng = np.random.default_rng(side)
    for part, count in (("train", train), ("test", test)):
        for i in range(count):
            label = ("left", "right")[i % 2]
            image = rng.integers(0, 90, (side, side, 3), dtype=np.uint8)
            image[:, slice(0, side // 2) if i % 2 == 0 else slice(side // 2, side)] += 120
            path = folder / part / label / f"{i:03d}.{'jpg' if i % 4 == 0 else 'png'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).resize((side + 20, side) if i % 4 == 0 else (side, side)).save(path)
    return folder


@pytest.mark.parametrize(
    ("side", "train", "network"),
    [
        (64, 40, {"model.name": "resnet18", "model.width": 8}),
        # Of the networks that are made for this size one that costs a fortieth of a ResNet-18.
        (224, 34, {"model.name": "torchvision:shufflenet_v2_x0_5", "model.width": None, "model.stem": None, **FEWER}),
        # No convolution to whiten with: its patches have 768 values.
        (
            48,
            40,
            {"model.name": "timm:test_vit", "model.width": None, "model.stem": None, "attack.name": "none"}
            | {"train.whiten": False, "distill.train.whiten": False},
        ),
    ],
)
def test_every_stage_at_another_size(
    side: int, train: int, network: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = make_folder(tmp_path / "images", side, train, 8)
    (folder / "train" / "left" / "broken.png").write_bytes(b"no image")
    shutil.make_archive("images", "tar", folder)
    sizes = {"data.image_size": side, "data.reserve": 6, "data.public": 4}
    write_params(tmp_path, {**COMMON, "data.on_error": "skip", **network, **sizes})
    run_stages()
    data = open_split(Path("data/base"), "train")
    assert data.image_size == (side, side)
    assert len(data) == train - 10
    assert open_split(Path("data/variations"), "train").image_size == (side, side)
    purified = [f"purified/{name}" for name in network.get("purify.methods", ["ft", "fst"])]
    for folder in ("backdoored", "student", *purified):
        assert models.load(Path("models") / folder).description["image_size"] == [side, side]
    metrics = json.loads(Path("reports/metrics.json").read_text())
    unknown = network.get("attack.name") == "none"
    detectors = network.get("detect.methods", ["cd", "ac", "ss", "strip"])
    assert set(metrics.get("detection", {})) == (set() if unknown else {*detectors, "fusion"})
    assert ("nothing vouches for them" in Path("reports/summary.md").read_text()) == unknown
    suspects = pd.read_csv("reports/suspects.csv")
    assert set(suspects["sample"]) <= {
        f"train/{x}/{i:03d}.{s}" for x in ("left", "right") for i in range(train) for s in ("jpg", "png")
    }
    for page in (Path("reports/index.html"), Path("reports/summary.md")):
        assert "could not be used and were left out: 1" in page.read_text()
    assert "train/left/" in Path("reports/index.html").read_text()
