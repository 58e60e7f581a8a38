"""Networks by name, from this package and from torchvision and timm, and checkpoints."""

from __future__ import annotations

import subprocess
import sys
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch.fx.experimental.optimization import fuse

from unpoison import models
from unpoison.core.errors import UserError
from unpoison.core.files import read_json, sha256_file, write_json
from unpoison.data.imageset import ImageSet
from unpoison.detection import cd

DOCS = Path(__file__).resolve().parent.parent / "docs" / "models.md"
# One row per network: name, arguments, side of the images, penultimate features, channels and side of the feature map.
TABLE = [
    ("resnet18", {"width": 8}, 32, 64, (64, 4)),
    ("resnet18", {"width": 8, "stem": "conv3_pool"}, 32, 64, (64, 2)),
    ("resnet34", {"width": 8}, 32, 64, (64, 4)),
    ("resnet50", {"width": 8}, 32, 256, (256, 4)),
    ("preactresnet18", {"width": 8}, 32, 64, (64, 4)),
    ("preactresnet18", {"width": 8, "final_norm": False}, 32, 64, (64, 4)),
    ("vgg19_bn", {"width": 8}, 32, 64, (64, 1)),
    ("densenet121", {"growth": 8}, 32, 256, (256, 4)),
    ("torchvision:convnext_tiny", {}, 64, 768, (768, 2)),
    ("torchvision:densenet121", {}, 64, 1024, (1024, 2)),
    ("torchvision:efficientnet_b0", {}, 64, 1280, (1280, 2)),
    ("torchvision:googlenet", {}, 64, 1024, (1024, 2)),
    ("torchvision:inception_v3", {}, 75, 2048, (2048, 1)),
    ("torchvision:mnasnet0_5", {}, 64, 1280, (1280, 2)),
    ("torchvision:mobilenet_v2", {}, 64, 1280, (1280, 2)),
    ("torchvision:mobilenet_v3_small", {}, 64, 1024, (576, 2)),
    ("torchvision:regnet_y_400mf", {}, 64, 440, (440, 2)),
    ("torchvision:resnet18", {}, 64, 512, (512, 2)),
    ("torchvision:resnext50_32x4d", {}, 64, 2048, (2048, 2)),
    ("torchvision:shufflenet_v2_x0_5", {}, 64, 1024, (1024, 2)),
    ("torchvision:swin_t", {}, 64, 768, (768, 2)),
    ("torchvision:vgg11_bn", {}, 32, 4096, (512, 1)),
    ("torchvision:vit_b_32", {}, 64, 768, (768, 2)),
    ("timm:convnext_atto", {}, 64, 320, (320, 2)),
    ("timm:efficientnet_lite0", {}, 64, 1280, (1280, 2)),
    ("timm:mobilenetv3_small_050", {}, 64, 1024, (288, 2)),
    ("timm:resnest14d", {}, 64, 2048, (2048, 2)),
    ("timm:resnet10t", {}, 64, 512, (512, 2)),
    ("timm:swin_tiny_patch4_window7_224", {}, 64, 768, (768, 2)),
    ("timm:test_convnext", {}, 64, 64, (64, 2)),
    ("timm:test_efficientnet", {}, 64, 256, (256, 2)),
    ("timm:test_resnet", {}, 64, 96, (96, 2)),
    ("timm:test_vit", {}, 64, 64, (64, 4)),
    ("timm:vit_tiny_patch16_224", {}, 64, 192, (192, 4)),
]
IDS = ["-".join([name, *map(str, arguments.values())]) for name, arguments, *_ in TABLE]
# 129 million parameters, 20 seconds; put together as MobileNet-v3 and EfficientNet are.
SLOW = {"torchvision:vgg11_bn"}
# Nothing to fold: layer norm instead of batch norm.
WITHOUT_BATCH_NORM = {"torchvision:convnext_tiny", "torchvision:swin_t", "torchvision:vit_b_32"}
AUXILIARY = {"torchvision:inception_v3": 1, "torchvision:googlenet": 2}
CLASSES = tuple("abcde")
# Loads every checkpoint of a folder and writes its logits; plain torch, so that importing the package brings in no more.
FRESH_PROCESS = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from unpoison import models
print([library for library in ("torchvision", "timm") if library in sys.modules])
logits = {}
for folder in sorted(Path(sys.argv[1]).iterdir()):
    model = models.load(folder)
    height, width = model.description["image_size"]
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits[folder.name] = model(images)
save_file(logits, sys.argv[2])
"""


def images_of(side: int, channels: int = 3) -> torch.Tensor:
    return torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(0))


IMAGES = images_of(32)


def small(**changes: Any) -> models.Classifier:
    arguments = {"num_classes": 5, "image_size": (32, 32), "width": 8, "seed": 1} | changes
    return models.build("resnet18", **arguments).eval()


def of_library(name: str, side: int, num_classes: int = 5, seed: int = 3) -> torch.nn.Module:
    """The library's own network, with the initial weights that the seed gives."""
    library, short = name.split(":")
    arguments: dict[str, Any] = {"num_classes": num_classes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if library == "timm":
            size = {"img_size": side} if timm.get_pretrained_cfg(short).fixed_input_size else {}
            return timm.create_model(short, **arguments, **size).eval()
        arguments |= {"image_size": side} if "vit" in short else {}
        arguments |= {"aux_logits": True, "init_weights": True} if name in AUXILIARY else {}
        return torchvision.models.get_model(short, weights=None, **arguments).eval()


@torch.no_grad()
def library_features(network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What the network's last linear layer is given, by a hook."""
    seen: list[torch.Tensor] = []
    for module in network.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(images)
    return seen[-1]


@torch.no_grad()
def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, as a share of the largest value: untrained networks' values differ by many decades."""
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))


