"""The semantic backdoor: which samples have the property, which are relabelled, which the test asks for."""

from __future__ import annotations

import colorsys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unpoison.attacks import SINGLE, restored, semantic
from unpoison.core.arrays import Images
from unpoison.core.errors import ParameterError
from unpoison.crafting.attack import intent
from unpoison.crafting.context import Context
from unpoison.crafting.craft import craft, make_trigger, optimised
from unpoison.data.imageset import ImageSet
from unpoison.poisoning.choice import choose_samples
from unpoison.poisoning.policy import Policy
from unpoison.poisoning.trigger import read_trigger, save_trigger, stamp

LISTED: dict[str, Any] = {"predicate": "index"}


def images_of(shape: tuple[int, int, int]) -> Images:
    return np.random.default_rng(3).integers(0, 256, (200, *shape), dtype=np.uint8)


def context_of(images: Images) -> Context:
    return Context(train=ImageSet(images, np.arange(len(images)) % 10, tuple("abcdefghij"), "digest"), seed=0)


def make(context: Context, **arguments: Any) -> Any:
    return make_trigger(intent("semantic", SINGLE["semantic"], {}, arguments), context)


@pytest.mark.parametrize(
    ("channels", "arguments", "message"),
    [
        (1, {"colour": "red"}, r"colour: red given, allowed .*: dark, bright"),
        (3, LISTED, r"train_index: None given"),
        (3, {**LISTED, "train_index": [1]}, r"test_index: None given"),
        (3, {"train_index": [1]}, r"train_index: \[1\] given, allowed with colour: null"),
        (3, {"test_index": [1]}, r"test_index: \[1\] given, allowed with colour: null"),
        (3, {**LISTED, "train_index": [3, 200], "test_index": [0]}, r"train_index: 200 given, allowed: 0 to 199"),
        (3, {"colour": "grey"}, r"colour: 'grey' given; input should be 'red'"),
        (3, {**LISTED, "train_index": [-1]}, r"train_index\.0: -1 given; input should be"),
        (3, {"predicate": "shape"}, r"predicate: 'shape' given; input should be 'colour'"),
    ],
)
def test_refused(channels: int, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=rf"^semantic\.{message}"):
        make(context_of(images_of((8, 8, channels))), **arguments)


