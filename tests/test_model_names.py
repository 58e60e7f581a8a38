"""Names, arguments, image sizes, seeds and checkpoints of networks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from networks import CLASSES, IMAGES, images_of, nothing_drawn, of_library, relative
from unpoison import models
from unpoison.core.errors import ParameterError, UserError
from unpoison.core.files import read_json, sha256_file, write_json

FILE = Path(__file__).resolve()
ALLOWED = f"allowed: {', '.join(models.NETWORKS)}, torchvision:NAME, timm:NAME"
# Trains and loads a checkpoint, writes its logits, and says which of the libraries that take long to import came in.
FRESH_PROCESS = """
import sys
import torch
from safetensors.torch import save_file
from unpoison import models
from unpoison.training import loop
from unpoison.training.optimizer import Optimizer
from unpoison.training.recipe import Rate, Recipe
parameter = torch.nn.Parameter(torch.ones(2))
parameter.grad = parameter.detach()
Optimizer(Recipe(), [parameter]).step(Rate(0.1, 0.9))
images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    save_file({"logits": models.load(sys.argv[1])(images)}, sys.argv[2])
slow = ("torchvision", "timm", "torch._dynamo", "sklearn", "scipy", "diffusers", "matplotlib", "pandas")
print([library for library in slow if library in sys.modules])
"""


def small(**changes: Any) -> models.Classifier:
    arguments = {"num_classes": 5, "image_size": (32, 32), "width": 8, "seed": 1} | changes
    return models.build("resnet18", **arguments).eval()


@pytest.mark.parametrize("name", ["resnet18", "torchvision:shufflenet_v2_x0_5", "timm:test_resnet"])
def test_seed_decides_the_weights_and_leaves_the_global_state(name: str) -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()

    def weights(seed: int) -> dict[str, torch.Tensor]:
        arguments = {} if ":" in name else {"width": 8}
        return models.build(name, num_classes=5, image_size=(32, 32), seed=seed, **arguments).state_dict()

    first, same, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(first[key], same[key]) for key in first)
    if ":" in name:
        # The library's own initialisation: its network has the same head, drawn after all the rest.
        network = of_library(name, 32, seed=1)
        assert torch.equal(first["head.weight"], network.get_submodule("fc").weight)
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
    with pytest.raises(UserError, match=r"^mean: 3 values given, allowed: one for each of 1 channels"):
        small(channels=1, mean=(0.2, 0.3, 0.4))


@pytest.mark.parametrize("name", ["resnet18", "torchvision:shufflenet_v2_x0_5", "torchvision:swin_t", "timm:test_vit"])
def test_one_channel(name: str, tmp_path: Path) -> None:
    arguments = {} if ":" in name else {"width": 8}
    model = models.build(name, num_classes=5, image_size=(32, 32), channels=1, seed=3, **arguments).eval()
    assert (model.description["mean"], model.description["std"]) == ([0.5], [0.25])
    grey = images_of(32, 1)
    if name.startswith("torchvision:"):
        with nothing_drawn():
            coloured = models.build(name, num_classes=5, image_size=(32, 32)).eval()
        coloured.load_state_dict(model.state_dict())
        assert relative(model.features(grey), coloured.features(grey.expand(-1, 3, -1, -1))) < 1e-4
    models.save(model, tmp_path / "m", classes=CLASSES, made_by={})
    with nothing_drawn():
        kept = models.load(tmp_path / "m")
    assert torch.allclose(kept(grey), model(grey), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet19", {}, f"name: 'resnet19' given, {ALLOWED}"),
        ("keras:resnet18", {}, f"name: 'keras:resnet18' given, {ALLOWED}"),
        (18, {}, f"name: 18 given, {ALLOWED}"),
        ("resnet18", {"widht": 3}, "widht: unknown key, allowed: width, stem"),
        ("resnet18", {"width": 7}, "width: 7 given; input should be greater than or equal to 8"),
        ("densenet121", {"width": 8}, "width: unknown key, allowed: growth"),
        ("resnet18", {"pretrained": True}, "pretrained: unknown key, allowed: width, stem"),
        ("timm:test_vit", {"width": 8}, "width: unknown key, allowed: pretrained"),
        ("timm:test_vit", {"pretrained": 1}, "pretrained"),
        ("timm:test_vit", {"pretrained": "/no/such.safetensors"}, "pretrained: '/no/such.safetensors' given"),
        (
            "timm:test_vit",
            {"pretrained": str(FILE)},
            f"pretrained: {str(FILE)!r} given, allowed: true, false, or",
        ),
        ("timm:resnet5O", {}, "name: 'timm:resnet5O' given; timm 1"),
        ("timm:hf-hub:timm/resnet18.a1_in1k", {}, "name: 'timm:hf-hub:timm/resnet18.a1_in1k' given; timm 1"),
        (
            "timm:resnet18.a9",
            {},
            "name: 'timm:resnet18.a9' given; resnet18 has no pretrained tag 'a9', allowed: a1",
        ),
        ("torchvision:resnet5O", {}, "name: 'torchvision:resnet5O' given; torchvision 0"),
        ("torchvision:squeezenet1_0", {}, "name: 'torchvision:squeezenet1_0' given; its classifier is not one"),
    ],
)
def test_bad_names_and_arguments_are_refused(name: Any, arguments: dict[str, Any], message: str) -> None:
    for refuse in (
        lambda: models.build(name, num_classes=2, image_size=(32, 32), **arguments),
        lambda: models.network_arguments(name, arguments),
    ):
        with pytest.raises(ParameterError) as error:
            refuse()
        assert str(error.value).startswith(message)


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
    with pytest.raises(UserError) as error, nothing_drawn():
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
    with pytest.raises(UserError, match=f"^{name}: {message}"), nothing_drawn():
        models.build(name, num_classes=5, image_size=(64, 64))


def test_torchvisions_networks_take_one_channel_or_three() -> None:
    with pytest.raises(UserError, match=r"^torchvision:resnet18: images of 4 channels given, allowed: 1 or 3"):
        models.build("torchvision:resnet18", num_classes=5, image_size=(64, 64), channels=4)


def test_a_token_map_keeps_the_proportions_of_the_image() -> None:
    model = models.build("timm:test_vit", num_classes=5, image_size=(32, 64)).eval()
    assert model.feature_map(torch.rand(2, 3, 32, 64)).shape == (2, 64, 2, 4)


def test_another_process_trains_and_loads_and_imports_no_more_than_it_needs(tmp_path: Path) -> None:
    model, output = small(), tmp_path / "logits.safetensors"
    models.save(model, tmp_path / "m", classes=CLASSES, made_by={})
    command = [sys.executable, "-c", FRESH_PROCESS, str(tmp_path / "m"), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n", "a network, a step or a checkpoint imports a library that it can do without"
    with torch.no_grad():
        assert relative(load_file(output)["logits"], model(IMAGES)) < 1e-5


def test_one_number_stands_for_square_images() -> None:
    for size in (32, (32, 32), [32, 32]):
        assert models.build("resnet18", width=8, num_classes=5, image_size=size).description["image_size"] == [32, 32]


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