@dataclass
class Row:
    """What became of a row of the table: built, one optimiser step, evaluated, saved, loaded in another process."""

    auxiliary: list[tuple[int, ...]]
    shapes: dict[str, tuple[int, ...]]
    logits: torch.Tensor
    differences: dict[str, float] = field(default_factory=dict)


@pytest.fixture(scope="module")
def rows(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Row]:
    """The rows whose test was selected: `-k resnet50` does not wait for the others."""
    folder = tmp_path_factory.mktemp("rows")
    selected = {item.callspec.params.get("key") for item in request.session.items if hasattr(item, "callspec")}
    found = {}
    for key, (name, arguments, side, *_) in zip(IDS, TABLE, strict=True):
        if key in selected:
            model = models.build(name, num_classes=5, image_size=(side, side), seed=3, **arguments)
            found[key] = run_row(model, name, side)
            models.save(model, folder / "models" / key.replace(":", "_"), classes=CLASSES, made_by={})
    output = folder / "logits.safetensors"
    command = [sys.executable, "-c", FRESH_PROCESS, str(folder / "models"), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n", "importing unpoison.models imports a library of networks"
    for key, logits in load_file(output).items():
        row = found[next(name for name in IDS if name.replace(":", "_") == key)]
        row.differences["another process"] = float((logits - row.logits).abs().max() / row.logits.abs().max().clamp(1))
    # Half a gigabyte for one of them; pytest would keep it for its last three runs.
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    return found


def run_row(model: models.Classifier, name: str, side: int) -> Row:
    images, differences = images_of(side), {}
    if ":" in name:
        with torch.no_grad():
            own = model.eval().features(images)
        differences["the library's features"] = relative(own, library_features(of_library(name, side), images * 4 - 2))
    # As the training loop does it, except that the running statistics become this batch's at once: those of one ordinary
    # step leave the activations of deep untrained networks at 1e-20 or at infinity.
    model.to(memory_format=torch.channels_last).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    logits, auxiliary = model.logits_and_auxiliary(images.contiguous(memory_format=torch.channels_last))
    labels = torch.tensor([0, 1])
    losses = [torch.nn.functional.cross_entropy(each, labels) for each in (logits, *auxiliary)]
    (losses[0] + models.AUXILIARY_WEIGHT * sum(losses[1:])).backward()
    assert all(p.grad is not None for p in model.parameters()), "a parameter that training never reaches"
    # Two images and a map of 1x1 give Inception-v3 gradients of a million.
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    model.eval().to(memory_format=torch.contiguous_format)
    with torch.no_grad():
        logits, features = model(images), model.features(images)
        in_evaluation, none = model.logits_and_auxiliary(images)
        shapes = {"map": tuple(model.feature_map(images).shape), "features": tuple(features.shape)}
        differences["head(features)"] = relative(model.head(features), logits)
        differences["logits_and_auxiliary"] = relative(in_evaluation, logits)
        if model.traceable:
            differences["fused"] = relative(fuse(deepcopy(model))(images), logits)
    assert none == ()
    return Row([tuple(each.shape) for each in auxiliary], shapes, logits, differences)


def test_table_covers_every_network() -> None:
    assert {row[0] for row in TABLE if ":" not in row[0]} == set(models.NETWORKS)


def test_table_in_the_docs_is_true() -> None:
    lines = [line for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    shown = {line.split("`")[1]: line for line in lines}
    assert set(shown) == {row[0] for row in TABLE}
    for name, _, side, features, (channels, map_side) in TABLE:
        if ":" in name:
            assert f"| {side} | {features} | {channels}×{map_side}×{map_side} |" in shown[name]


def _selectable(key: str, row: Any) -> Any:
    return pytest.param(key, row, id=key, marks=[pytest.mark.slow] if row[0] in SLOW else [])


@pytest.mark.parametrize(("key", "row"), [_selectable(*each) for each in zip(IDS, TABLE, strict=True)])
def test_every_network(key: str, row: Any, rows: dict[str, Row]) -> None:
    name, _, _, features, (channels, side) = row
    found = rows[key]
    assert found.shapes == {"map": (2, channels, side, side), "features": (2, features)}
    assert found.auxiliary == [(2, 5)] * AUXILIARY.get(name, 0)
    assert found.logits.shape == (2, 5)
    assert found.logits.isfinite().all()
    assert ("the library's features" in found.differences) == (":" in name)
    assert ("fused" in found.differences) == (not name.startswith("timm:") and name not in WITHOUT_BATCH_NORM)
    tolerance = {"fused": 1e-3, "head(features)": 1e-5, "logits_and_auxiliary": 1e-5, "another process": 1e-5}
    for what, difference in found.differences.items():
        assert difference <= tolerance.get(what, 1e-4), what
    assert "another process" in found.differences


def test_cd_takes_a_vision_transformer() -> None:
    model = models.build("timm:test_vit", num_classes=2, image_size=(32, 32)).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    data = ImageSet(pixels, np.zeros(4, np.int64), ("a", "b"))
    scores = cd.score(model, data, data, steps=2)
    assert scores.values.shape == (4,)
    assert np.isfinite(scores.values).all()


# Sizes at width 64 and 10 classes, as the CIFAR ports' users quote them. preactresnet18: 2 x 512 more with the last norm.
@pytest.mark.parametrize(
    ("name", "arguments", "parameters"),
    [
        ("resnet18", {}, 11_173_962),
        ("resnet34", {}, 21_282_122),
        ("resnet50", {}, 23_520_842),
        ("preactresnet18", {"final_norm": False}, 11_171_146),
        ("preactresnet18", {}, 11_171_146 + 2 * 512),
        ("vgg19_bn", {}, 20_040_522),
        ("densenet121", {}, 6_956_298),
    ],
)
def test_published_size(name: str, arguments: dict[str, Any], parameters: int) -> None:
    model = models.build(name, num_classes=10, image_size=(32, 32), **arguments)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("name", ["resnet18", "torchvision:shufflenet_v2_x0_5", "timm:test_resnet"])
def test_seed_decides_the_weights_and_leaves_the_global_state(name: str) -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()

    def weights(seed: int) -> dict[str, torch.Tensor]:
        arguments = {} if ":" in name else {"width": 8}
        return models.build(name, num_classes=5, image_size=(32, 32), seed=seed, **arguments).state_dict()

    first, same, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])
    body = next(key for key in first if key.startswith("backbone.") and first[key].ndim == 4)
    assert not torch.equal(first[body], other[body])
    assert torch.equal(before, torch.random.get_rng_state())


