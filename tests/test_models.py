"""Every network of the table: its shapes, the library's own features, a training step, folding, rebuilding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch.fx.experimental.optimization import fuse

from networks import AUXILIARY, arguments_of, images_of, library_features, nothing_drawn, relative
from unpoison import models
from unpoison.compute.inference import frozen
from unpoison.compute.passes import counted_passes
from unpoison.data.features import Features
from unpoison.data.imageset import ImageSet
from unpoison.detection import cd
from unpoison.detection.detector import Suspect
from unpoison.models import resnet

DOCS = Path(__file__).resolve().parent.parent / "docs" / "models.md"


class Row(NamedTuple):
    """A network: name, arguments, side of the images, penultimate features, channels and side of the feature map."""

    name: str
    arguments: dict[str, Any]
    side: int
    features: int
    map: tuple[int, int]


TABLE = [
    Row("resnet18", {"width": 8}, 32, 64, (64, 4)),
    Row("resnet18", {"width": 8, "stem": "conv3_pool"}, 32, 64, (64, 2)),
    Row("resnet18", {"width": 8, "norm": "group"}, 32, 64, (64, 4)),
    Row("resnet34", {"width": 8}, 32, 64, (64, 4)),
    Row("resnet50", {"width": 8}, 32, 256, (256, 4)),
    Row("resnet50", {"width": 8, "norm": "group"}, 32, 256, (256, 4)),
    Row("preactresnet18", {"width": 8}, 32, 64, (64, 4)),
    Row("preactresnet18", {"width": 8, "final_norm": False}, 32, 64, (64, 4)),
    Row("vgg19_bn", {"width": 8}, 32, 64, (64, 1)),
    Row("densenet121", {"growth": 8}, 32, 256, (256, 4)),
    Row("compact", {"width": 8}, 32, 32, (32, 3)),
    Row("compact_resnet", {"width": 8}, 32, 32, (32, 3)),
    Row("torchvision:convnext_tiny", {}, 64, 768, (768, 2)),
    Row("torchvision:densenet121", {}, 64, 1024, (1024, 2)),
    Row("torchvision:efficientnet_b0", {}, 64, 1280, (1280, 2)),
    Row("torchvision:googlenet", {}, 64, 1024, (1024, 2)),
    Row("torchvision:inception_v3", {}, 75, 2048, (2048, 1)),
    Row("torchvision:mnasnet0_5", {}, 64, 1280, (1280, 2)),
    Row("torchvision:mobilenet_v2", {}, 64, 1280, (1280, 2)),
    Row("torchvision:mobilenet_v3_small", {}, 64, 1024, (576, 2)),
    Row("torchvision:regnet_y_400mf", {}, 64, 440, (440, 2)),
    Row("torchvision:resnet18", {}, 64, 512, (512, 2)),
    Row("torchvision:resnext50_32x4d", {}, 64, 2048, (2048, 2)),
    Row("torchvision:shufflenet_v2_x0_5", {}, 64, 1024, (1024, 2)),
    Row("torchvision:swin_t", {}, 64, 768, (768, 2)),
    Row("torchvision:vgg11_bn", {}, 32, 4096, (512, 1)),
    Row("torchvision:vit_b_32", {}, 64, 768, (768, 2)),
    Row("timm:convnext_atto", {}, 64, 320, (320, 2)),
    Row("timm:efficientnet_lite0", {}, 64, 1280, (1280, 2)),
    Row("timm:mobilenetv3_small_050", {}, 64, 1024, (288, 2)),
    Row("timm:resnest14d", {}, 64, 2048, (2048, 2)),
    Row("timm:resnet10t", {}, 64, 512, (512, 2)),
    Row("timm:swin_tiny_patch4_window7_224", {}, 64, 768, (768, 2)),
    Row("timm:test_convnext", {}, 64, 64, (64, 2)),
    Row("timm:test_efficientnet", {}, 64, 256, (256, 2)),
    Row("timm:test_resnet", {}, 64, 96, (96, 2)),
    Row("timm:test_vit", {}, 64, 64, (64, 4)),
    Row("timm:vit_tiny_patch16_224", {}, 64, 192, (192, 4)),
]
# 129 million parameters, 20 seconds; put together as MobileNet-v3 and EfficientNet are.
SLOW = {"torchvision:vgg11_bn"}
# Nothing to fold: layer norm instead of batch norm.
WITHOUT_BATCH_NORM = {"torchvision:convnext_tiny", "torchvision:swin_t", "torchvision:vit_b_32"}


def test_table_covers_every_network() -> None:
    # Those for texts: tests/test_texts.py.
    assert {row.name for row in TABLE if ":" not in row.name} == set(models.NETWORKS) - set(models.TEXT_NETWORKS)


def test_table_in_the_docs_is_true() -> None:
    lines = [line for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    shown = {line.split("`")[1]: line for line in lines}
    assert set(shown) == {row.name for row in TABLE} | set(models.TEXT_NETWORKS)
    for row in TABLE:
        if ":" in row.name:
            channels, side = row.map
            assert f"| {row.side} | {row.features} | {channels}×{side}×{side} |" in shown[row.name]


def _selectable(row: Row) -> Any:
    key = "-".join([row.name, *map(str, row.arguments.values())])
    return pytest.param(row, id=key, marks=[pytest.mark.slow] if row.name in SLOW else [])


@pytest.mark.parametrize("row", [_selectable(row) for row in TABLE])
def test_every_network(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    images = images_of(row.side)
    model = built(row, images, monkeypatch)
    auxiliary = one_step(model, images)
    assert [tuple(logits.shape) for logits in auxiliary] == [(2, 5)] * AUXILIARY.get(row.name, 0)
    with torch.no_grad():
        logits, none = model.logits_and_auxiliary(images)
        features, feature_map = model.features(images), model.feature_map(images)
    channels, side = row.map
    assert tuple(feature_map.shape) == (2, channels, side, side)
    assert tuple(features.shape) == (2, row.features)
    assert tuple(logits.shape) == (2, 5)
    assert logits.isfinite().all()
    assert none == ()
    assert relative(model.head(features), logits) <= 1e-5
    assert relative(rebuilt(model)(images), logits) <= 1e-5
    # Folding needs a network that can be traced and batch norms to fold: detectors fold where `traceable` says so.
    assert model.traceable == (not row.name.startswith("timm:") and row.name not in WITHOUT_BATCH_NORM)
    if model.traceable:
        assert relative(fuse(model)(images), logits) <= 1e-3


def built(row: Row, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> models.Classifier:
    """The row's network, whose features are those of the library's own network with the same weights.

    The library's network is looked at when it was just made, and before it is taken apart.
    """
    made: list[torch.Tensor] = []

    def watched(make: Callable[..., torch.nn.Module]) -> Callable[..., torch.nn.Module]:
        def create(name: str, **arguments: Any) -> torch.nn.Module:
            assert arguments == arguments_of(row.name, row.side, 5)
            network = make(name, **arguments).eval()
            made.append(library_features(network, (images - 0.5) / 0.25))
            return network.train()

        return create

    with monkeypatch.context() as patch:
        for library, name in ((torchvision.models, "get_model"), (timm, "create_model")):
            patch.setattr(library, name, watched(getattr(library, name)))
        model = models.build(row.name, num_classes=5, image_size=(row.side, row.side), seed=3, **row.arguments)
    assert len(made) == (":" in row.name)
    with torch.no_grad():
        for features in made:
            assert relative(model.eval().features(images), features) <= 1e-4
    return model


def one_step(model: models.Classifier, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """As the training loop does it; the auxiliary heads' logits are returned, and the model is left in evaluation mode.

    But the running statistics become this batch's at once: those of one ordinary step leave the activations of deep
    untrained networks at 1e-20 or at infinity.
    """
    model.to(memory_format=torch.channels_last).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    logits, auxiliary = model.logits_and_auxiliary(images.contiguous(memory_format=torch.channels_last))
    losses = [F.cross_entropy(head, torch.tensor([0, 1])) for head in (logits, *auxiliary)]
    (losses[0] + models.AUXILIARY_WEIGHT * sum(losses[1:])).backward()
    assert all(p.grad is not None for p in model.parameters()), "a parameter that training never reaches"
    # Two images and a map of 1x1 give Inception-v3 gradients of a million.
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.01 * parameter.grad
            parameter.grad = None
    model.eval().to(memory_format=torch.contiguous_format)
    return auxiliary


def rebuilt(model: models.Classifier) -> models.Classifier:
    """What `models.load` makes of a checkpoint."""
    with nothing_drawn(tried_out=False):
        copy = models.fresh_copy(model, seed=0)
    copy.load_state_dict(model.state_dict())
    return copy.eval()


def test_cd_takes_a_vision_transformer() -> None:
    model = models.build("timm:test_vit", num_classes=2, image_size=(32, 32)).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    data = ImageSet(pixels, np.zeros(4, np.int64), ("a", "b"))
    features = Features(np.zeros((4, 2), np.float32), np.zeros((4, 2), np.float32))
    suspect = Suspect(model=model, data=data, features=features, reserve=data, reserve_features=features)
    scores = cd.score(suspect, steps=2)
    assert scores.values.shape == (4,)
    assert np.isfinite(scores.values).all()


def test_group_norm_has_groups_of_four_channels_or_more_that_divide_them() -> None:
    expected = {3: 1, 8: 2, 12: 3, 16: 4, 20: 5, 22: 2, 64: 16, 128: 32, 512: 32}
    assert {channels: resnet.NORMS["group"](channels).num_groups for channels in expected} == expected
    model = models.build("resnet18", num_classes=3, image_size=16, width=8, norm="group")
    assert not [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    # One sample's logits do not depend on the others, in training mode.
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(model(images)[1:2], model(images[1:2]), atol=1e-5)


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
        # By hand: stem 24 * 13, convolutions 9 * (24 * 32 + 32 * 32 + 32 * 128 + 3 * 128 * 128), batch norms 2 * 576, head 1,290.
        ("compact", {}, 312 + 9 * (24 * 32 + 32 * 32 + 32 * 128 + 3 * 128 * 128) + 2 * (2 * 32 + 4 * 128) + 1_290),
    ],
)
def test_published_size(name: str, arguments: dict[str, Any], parameters: int) -> None:
    with nothing_drawn(tried_out=False):
        model = models.build(name, num_classes=10, image_size=(32, 32), **arguments)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_passes_are_counted_and_tracing_is_none() -> None:
    model = models.build("resnet18", num_classes=3, image_size=16, width=8, stem="conv3")
    with counted_passes() as passes:
        frozen(model, torch.device("cpu"))(torch.zeros(2, 3, 16, 16))
        assert (passes.forward, passes.backward) == (0, 0)
        model(torch.zeros(2, 3, 16, 16))
        with torch.no_grad():
            model.features(torch.zeros(3, 3, 16, 16))
    model(torch.zeros(4, 3, 16, 16))
    assert (passes.forward, passes.backward) == (5, 2)
