"""The committed network: its backdoor took, and it is what every detector's test takes it for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import planted as plant
from planted import Planted
from unpoison.core.errors import UserError
from unpoison.data.imageset import ImageSet
from unpoison.detection import ac, ss


def test_the_plant_took(planted: Planted) -> None:
    # As committed: 0.840 and 1.000.
    assert planted.acc(planted.model) > 0.75
    assert planted.asr(planted.model) > 0.95
    assert not planted.model.training


def test_the_poison_is_what_detectors_assume(planted: Planted) -> None:
    truth = planted.poisoned.truth
    in_target = planted.data.labels == truth.policy.target
    spectral = ss.ASSUMPTIONS["class"]
    assert spectral is not None
    assert truth.mask.sum() == 44
    assert truth.mask[in_target].mean() < min(ac.ASSUMPTION.least_share, spectral.least_share)
    assert (planted.data.labels != truth.labels).sum() == 44


def test_other_weights_than_those_committed_are_refused(
    splits: dict[str, ImageSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(plant.FOLDER, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    monkeypatch.setattr(plant, "FOLDER", tmp_path / "model")
    with pytest.raises(UserError, match=r"model\.safetensors: digest mismatch"):
        plant.load(splits)