def test_fresh_copy_has_other_weights() -> None:
    model = models.build("timm:test_vit", num_classes=5, image_size=(32, 32), seed=1).eval()
    copy = models.fresh_copy(model, seed=2).eval()
    assert copy.description == model.description
    assert not torch.allclose(copy(IMAGES), model(IMAGES))


def test_normalisation_is_inside() -> None:
    plain = small(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    normalising = small(mean=(0.2, 0.3, 0.4), std=(0.5, 0.6, 0.7))
    mean, std = torch.tensor([0.2, 0.3, 0.4]).view(1, 3, 1, 1), torch.tensor([0.5, 0.6, 0.7]).view(1, 3, 1, 1)
    assert torch.allclose(normalising(IMAGES), plain((IMAGES - mean) / std), atol=1e-5)
    with pytest.raises(UserError, match=r"model\.mean: 3 values given, allowed: one for each of 1 channels"):
        small(channels=1, mean=(0.2, 0.3, 0.4))


@pytest.mark.parametrize("name", ["resnet18", "torchvision:shufflenet_v2_x0_5", "torchvision:swin_t", "timm:test_vit"])
def test_one_channel(name: str, tmp_path: Path) -> None:
    arguments = {} if ":" in name else {"width": 8}
    model = models.build(name, num_classes=5, image_size=(32, 32), channels=1, seed=3, **arguments).eval()
    assert (model.description["mean"], model.description["std"]) == ([0.5], [0.25])
    grey = images_of(32, 1)
    if name.startswith("torchvision:"):
        coloured = models.build(name, num_classes=5, image_size=(32, 32), seed=3).eval()
        assert relative(model.features(grey), coloured.features(grey.expand(-1, 3, -1, -1))) < 1e-4
    models.save(model, tmp_path / "m", classes=CLASSES, made_by={})
    assert torch.allclose(models.load(tmp_path / "m")(grey), model(grey), atol=1e-5)


ALLOWED = "allowed: resnet18, resnet34, resnet50, preactresnet18, vgg19_bn, densenet121, torchvision:NAME, timm:NAME"


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet19", {}, f"model.name: 'resnet19' given, {ALLOWED}"),
        ("keras:resnet18", {}, f"model.name: 'keras:resnet18' given, {ALLOWED}"),
        (18, {}, f"model.name: 18 given, {ALLOWED}"),
        ("resnet18", {"widht": 3}, "model.widht: unknown key, allowed: width, stem"),
        ("resnet18", {"width": 7}, "model.width: 7 given; input should be greater than or equal to 8"),
        ("densenet121", {"width": 8}, "model.width: unknown key, allowed: growth"),
        ("resnet18", {"pretrained": True}, "model.pretrained: unknown key, allowed: width, stem"),
        ("timm:test_vit", {"width": 8}, "model.width: unknown key, allowed: pretrained"),
        ("timm:test_vit", {"pretrained": 1}, "model.pretrained"),
        ("timm:test_vit", {"pretrained": "/no/such.safetensors"}, "model.pretrained: '/no/such.safetensors' given"),
        (
            "timm:test_vit",
            {"pretrained": str(DOCS)},
            f"model.pretrained: {str(DOCS)!r} given, allowed: true, false, or",
        ),
        ("timm:resnet5O", {}, "model.name: 'timm:resnet5O' given; timm 1"),
        ("timm:hf-hub:timm/resnet18.a1_in1k", {}, "model.name: 'timm:hf-hub:timm/resnet18.a1_in1k' given; timm 1"),
        (
            "timm:resnet18.a9",
            {},
            "model.name: 'timm:resnet18.a9' given; resnet18 has no pretrained tag 'a9', allowed: a1",
        ),
        ("torchvision:resnet5O", {}, "model.name: 'torchvision:resnet5O' given; torchvision 0"),
        ("torchvision:squeezenet1_0", {}, "model.name: 'torchvision:squeezenet1_0' given; its classifier is not one"),
    ],
)
def test_bad_names_and_arguments_are_refused(name: Any, arguments: dict[str, Any], message: str) -> None:
    for refuse in (
        lambda: models.build(name, num_classes=2, image_size=(32, 32), **arguments),
        lambda: models.network_arguments(name, arguments),
    ):
        with pytest.raises(UserError) as error:
            refuse()
        assert str(error.value).startswith(message)
    with pytest.raises(UserError, match=r"^params\.yaml: model"):
        models.network_arguments(name, arguments, where="params.yaml: model")


