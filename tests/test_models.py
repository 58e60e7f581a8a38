"""Networks by name, and checkpoints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from unpoison import models
from unpoison.data.files import read_json, sha256_file, write_json
from unpoison.errors import UserError

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
# One row per network: name, arguments, penultimate features, side of the last feature map at 32 px.
TABLE = [
    ("resnet18", {"width": 8}, 64, 4),
    ("resnet18", {"width": 8, "stem": "conv3_pool"}, 64, 2),
    ("resnet34", {"width": 8}, 64, 4),
]


def small(**changes: object) -> models.Classifier:
    arguments = {"num_classes": 5, "image_size": (32, 32), "width": 8, "seed": 1} | changes
    return models.build("resnet18", **arguments).eval()


def test_table_covers_every_network() -> None:
    assert {row[0] for row in TABLE} == set(models.NETWORKS)


@pytest.mark.parametrize(("name", "arguments", "features", "side"), TABLE)
def test_shapes_one_step_and_a_fresh_process(
    name: str, arguments: dict[str, object], features: int, side: int, tmp_path: Path
) -> None:
    model = models.build(name, num_classes=5, image_size=(32, 32), **arguments)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(IMAGES).square().sum().backward()
    optimizer.step()
    model.eval()
    assert model.feature_map(IMAGES).shape == (2, features, side, side)
    assert model.features(IMAGES).shape == (2, features)
    models.save(model, tmp_path / "m", classes=tuple("abcde"), made_by={})
    torch.manual_seed(0)
    code = (
        "import sys, torch; from unpoison import models; "
        "x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)); "
        "print(models.load(sys.argv[1])(x).tolist())"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m")], capture_output=True, text=True, check=True
    )
    assert torch.allclose(torch.tensor(eval(shown.stdout)), model(IMAGES), atol=1e-6)  # noqa: S307


def test_published_size() -> None:
    model = models.build("resnet18", num_classes=10, image_size=(32, 32))
    assert sum(p.numel() for p in model.parameters()) == 11_173_962


def test_seed_decides_the_weights_and_leaves_the_global_state() -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    same, other = torch.equal(small()(IMAGES), small()(IMAGES)), torch.equal(small()(IMAGES), small(seed=2)(IMAGES))
    assert same
    assert not other
    assert torch.equal(before, torch.random.get_rng_state())


def test_normalisation_is_inside() -> None:
    plain = small(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    normalising = small(mean=(0.2, 0.3, 0.4), std=(0.5, 0.6, 0.7))
    mean, std = torch.tensor([0.2, 0.3, 0.4]).view(1, 3, 1, 1), torch.tensor([0.5, 0.6, 0.7]).view(1, 3, 1, 1)
    assert torch.allclose(normalising(IMAGES), plain((IMAGES - mean) / std), atol=1e-5)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UserError, match=r"model\.name: 'resnet19' given, allowed: resnet18, resnet34"):
        models.build("resnet19", num_classes=2, image_size=(32, 32))
    with pytest.raises(UserError, match=r"model\.widht: unknown key, allowed: width, stem"):
        small(widht=3)


def test_tampered_weights_are_refused(tmp_path: Path) -> None:
    models.save(small(), tmp_path / "m", classes=tuple("abcde"), made_by={})
    path = tmp_path / "m" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"model\.safetensors: digest mismatch"):
        models.load(tmp_path / "m")


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    models.save(small(), tmp_path / "m", classes=tuple("abcde"), made_by={})
    about = read_json(tmp_path / "m" / "model.json")
    about["network"]["arguments"]["width"] = 16
    write_json(tmp_path / "m" / "model.json", about)
    with pytest.raises(UserError, match="weights of another architecture: "):
        models.load(tmp_path / "m")


def test_garbage_with_a_right_digest_is_refused(tmp_path: Path) -> None:
    models.save(small(), tmp_path / "m", classes=tuple("abcde"), made_by={})
    path = tmp_path / "m" / "model.safetensors"
    path.write_bytes(b"\x80\x04garbage that is no safetensors file")
    about = read_json(tmp_path / "m" / "model.json")
    about["files"]["model.safetensors"] = sha256_file(path)
    write_json(tmp_path / "m" / "model.json", about)
    with pytest.raises(UserError, match="not a readable safetensors file"):
        models.load(tmp_path / "m")
