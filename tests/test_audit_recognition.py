"""Which network a state dict is of, and a checkpoint from elsewhere as a model folder: recognised, converted once, or one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file

from unpoison import models
from unpoison.core.errors import UserError
from unpoison.core.files import sha256_file
from unpoison.core.weights import Weights, shapes_of
from unpoison.data.imageset import ImageSet
from unpoison.models import receiving
from unpoison.models.receiving import Wanted, receive
from unpoison.models.recognition import recognise

CLASSES = ("ant", "bee", "cat")
SIZE = (16, 16)


def of_this_project(name: str = "resnet18", **arguments: Any) -> models.Classifier:
    return models.build(name, num_classes=3, image_size=SIZE, seed=1, **(arguments or {"width": 8})).eval()


def saved(model: torch.nn.Module, path: Path, prefix: str = "") -> Path:
    save_file({f"{prefix}{key}": value.contiguous() for key, value in model.state_dict().items()}, path)
    return path


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet18", {"width": 8, "stem": "conv3"}),
        ("resnet18", {"width": 16, "stem": "conv3_pool"}),
        ("preactresnet18", {"width": 8, "final_norm": True}),
        ("preactresnet18", {"width": 8, "final_norm": False}),
        ("compact", {"width": 8}),
        ("compact_resnet", {"width": 8}),
    ],
)
def test_own_networks_are_recognised(name: str, arguments: dict[str, Any]) -> None:
    found = recognise(shapes_of(of_this_project(name, **arguments).state_dict()), SIZE, 3, "x")
    assert (found.name, dict(found.arguments), found.classes, found.prefix) == (name, arguments, 3, "")


def test_torchvision_is_recognised_under_a_prefix_and_without_counters() -> None:
    with torch.device("meta"):
        network = torchvision.models.resnet18(num_classes=7)
    shapes = {
        f"model.{key}": about for key, about in shapes_of(network.state_dict()).items() if "num_batches" not in key
    }
    found = recognise(shapes, (64, 64), 3, "x")
    assert (found.name, found.classes, found.prefix) == ("torchvision:resnet18", 7, "model.")


def test_what_fits_nothing_is_one_line() -> None:
    shapes = shapes_of({"layer.weight": torch.zeros(2, 3)})
    with pytest.raises(
        UserError, match=r"^x: 1 tensors \(layer\.weight, …\) that fit none .* timm's with NETWORK=timm:NAME$"
    ):
        recognise(shapes, SIZE, 3, "x")


def test_a_state_dict_becomes_a_folder_with_the_same_logits(tmp_path: Path) -> None:
    model = of_this_project()
    path = saved(model, tmp_path / "model.safetensors")
    wanted = Wanted(CLASSES, SIZE, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    folder = receive(path, wanted, tmp_path / "received")
    about = models.read_about(folder)
    assert about.made_by["received"]["network"] == "recognised"
    assert about.made_by["received"]["normalisation"] == "mean and std given"
    assert (about.network.mean, about.network.std) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    received, images = models.load(folder), torch.rand(4, 3, *SIZE)
    # The same features of images that are normalised alike.
    same = of_this_project()
    same.mean.copy_(received.mean)
    same.std.copy_(received.std)
    torch.testing.assert_close(received(images), same(images))
    # The same checkpoint again is the same folder, and nothing else is left beside it.
    assert receive(path, wanted, tmp_path / "received") == folder
    assert [each.name for each in (tmp_path / "received").iterdir()] == [folder.name]


def test_a_library_s_weights_get_into_its_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = torchvision.models.shufflenet_v2_x0_5(num_classes=3).eval()
    wanted = Wanted(CLASSES, (32, 32), network="torchvision:shufflenet_v2_x0_5", mean=(0.0,) * 3, std=(1.0,) * 3)
    path = saved(network, tmp_path / "model.safetensors")
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(models.load(receive(path, wanted, tmp_path / "received"))(images), network(images))
    four = Wanted((*CLASSES, "dog"), (32, 32), network="torchvision:shufflenet_v2_x0_5")
    with pytest.raises(UserError, match=r"model\.safetensors: no head for 4 classes, which DATA has"):
        receive(path, four, tmp_path / "received")


def test_outputs_are_put_in_the_order_of_the_data(tmp_path: Path) -> None:
    model, images = of_this_project(), torch.rand(4, 3, *SIZE)
    path = saved(model, tmp_path / "model.safetensors")
    given = Wanted(CLASSES, SIZE, order=("cat", "ant", "bee"), mean=(0.5,) * 3, std=(0.25,) * 3)
    received = models.load(receive(path, given, tmp_path / "received"))
    torch.testing.assert_close(received(images), model(images)[:, [1, 2, 0]])
    # A folder of this project says its order itself.
    models.save(model, tmp_path / "own", classes=("cat", "ant", "bee"), made_by={})
    received = models.load(receive(tmp_path / "own", Wanted(CLASSES, None), tmp_path / "received"))
    torch.testing.assert_close(received(images), model(images)[:, [1, 2, 0]])


def test_a_pickle_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"what the process of its own would read")

    def converted(source: Path, target: Path) -> None:
        target.parent.mkdir(parents=True)
        metadata = {"converted_from_sha256": sha256_file(source)}
        save_file(of_this_project().state_dict(), target, metadata=metadata)

    monkeypatch.setattr(receiving, "convert", converted)
    folder = receive(path, Wanted(CLASSES, SIZE), tmp_path / "received")
    about = models.read_about(folder).made_by["received"]
    assert (about["file"], about["sha256"]) == ("model.pt", sha256_file(path))
    monkeypatch.setattr(receiving, "convert", lambda *_: pytest.fail("converted twice"))
    assert receive(path, Wanted(CLASSES, SIZE), tmp_path / "received") == folder
    assert len(list((tmp_path / "received").glob("*.safetensors"))) == 1
    assert Weights(next((tmp_path / "received").glob("*.safetensors"))).shapes


def wrong_classes(tmp_path: Path) -> Path:
    models.save(of_this_project(), tmp_path / "own", classes=("x", "y", "z"), made_by={})
    return tmp_path / "own"


def plain(tmp_path: Path) -> Path:
    return saved(of_this_project(), tmp_path / "model.safetensors")


def named(tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_bytes(b"x")
    return tmp_path / "model.onnx"


@pytest.mark.parametrize(
    ("made", "wanted", "reason"),
    [
        (
            named,
            Wanted(CLASSES, SIZE),
            r"MODEL: .*model\.onnx' given, allowed: a file that ends in \.safetensors, \.pt, \.pth",
        ),
        (
            plain,
            Wanted((*CLASSES, "dog"), SIZE),
            r"a head for 3 classes \(resnet18 .*\), DATA has 4 classes; allowed: a",
        ),
        (
            plain,
            Wanted(CLASSES, SIZE, network="resnet18"),
            r"not the weights of resnet18 for 3 classes: .*, the network has",
        ),
        (plain, Wanted(CLASSES, SIZE, network="resnet99"), r"NETWORK: name: 'resnet99' given, allowed: resnet18"),
        (
            plain,
            Wanted(CLASSES, SIZE, network="resnet18 wide"),
            r"NETWORK: 'wide' given, allowed: a name and arguments",
        ),
        (
            plain,
            Wanted(CLASSES, SIZE, network="timm:resnet18 pretrained=x"),
            r"NETWORK: pretrained given, allowed: the weights of",
        ),
        (plain, Wanted(CLASSES, SIZE, order=("ant", "bee", "dog")), r"CLASSES: 3 classes \('ant', .*\), DATA has 3"),
        (plain, Wanted(CLASSES, None), r"IMAGE_SIZE: none given"),
        (wrong_classes, Wanted(CLASSES, None), r"own: 3 classes \('x', 'y', 'z'\), DATA has 3 \('ant', 'bee', 'cat'\)"),
        (
            wrong_classes,
            Wanted(("x", "y", "z"), (32, 32)),
            r"IMAGE_SIZE: \(32, 32\) given, allowed with .*own: \(16, 16\)",
        ),
        (
            wrong_classes,
            Wanted(("x", "y", "z"), None, network="resnet18"),
            r"NETWORK: 'resnet18' given, allowed with a model",
        ),
    ],
)
def test_refusals_are_one_line(made: Any, wanted: Wanted, reason: str, tmp_path: Path) -> None:
    path = made(tmp_path)
    with pytest.raises(UserError, match=reason) as raised:
        receive(path, wanted, tmp_path / "received")
    assert "\n" not in str(raised.value)
    assert not list((tmp_path / "received").glob("*"))


def test_a_received_model_of_other_images_is_refused(tmp_path: Path) -> None:
    folder = receive(plain(tmp_path), Wanted(CLASSES, SIZE), tmp_path / "received")
    data = ImageSet(np.zeros((1, 32, 32, 3), np.uint8), np.zeros(1, np.int64), CLASSES)
    with pytest.raises(UserError, match="a model for images of 16x16 px"):
        models.load(folder, data)