def test_close_names_are_shown() -> None:
    for prefix in ("timm", "torchvision"):
        with pytest.raises(UserError, match=r"has no such .*, similar: .*resnet50"):
            models.network_arguments(f"{prefix}:resnet5O", {})


def test_arguments_come_back_as_they_are() -> None:
    assert models.network_arguments("resnet18", {"width": 16}) == {"width": 16}
    assert models.network_arguments("timm:resnet18.a1_in1k", {"pretrained": True}) == {"pretrained": True}


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        (
            "vgg19_bn",
            (16, 16),
            "vgg19_bn: cannot be built for images of 16x16 px, 3 channels: RuntimeError: Given input",
        ),
        ("torchvision:inception_v3", (32, 32), "torchvision:inception_v3: cannot be built for images of 32x32 px"),
        (
            "torchvision:vit_b_32",
            (48, 48),
            "torchvision:vit_b_32: cannot be built for images of 48x48 px, 3 channels: Ass",
        ),
        ("torchvision:vit_b_32", (32, 64), "torchvision:vit_b_32: images of 32x64 px given, allowed: square ones"),
        (
            "timm:test_vit",
            (33, 33),
            "timm:test_vit: images of 33x33 px given, allowed: multiples of its patches' 16x16",
        ),
        ("timm:vit_tiny_patch16_224", (64, 72), "timm:vit_tiny_patch16_224: images of 64x72 px given, allowed: mult"),
        ("timm:maxvit_nano_rw_256", (65, 65), "timm:maxvit_nano_rw_256: cannot be built for images of 65x65 px"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(name: str, size: tuple[int, int], message: str) -> None:
    with pytest.raises(UserError) as error:
        models.build(name, num_classes=5, image_size=size)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:crossvit_9_240", "its classifier is a ModuleList, allowed: networks that end in one linear layer"),
        ("timm:coat_tiny", "cannot be built for images of 64x64 px, 3 channels: AttributeError"),
    ],
)
def test_networks_of_another_shape_are_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^{name}: {message}"):
        models.build(name, num_classes=5, image_size=(64, 64))
    with pytest.raises(UserError, match=r"^torchvision:resnet18: images of 4 channels given, allowed: 1 or 3"):
        models.build("torchvision:resnet18", num_classes=5, image_size=(64, 64), channels=4)