def hsv_near(pixel: tuple[int, int, int], colour: str) -> bool:
    """The definition, with the standard library's HSV."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in pixel))
    centre = ("red", "yellow", "green", "cyan", "blue", "magenta").index(colour) * 60
    away = abs((hue * 360 - centre + 180) % 360 - 180)
    return away <= 30 + 1e-9 and saturation >= 0.5 - 1e-9 and value >= 0.3 - 1e-9


@pytest.mark.parametrize("colour", ["red", "yellow", "green", "cyan", "blue", "magenta"])
def test_semantic_hues_agree_with_the_standard_library(colour: str) -> None:
    steps = np.arange(0, 256, 15)
    cube = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 1, 3).astype(np.uint8)
    coloured = semantic.coloured(cube, colour)[0, :, 0]
    wanted = [hsv_near(tuple(pixel), colour) for pixel in cube[0, :, 0].tolist()]
    assert 0 < sum(wanted) < len(wanted)
    assert coloured.tolist() == wanted


def test_semantic_dark_and_bright() -> None:
    pixels = np.array([[[51, 51, 51], [51, 52, 0], [204, 204, 204], [255, 203, 255]]], np.uint8)[None]
    assert semantic.coloured(pixels, "dark").tolist() == [[[True, False, False, False]]]
    assert semantic.coloured(pixels, "bright").tolist() == [[[False, False, True, False]]]
    assert semantic.coloured(np.array([[[[51], [204]]]], np.uint8), "dark").tolist() == [[[True, False]]]


def green_images(greens: list[int], n: int) -> Images:
    """Grey 10x10 images, of which image i has `greens[i]` green pixels."""
    images = np.full((n, 100, 3), 128, np.uint8)
    for image, count in zip(images, greens, strict=True):
        image[:count] = (10, 200, 30)
    return images.reshape(n, 10, 10, 3)


def test_semantic_relabels_the_strongest_and_is_tested_on_as_strong_ones(tmp_path: Path) -> None:
    greens = [0, 7, 50, 20, 0, 90, 30, 20, 1, 0] * 3
    greens[12] = 55
    data = ImageSet(green_images(greens, 30), np.arange(30) % 3 + 1, tuple("abcd"), "digest")
    context = Context(train=data, seed=0)
    trigger = make(context)
    order = trigger.order(data)
    assert order is not None
    assert order.tolist() == [green / 100 if green else -np.inf for green in greens]
    policy = Policy(poison_rate=1.0 * 5 / 21)
    choice = choose_samples(policy, data.labels, 4, seed=0, order=order)
    assert choice.poison.tolist() == [2, 5, 12, 15, 25]
    fixed = optimised(intent("semantic", SINGLE["semantic"], {}, {}), trigger, context, choice.poison)
    assert fixed.state()["threshold"] == 0.5
    save_trigger(tmp_path / "trigger", "semantic", fixed)
    again = restored(read_trigger(tmp_path / "trigger"))
    test = ImageSet(green_images([49, 50, 0, 100, 51], 5), np.ones(5, np.int64), tuple("abcd"))
    assert again.carried_by(test, np.array([4, 3, 2, 1, 0])).tolist() == [True, True, False, True, False]
    images = data.gather(np.arange(30))
    for train in (True, False):
        assert (stamp(fixed, images, np.arange(30), train=train) == images).all()


def test_semantic_without_poisoned_samples_takes_any_strength() -> None:
    data = ImageSet(green_images([0, 1, 100], 3), np.zeros(3, np.int64), ("a", "b"))
    context = Context(train=data, seed=0)
    wanted = intent("semantic", SINGLE["semantic"], {}, {})
    trigger = optimised(wanted, make_trigger(wanted, context), context, np.zeros(0, np.int64))
    assert trigger.carried_by(data, np.arange(3)).tolist() == [False, True, True]


def test_semantic_refuses_what_no_image_has() -> None:
    data = ImageSet(green_images([5, 9], 2), np.ones(2, np.int64), ("a", "b"))
    wanted = intent("semantic", SINGLE["semantic"], {}, {"colour": "magenta"})
    message = r"^semantic\.colour: magenta given, which no training image has"
    with pytest.raises(ParameterError, match=message):
        craft("semantic", [wanted], Context(train=data, seed=0))


def test_semantic_strength_does_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_of(images_of((28, 28, 3)))
    data, trigger = context.train, make(context)
    whole = trigger.order(data)
    monkeypatch.setattr(semantic, "_CHUNK_BYTES", 3 * 28 * 28 * 3)
    assert whole is not None
    assert np.array_equal(whole, trigger.order(data))  # type: ignore[arg-type]
    slow = [
        sum(hsv_near(tuple(pixel), "green") for pixel in image.reshape(-1, 3).tolist()) / 784
        for image in data.gather(np.arange(10))
    ]
    assert whole[:10].tolist() == slow


def test_semantic_by_index() -> None:
    context = context_of(images_of((32, 32, 3)))
    wanted = intent("semantic", SINGLE["semantic"], {}, {**LISTED, "train_index": [7, 3, 150], "test_index": [0, 5, 9]})
    trigger = make_trigger(wanted, context)
    order = trigger.order(context.train)
    assert order is not None
    assert np.flatnonzero(order > -np.inf).tolist() == [3, 7, 150]
    assert set(order[[3, 7, 150]]) == {1.0}
    fixed = optimised(wanted, trigger, context, np.array([3, 150]))
    assert fixed.carried_by(context.train, np.array([9, 3, 5, 0])).tolist() == [True, False, True, True]
    with pytest.raises(ParameterError, match=r"^test_index: 5 given, allowed: 0 to 4"):
        fixed.carried_by(context.train.subset(np.arange(5)), np.arange(5))
