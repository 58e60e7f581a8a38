"""Features: what the network gives, the same from disk as from memory, damage refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from planted import Planted
from unpoison.compute.inference import BATCH, features_of, passes
from unpoison.core.errors import UserError
from unpoison.core.files import read_json, write_json
from unpoison.data.features import Features, MappedRows, read_features, write_features
from unpoison.data.imageset import ImageSet
from unpoison.detection import ac, ss
from unpoison.detection.detector import Suspect

MADE_FROM = {"model": "m", "data": "d"}


@pytest.fixture(scope="module")
def data(planted: Planted) -> ImageSet:
    """Two batches, the second a small one."""
    return planted.data.subset(np.arange(BATCH + 44))


@pytest.fixture
def folder(planted: Planted, data: ImageSet, tmp_path: Path) -> Path:
    write_features(tmp_path / "features", passes(planted.model, data), len(data), MADE_FROM)
    return tmp_path / "features"


def test_they_are_what_the_network_gives(planted: Planted, data: ImageSet) -> None:
    features = features_of(planted.model, data)
    assert features.logits.dtype == features.penultimate.dtype == np.float32
    images = data.tensor().float() / 255
    with torch.no_grad():
        for got, expected in (
            (features.logits, planted.model(images)),
            (features.penultimate, planted.model.features(images)),
        ):
            assert got.shape == expected.shape
            assert np.abs(got - expected.numpy()).max() < 1e-5 * expected.abs().max()
        # And the head takes the one to the other.
        head = planted.model.head(torch.from_numpy(features.penultimate)).numpy()
    assert np.abs(head - features.logits).max() < 1e-5 * np.abs(head).max()


def test_disk_gives_what_memory_gives(planted: Planted, data: ImageSet, folder: Path) -> None:
    memory, disk = features_of(planted.model, data), read_features(folder)
    assert read_json(folder / "features.json")["made_from"] == MADE_FROM
    index = np.array([299, 0, 256, 255, 256])
    for kept, whole in ((disk.logits, memory.logits), (disk.penultimate, memory.penultimate)):
        assert isinstance(kept, MappedRows)
        assert (len(kept), kept.shape) == (len(whole), whole.shape)
        rows = kept[index]
        assert (rows == whole[index]).all()
        rows += 1  # a fresh array: what is written to it is nobody else's
        assert (kept[index] == whole[index]).all()
    assert str(folder) not in Path("/proc/self/maps").read_text()


def test_detectors_score_the_same_from_disk(suspect: Suspect, data: ImageSet, folder: Path) -> None:
    given = replace(suspect, data=data)
    memory, disk = features_of(given.model, data), read_features(folder)
    for detector in (ac, ss):
        one, other = (detector.score(replace(given, features=f)) for f in (memory, disk))
        assert one.values.tobytes() == other.values.tobytes()
        assert one.values.any()


@pytest.mark.parametrize("name", ["logits", "penultimate"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_file_is_refused(name: str, damage: str, folder: Path) -> None:
    path = folder / f"{name}.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content[:-100] if damage == "truncate" else content)
    with pytest.raises(UserError, match=rf"{name}\.npy: (digest mismatch|missing)"):
        read_features(folder)


def test_another_format_is_refused(folder: Path) -> None:
    about = read_json(folder / "features.json")
    write_json(folder / "features.json", {**about, "format": "unpoison-features-0"})
    with pytest.raises(UserError, match="format 'unpoison-features-0' found, allowed: 'unpoison-features-1'"):
        read_features(folder)


def test_fewer_samples_than_announced_leave_nothing(tmp_path: Path) -> None:
    rows = np.zeros((3, 2), np.float32)
    with pytest.raises(ValueError, match="5 samples announced, 3 written"):
        write_features(tmp_path / "features", [(rows, rows)], 5, MADE_FROM)
    assert not list(tmp_path.iterdir())
    write_features(tmp_path / "features", [(rows[:2], rows[:2]), (rows[2:], rows[2:])], 3, MADE_FROM)
    assert isinstance(read_features(tmp_path / "features"), Features)
