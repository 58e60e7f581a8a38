"""Patches, blends and waves: to the pixel as published, and against a slow version that takes one image at a time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unpoison.attacks import SINGLE
from unpoison.core.arrays import Images, IntArray
from unpoison.core.errors import ParameterError
from unpoison.core.seeding import numpy_rng, uniform
from unpoison.crafting import patterns
from unpoison.crafting.attack import intent
from unpoison.crafting.context import Context
from unpoison.crafting.craft import make_trigger
from unpoison.data.imageset import ImageSet
from unpoison.poisoning.trigger import Trigger, stamp

CLEAR = -1
OPEN, PIXEL, CORNERS = ({"pattern": name} for name in ("backdoors101", "single_pixel", "four_corners"))


def noise(n: int, height: int = 32, width: int = 32, channels: int = 3) -> Images:
    return np.random.default_rng(0).integers(0, 256, (n, height, width, channels), dtype=np.uint8)


def make(attack: str, images: Images, /, seed: int = 0, **arguments: Any) -> Trigger:
    train = ImageSet(images, np.zeros(len(images), np.int64), ("a", "b"), "digest")
    return make_trigger(intent(attack, SINGLE[attack], {}, arguments), Context(train=train, seed=seed))


def stamped(attack: str, images: Images, /, *, train: bool = True, **arguments: Any) -> Images:
    return stamp(make(attack, images, **arguments), images, np.arange(len(images)), train=train)


GRID = [[0, 0, 255], [0, 255, 0], [255, 0, 255]]
BACKDOORS101 = [[255, 0, 255], [CLEAR, 255, CLEAR], [CLEAR, CLEAR, 0], [CLEAR, 255, CLEAR], [255, 0, 255]]
CD3 = [[0, 0, 255], [0, 255, 0], [255, 255, 0]]


# Arguments, image side, then each block's first row, first column and cells.
@pytest.mark.parametrize(
    ("arguments", "side", "blocks"),
    [
        ({}, 32, [(29, 29, [[0, 255, 0], [255, 0, 255], [0, 255, 0]])]),
        ({"pattern": "checkerboard", "size": 2}, 28, [(26, 26, [[0, 255], [255, 0]])]),
        ({"pattern": "grid"}, 32, [(29, 29, [[255, 1, 255], [1, 255, 1], [255, 1, 255]])]),
        ({"pattern": "white", "margin": 1}, 32, [(28, 28, [[255] * 3] * 3)]),
        ({"pattern": "black", "size": 1, "location": "bottom_right"}, 32, [(31, 31, [[0]])]),
        ({"pattern": "#0a0a0a"}, 32, [(29, 29, [[10] * 3] * 3)]),
        ({"pattern": "checkerboard_#010101_#020202"}, 32, [(29, 29, [[2, 1, 2], [1, 2, 1], [2, 1, 2]])]),
        ({"pattern": "dbr_grid"}, 32, [(29, 29, GRID)]),
        ({"pattern": "cd"}, 32, [(29, 29, CD3)]),
        ({"pattern": "cd", "location": "center"}, 32, [(13, 13, CD3)]),
        ({"pattern": "cd", "location": "center"}, 224, [(109, 109, CD3)]),
        (
            {"pattern": "cd", "size": 4},
            32,
            [(28, 28, [[0, 0, 255, 255], [0, 255, 0, 0], [255, 255, 0, 0], [255, 255, 0, 0]])],
        ),
        ({"pattern": "single_pixel"}, 32, [(3, 23, [[255]])]),
        ({"pattern": "single_pixel", "location": "bottom_right"}, 28, [(27, 27, [[255]])]),
        ({"pattern": "backdoors101"}, 32, [(3, 23, BACKDOORS101)]),
        ({"pattern": "backdoors101"}, 28, [(3, 23, BACKDOORS101)]),
        ({"pattern": "backdoors101", "size": 6}, 64, [(3, 23, np.kron(BACKDOORS101, np.ones((2, 2), int)))]),
        ({"pattern": "backdoors101", "location": "bottom_right"}, 32, [(27, 29, BACKDOORS101)]),
        (
            {"pattern": "four_corners"},
            32,
            [
                (29, 29, GRID),
                (1, 1, [[255, 0, 255], [0, 255, 0], [255, 0, 0]]),
                (29, 1, [[255, 0, 0], [0, 255, 0], [255, 0, 255]]),
                (1, 29, [[255, 0, 255], [0, 255, 0], [0, 0, 255]]),
            ],
        ),
        (
            {"pattern": "lc_corners"},
            32,
            [
                (row, column, cells)
                for column, cells in ((0, [[255, 0, 0], [0, 255, 0], [255, 0, 255]]), (29, GRID))
                for row in (0, 29)
            ],
        ),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_patches_to_the_pixel(
    arguments: dict[str, Any], side: int, blocks: list[tuple[int, int, list[list[int]]]], channels: int
) -> None:
    images = noise(2, side, side, channels)
    expected = images.copy()
    for row, column, cells in blocks:
        for i, line in enumerate(cells):
            for j, cell in enumerate(line):
                if cell != CLEAR:
                    expected[:, row + i, column + j] = cell
    assert (stamped("badnets", images, **arguments) == expected).all()


def test_colours() -> None:
    named = {"pattern": "checkerboard_#ff0000_#0000fe", "size": 2}
    colour = stamped("badnets", noise(1), **named)[0, 30:, 30:].tolist()
    assert colour == [[[0, 0, 254], [255, 0, 0]], [[255, 0, 0], [0, 0, 254]]]
    assert stamped("badnets", noise(1, channels=1), **named)[0, 30:, 30:, 0].tolist() == [[29, 76], [76, 29]]


def test_lc_corners_are_the_nearest_resize_of_those_at_32_pixels() -> None:
    small = patterns.lc_corners(32, 32)
    for times in (2, 7):
        large = patterns.lc_corners(32 * times, 32 * times, 3 * times)
        for few, many in zip(small, large, strict=True):
            assert (np.kron(few, np.ones((1, times, times))) == many).all()
    signs = (2 * small.values - 255) * small.mask
    assert sorted(np.unique(signs).tolist()) == [-255, 0, 255]
    assert (signs != 0).sum() == 36


def slow_patch(image: Images, key: int, seed: int, cells: IntArray, dynamic: bool) -> Images:
    """One image. `cells` [p, q]; resized with PIL to the nearest, as published, but with a mask of its own."""
    size, mirror, down, right = uniform(seed, "badnets/place", np.array([key]), 4)[0]
    opaque = cells != CLEAR
    if dynamic:
        edge = 5 + int(size * 6)
        height, width = (int(edge * side / min(cells.shape)) for side in cells.shape)
        parts = [Image.fromarray(part.astype(np.uint8)).resize((width, height), 0) for part in (cells * opaque, opaque)]
        cells, opaque = (np.asarray(part) for part in parts)
        if mirror < 0.5:
            cells, opaque = cells[:, ::-1], opaque[:, ::-1]
    top = int(down * (image.shape[0] - cells.shape[0] + 1))
    left = int(right * (image.shape[1] - cells.shape[1] + 1))
    changed = image.copy()
    for i, j in np.argwhere(opaque):
        changed[top + i, left + j] = cells[i, j]
    return changed


@pytest.mark.parametrize("location", ["random", "dynamic"])
@pytest.mark.parametrize(("pattern", "cells"), [("backdoors101", BACKDOORS101), ("cd", CD3), ("dbr_grid", GRID)])
@pytest.mark.parametrize(("height", "width", "channels"), [(32, 32, 3), (28, 40, 1)])
def test_drawn_places_against_one_image_at_a_time(
    location: str, pattern: str, cells: list[list[int]], height: int, width: int, channels: int
) -> None:
    images = noise(60, height, width, channels)
    keys = np.arange(60) * 7 + 3
    trigger = make("badnets", images, seed=5, pattern=pattern, location=location)
    fast = stamp(trigger, images, keys, train=True)
    slow = [
        slow_patch(image, key, 5, np.array(cells), location == "dynamic")
        for image, key in zip(images, keys.tolist(), strict=True)
    ]
    assert (fast == np.stack(slow)).all()
    assert (stamp(trigger, images, keys, train=False) == fast).all()
    assert (stamp(trigger, images[7:9], keys[7:9], train=True) == fast[7:9]).all()
    assert (
        stamp(make("badnets", images, seed=6, pattern=pattern, location=location), images, keys, train=True) != fast
    ).any()


def test_drawn_places_reach_the_whole_image() -> None:
    black = np.zeros((2000, 28, 30, 1), np.uint8)
    rows, columns = np.nonzero(stamped("badnets", black, pattern="white", size=1, location="random")[..., 0])[1:]
    assert (set(rows), set(columns)) == (set(range(28)), set(range(30)))
    assert (rows == columns).mean() < 0.1
    dynamic = stamped("badnets", black, pattern="white", location="dynamic")[..., 0] > 0
    assert set(dynamic.any(1).sum(1).tolist()) == set(dynamic.any(2).sum(1).tolist()) == {5, 6, 7, 8, 9, 10}
    assert dynamic.any((0, 1)).all()
    assert dynamic.any((0, 2)).all()


def test_noise_blend_is_the_seeded_draw_and_truncated() -> None:
    images = noise(3)
    pattern = numpy_rng(4, "blended/noise").integers(0, 256, (32, 32, 3), dtype=np.uint8)
    expected = (images.astype(int) * 8 + pattern.astype(int) * 2) // 10
    assert (stamped("blended", images, seed=4) == expected).all()
    other = (images.astype(int) * 9 + pattern.astype(int)) // 10
    trigger = make("blended", images, seed=4, test_ratio=0.1)
    assert (stamp(trigger, images, np.arange(3), train=True) == expected).all()
    assert (stamp(trigger, images, np.arange(3), train=False) == other).all()
    assert (stamped("blended", images, seed=5) != expected).any()


def test_struppek_noise_is_the_published_pattern() -> None:
    pattern = stamped("blended", noise(1, 8, 8), pattern="struppek_noise", ratio=1.0, seed=9)
    assert pattern[0, 0, :3].tolist() == [[132, 167, 181], [199, 126, 125], [70, 164, 85]]


STRIP = [0, 14, 19, 13, 255, 241, 237, 244]


@pytest.mark.parametrize("channels", [1, 3])
def test_strip_to_the_pixel(channels: int) -> None:
    images = noise(2, channels=channels)
    bare = stamped("blended", images, pattern="strip", ratio=1.0)
    assert bare[0, 0, :8, 0].tolist() == STRIP
    wave = [math.trunc(20 * math.sin(0.8 * j)) % 256 for j in range(32)]
    assert (bare == np.array(wave)[:, None]).all()
    mixed = (images.astype(int) * 8 + np.array(wave)[:, None] * 2) // 10
    assert (stamped("blended", images, pattern="strip") == mixed).all()
    for train in (True, False):
        assert (stamped("sig", images, form="strip", train=train) == mixed).all()


def test_image_file_is_resized_and_truncated(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9), (255, 0, 100)).save(tmp_path / "p.png")
    path = str(tmp_path / "p.png")
    assert stamped("blended", np.full((1, 32, 32, 3), 101, np.uint8), pattern=path)[0, 0, 0].tolist() == [131, 80, 100]
    # 0.8 * 255 + 0.2 * 255 is a little below 255 in floating point; it is 255.
    assert (stamped("blended", np.full((1, 32, 32, 3), 255, np.uint8), pattern=path)[..., 0] == 255).all()
    assert (stamped("blended", np.zeros((1, 30, 34, 1), np.uint8), pattern=path, ratio=1.0) == 88).all()


@pytest.mark.parametrize(("height", "width", "frequency"), [(32, 32, 6), (28, 50, 6), (32, 32, 3)])
def test_sine_against_a_double_loop(height: int, width: int, frequency: int) -> None:
    images = noise(2, height, width)
    for train, delta in ((True, 40), (False, 60)):
        slow = images.astype(np.float32)
        for i in range(height):
            for j in range(width):
                slow[:, i, j] += np.float32(delta * math.sin(2 * math.pi * j * frequency / width))
        expected = slow.clip(0, 255).astype(np.uint8)
        fast = stamped("sig", images, test_delta=60, frequency=frequency, train=train)
        # A sine that is an exact number on paper may be a little off in one of the two.
        assert (fast == expected).mean() > 0.9999 if width != 32 else (fast == expected).all()
        assert np.abs(fast.astype(int) - expected).max() <= 1
    assert (stamped("sig", images, train=False) == stamped("sig", images, train=True)).all()


@pytest.mark.parametrize(
    ("attack", "arguments", "side", "message"),
    [
        ("badnets", {"pattern": "stripes"}, 32, r"pattern: 'stripes' given, allowed: checkerboard, .*lc_corners$"),
        ("badnets", {"pattern": "#12345"}, 32, r"pattern: '#12345' given"),
        ("badnets", {"size": 33}, 32, r"size: 33 given, allowed: 1 to 32"),
        ("badnets", {"size": 0}, 32, r"size: 0 given"),
        ("badnets", {"pattern": "backdoors101"}, 24, r"pattern: 'backdoors101' given, allowed: .* of 24 x 24 pixels"),
        ("badnets", {"pattern": "single_pixel"}, 20, r"pattern: 'single_pixel' given, allowed: .* of 20 x 20 pixels"),
        ("badnets", {"pattern": "backdoors101", "size": 10}, 32, r"pattern: 'backdoors101' given, allowed: .* 32 x 32"),
        ("badnets", {**OPEN, "location": "dynamic"}, 15, r"pattern: 'backdoors101' given, allowed: .* 15 x 15"),
        ("badnets", {**OPEN, "location": "random", "size": 20}, 32, r"pattern: 'backdoors101' given, .* 32 x 32"),
        ("badnets", {"margin": 30}, 32, r"margin: 30 given, allowed: .* 32 x 32"),
        ("badnets", {"margin": 1, "location": "random"}, 32, r"margin: 1 given, allowed: 0, or location bottom_right"),
        ("badnets", {"margin": 1, **PIXEL}, 32, r"margin: 1 given, allowed: 0, or location bottom_right"),
        ("badnets", {"size": 4, "location": "dynamic"}, 32, r"size: 4 given, allowed with location dynamic: null"),
        ("badnets", {**PIXEL, "size": 3}, 32, r"size: 3 given, allowed with single_pixel: 1 or null"),
        ("badnets", {**PIXEL, "location": "dynamic"}, 32, r"location: 'dynamic' given, allowed with single_pixel"),
        ("badnets", {**CORNERS, "location": "random"}, 32, r"location: 'random' given, allowed with four_corners"),
        ("badnets", {"pattern": "lc_corners", "margin": 1}, 32, r"margin: 1 given, allowed with lc_corners, .* own: 0"),
        ("badnets", {**CORNERS, "size": 16}, 32, r"size: 16 given, allowed with four_corners: 1 to 15"),
        ("badnets", {"pattern": "lc_corners", "size": 17}, 32, r"size: 17 given, allowed with lc_corners: 1 to 16"),
        ("badnets", {"location": "top"}, 32, r"location: 'top' given"),
        ("blended", {"pattern": "nowhere.png"}, 32, r"pattern: 'nowhere\.png' given .* allowed: noise, .* image file"),
        ("blended", {"pattern": __file__}, 32, r"pattern: .* given \(not a readable"),
        ("blended", {"ratio": 1.5}, 32, r"ratio: 1\.5 given"),
        ("sig", {"form": "strip", "delta": 30}, 32, r"delta: 30 given, allowed with form strip, .* 40, the default"),
        ("sig", {"form": "strip", "test_delta": 60}, 32, r"test_delta: 60 given, allowed with form strip, .* null"),
        (
            "sig",
            {"form": "strip", "frequency": 3},
            32,
            r"frequency: 3 given, allowed with form strip, .* 6, the default",
        ),
        ("sig", {"frequency": 0}, 32, r"frequency: 0 given"),
    ],
)
def test_refused(attack: str, arguments: dict[str, Any], side: int, message: str) -> None:
    with pytest.raises(ParameterError, match=rf"^{attack}\.{message}"):
        make(attack, noise(1, side, side), **arguments)


@pytest.mark.parametrize("kept", [20, 60, 2000])
def test_a_damaged_image_file_is_named(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "half.png"
    Image.fromarray(noise(1)[0]).save(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ParameterError, match=r"^blended\.pattern: '.*half\.png' given \(.*\), allowed: noise, "):
        make("blended", noise(1), pattern=str(path))