def test_a_token_map_keeps_the_proportions_of_the_image() -> None:
    model = models.build("timm:test_vit", num_classes=5, image_size=(32, 64)).eval()
    assert model.feature_map(torch.rand(2, 3, 32, 64)).shape == (2, 64, 2, 4)


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
    assert relative(models.load(tmp_path / "m").features(IMAGES), model.features(IMAGES)) < 1e-4
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


def test_tampered_weights_are_refused(tmp_path: Path) -> None:
    models.save(small(), tmp_path / "m", classes=CLASSES, made_by={})
    path = tmp_path / "m" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"model\.safetensors: digest mismatch"):
        models.load(tmp_path / "m")


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    models.save(small(), tmp_path / "m", classes=CLASSES, made_by={})
    about = read_json(tmp_path / "m" / "model.json")
    for change in ({"arguments": {"width": 16}}, {"name": "timm:test_vit", "arguments": {}}):
        write_json(tmp_path / "m" / "model.json", about | {"network": about["network"] | change})
        with pytest.raises(UserError, match="weights of another architecture: "):
            models.load(tmp_path / "m")


def test_garbage_with_a_right_digest_is_refused(tmp_path: Path) -> None:
    models.save(small(), tmp_path / "m", classes=CLASSES, made_by={})
    path = tmp_path / "m" / "model.safetensors"
    path.write_bytes(b"\x80\x04garbage that is no safetensors file")
    about = read_json(tmp_path / "m" / "model.json")
    about["files"]["model.safetensors"] = sha256_file(path)
    write_json(tmp_path / "m" / "model.json", about)
    with pytest.raises(UserError, match="not a readable safetensors file"):
        models.load(tmp_path / "m")
