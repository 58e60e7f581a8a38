"""Pretrained weights: from a file, from their publishers, and those that are not the network's."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file

from networks import CLASSES, IMAGES, library_features, nothing_drawn, of_library, relative
from unpoison import models
from unpoison.core.errors import UserError


# ImageNet's channel means; 0.5 where torchvision undoes them inside the network, and for timm's own test networks.
@pytest.mark.parametrize(
    ("name", "num_classes", "mean"),
    [
        ("torchvision:shufflenet_v2_x0_5", 5, [0.485, 0.456, 0.406]),
        ("torchvision:mnasnet0_5", 7, [0.485, 0.456, 0.406]),
        ("torchvision:googlenet", 7, [0.5, 0.5, 0.5]),
        ("timm:test_resnet", 7, [0.5, 0.5, 0.5]),
        ("timm:test_vit", 5, [0.5, 0.5, 0.5]),
    ],
)
def test_pretrained_weights_from_a_file(name: str, num_classes: int, mean: list[float], tmp_path: Path) -> None:
    path, network = tmp_path / "weights.safetensors", of_library(name, 32, num_classes)
    weights = {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    save_file(weights, path)
    arguments: dict[str, Any] = {"num_classes": 5, "image_size": (32, 32), "seed": 9}
    model = models.build(name, **arguments, pretrained=str(path)).eval()
    assert model.description["mean"] == mean
    assert "pretrained" not in model.description["arguments"]
    normalised = (IMAGES - model.mean) / model.std
    assert relative(model.features(IMAGES), library_features(network, normalised)) < 1e-4
    # The head comes along only when it is for as many classes.
    if num_classes == 5:
        assert relative(model(IMAGES), network(normalised)) < 1e-4
    untouched = models.build(name, **arguments, mean=(0.1,) * 3, pretrained=str(path))
    assert untouched.description["mean"] == [0.1] * 3
    assert torch.equal(untouched.head.weight, model.head.weight)
    random = models.build(name, **arguments)
    assert torch.equal(random.head.weight, model.head.weight) == (num_classes != 5)
    models.save(model, tmp_path / "m", classes=CLASSES, made_by={})
    path.unlink()
    with nothing_drawn():
        kept = models.load(tmp_path / "m")
    assert relative(kept.features(IMAGES), model.features(IMAGES)) < 1e-4
    assert relative(models.fresh_copy(model, seed=1).eval().features(IMAGES), model.features(IMAGES)) > 0.1


def test_wrong_pretrained_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    other = of_library("timm:test_resnet", 32).state_dict()
    for weights, message in (
        (
            {key: value for key, value in other.items() if key != "conv1.0.weight"},
            "conv1.0.weight is absent, the network",
        ),
        (other | {"bn1.bias": torch.zeros(3)}, r"bn1.bias is \(3,\), the network has \(.*\(1 of"),
        (other | {"more": torch.zeros(3)}, r"more is \(3,\), the network has none"),
        (other | {"fc.weight": torch.zeros(5, 3)}, r"fc.weight is \(5, 3\), the network has \(5, 96\)"),
        (other | {"fc.weight": torch.zeros(7, 3)}, r"fc.weight is \(7, 3\), the network has \(5, 96\)"),
    ):
        save_file(weights, path)
        with pytest.raises(
            UserError, match=f"weights.safetensors: not the weights of timm:test_resnet as built: {message}"
        ):
            models.build("timm:test_resnet", num_classes=5, image_size=(32, 32), pretrained=str(path))
    # What a wrapper of the network leaves in front of the names, whatever it is.
    for prefix in ("module.", "module._orig_mod.", "model.", "anything.else."):
        save_file({f"{prefix}{name}": value for name, value in other.items()}, path)
        with pytest.raises(
            UserError, match=rf"as built: every name begins with '{prefix}', as a wrapper .*; take that off"
        ):
            models.build("timm:test_resnet", num_classes=5, image_size=(32, 32), pretrained=str(path))
    for change, message in (
        (
            {"fc.bias": other["fc.bias"] * float("nan")},
            r"fc\.bias has values that are not finite: made by training that div",
        ),
        ({"fc.bias": other["fc.bias"].double()}, r"fc\.bias is \(5,\) of float64, the network has \(5,\)"),
    ):
        save_file(other | change, path)
        with pytest.raises(UserError, match=message):
            models.build("timm:test_resnet", num_classes=5, image_size=(32, 32), pretrained=str(path))
    path.write_bytes(b"\x80\x04no safetensors")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        models.build("timm:test_resnet", num_classes=5, image_size=(32, 32), pretrained=str(path))


@pytest.mark.parametrize(
    ("name", "where", "tried"),
    [
        (
            "torchvision:resnet18",
            "torchvision.models._api.load_state_dict_from_url",
            "https://download.pytorch.org/models/re",
        ),
        ("timm:test_resnet", "timm.models._builder.load_state_dict_from_hf", "timm's download"),
    ],
)
def test_weights_that_cannot_be_downloaded(name: str, where: str, tried: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr(where, fail)
    with pytest.raises(UserError) as error:
        models.build(name, num_classes=5, image_size=(32, 32), pretrained=True)
    message = str(error.value)
    assert message.startswith(f"{name}: pretrained weights not available: tried {tried}")
    assert "URLError: <urlopen error no network>" in message
    assert message.endswith("give pretrained the path of a .safetensors file with the network's state dict instead")


def test_downloaded_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the publishers' downloads replaced: torchvision's DenseNet files have dots where its modules have none."""
    networks = {name: of_library(name, 32, 1000) for name in ("torchvision:densenet121", "timm:test_resnet")}
    asked: list[dict[str, Any]] = []

    def densenet(url: str, **options: Any) -> dict[str, torch.Tensor]:
        asked.append(options)
        old = {}
        for key, value in networks["torchvision:densenet121"].state_dict().items():
            for part in ("norm", "conv"):
                if "denselayer" in key:
                    key = key.replace(f"{part}1", f"{part}.1").replace(f"{part}2", f"{part}.2")
            old[key] = value
        return old

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", densenet)
    monkeypatch.setattr(
        "timm.models._builder.load_state_dict_from_hf", lambda *_, **__: networks["timm:test_resnet"].state_dict()
    )
    for name, network in networks.items():
        model = models.build(name, num_classes=5, image_size=(32, 32), pretrained=True).eval()
        expected = library_features(network, (IMAGES - model.mean) / model.std)
        assert relative(model.features(IMAGES), expected) < 1e-4, name
    assert asked == [{"check_hash": True, "weights_only": True}]
