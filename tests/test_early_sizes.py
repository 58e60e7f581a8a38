"""What follows from the images' size is said before a stage runs, where the size is known."""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

import check_params
from parameters import load_params
from unpoison import models
from unpoison.core.errors import UserError

DEFAULT = load_params(Path(__file__).resolve().parent.parent)


def checked(**changes: Any) -> None:
    params: Any = deepcopy(dict(DEFAULT))
    for key, value in changes.items():
        *sections, last = key.split("__")
        inner = params
        for name in sections:
            inner = inner[name]
        inner[last] = value
    check_params.check_all(params)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "svhn"])
def test_published_sets_go_with_the_default_prior(name: str) -> None:
    checked(data__name=name)


@pytest.mark.parametrize("side", [8, 9, 28, 30, 224])
def test_sides_from_8_up_go_with_the_default_prior(side: int) -> None:
    checked(data__name="folder", data__path=str(Path(__file__).parent), data__image_size=side)


FOLDER = {"data__name": "folder", "data__path": str(Path(__file__).parent), "data__image_size": 16}
PURIFIERS = "params/purifiers.yaml"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"data__name": "mnist", "prior__channels": [8] * 6},
            r"^params\.yaml: prior\.channels: \[8, 8, 8, 8, 8, 8\] with uns",
        ),
        (
            {"prior__channels": [8, 12]},
            r"^params\.yaml: prior\.channels: \[8, 12\] given, allowed: one to eight multiples of 8",
        ),
        (
            {"model": {"name": "timm:test_vit"}},
            r"^params\.yaml: train\.whiten: true given, allowed: for networks that begin with a convolution of at most 512",
        ),
        (
            {"model": {"name": "timm:test_vit"}, "train__whiten": False},
            r"^params\.yaml: distill\.train\.whiten: true given, allowed: for networks that begin with",
        ),
        (
            {"robust__model": {"name": "timm:test_vit"}, "robust__methods": ["abl"]},
            r"^params\.yaml: train\.whiten: true given, allowed: .*; false \(for the network of robust\.model\)$",
        ),
        (
            {**FOLDER, "robust__model": {"name": "vgg19_bn"}, "robust__methods": ["abl"]},
            r"^params\.yaml: robust\.model: vgg19_bn: cannot be built for images of 16x16 px, 3 channels: RuntimeError",
        ),
        (
            {**FOLDER, "train__batch_size": 1},
            r"^params\.yaml: train\.batch_size: 1 given for images of 16x16 px, .*at least 2",
        ),
        (
            {**FOLDER, "distill__train__batch_size": 1},
            r"^params\.yaml: distill\.train\.batch_size: 1 given for images of 16x16",
        ),
        (
            {**FOLDER, f"{PURIFIERS}__fst__batch_size": 1},
            r"^params/purifiers\.yaml: fst\.batch_size: 1 given for images of 16x16",
        ),
        (
            {**FOLDER, "data__reserve": 1, "detect__methods": []},
            r"^params/purifiers\.yaml: ft\.batch_size: .* 1 image .*data\.res",
        ),
    ],
)
def test_what_does_not_go_is_said_at_once(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        checked(**changes)


@pytest.mark.parametrize(
    ("changes", "most", "least"),
    [
        ({"data__name": "cifar10"}, 50_000 - 600 - 1200, 30),
        ({"data__name": "cifar100", "data__trusted": "test"}, 50_000, 300),
        ({"data__name": "cifar10", "data__train_limit": 5000}, 5000, 30),
        # Of a folder the classes are not known, and the images where there is a limit.
        ({**FOLDER, "data__train_limit": 100}, 100, 1),
    ],
)
def test_a_sample_that_detectors_cannot_have_is_said_at_once(changes: dict[str, Any], most: int, least: int) -> None:
    for fits in (least, most):
        checked(**changes, detect__sample=fits)
    with pytest.raises(UserError, match=rf"^params\.yaml: detect\.sample: {most + 1} given, allowed: at most {most},"):
        checked(**changes, detect__sample=most + 1)
    if least > 1:
        with pytest.raises(UserError, match=rf"^params\.yaml: detect\.sample: {least - 1} given, .* least {least},"):
            checked(**changes, detect__sample=least - 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"data__name": "cifar10"}, None),
        ({"data__name": "digits"}, r"/model\.json: a model for the classes 'x0', 'x1', .*, the data have '0', '1', "),
        ({"data__name": "gtsrb"}, r"/model\.json: a model for 10 classes, the data have 43$"),
        (
            {"data__name": "mnist"},
            r"/model\.json: a model for images of 3 channels, the data have 1$",
        ),
        (
            {"data__image_size": 8},
            r"/model\.json: a model for images of 40x40 px, whose network cannot take the data's of 8x8 px: ",
        ),
        (
            {"data__image_size": 16, "distill__model": {"name": "vgg19_bn"}},
            r"^params\.yaml: distill\.model: vgg19_bn: c",
        ),
        ({"distill__model": {"stem": "conv3"}}, r"^params\.yaml: distill\.model\.stem: unknown key, allowed: width$"),
    ],
)
def test_what_a_teacher_cannot_teach_is_said_at_once(changes: dict[str, Any], said: str | None, tmp_path: Path) -> None:
    model = models.build("compact", num_classes=10, image_size=40, width=8)
    models.save(model, tmp_path, classes=tuple(f"x{number}" for number in range(10)), made_by={})
    changes = {**FOLDER, "data__image_size": None, "distill__teacher": str(tmp_path), **changes}
    with nullcontext() if said is None else pytest.raises(UserError, match=said):
        checked(**changes)


def test_a_network_of_robust_methods_does_not_matter_without_them() -> None:
    checked(**FOLDER, robust__model={"name": "vgg19_bn"})


def test_batches_of_one_image_are_fine_where_maps_are_larger() -> None:
    checked(train__batch_size=1)
