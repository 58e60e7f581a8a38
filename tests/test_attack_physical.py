"""The sticker of `physical`: pixels where it lies straight on the grid, perspective and blur by hand, ranges over many draws."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from unpoison.attacks import SINGLE, physical
from unpoison.attacks.physical import Sticker, blurred, projection
from unpoison.core.arrays import IntArray
from unpoison.core.errors import ParameterError
from unpoison.crafting.attack import intent
from unpoison.crafting.context import Context
from unpoison.crafting.craft import make_trigger
from unpoison.data.imageset import ImageSet

STRAIGHT: dict[str, Any] = {"rotation": 0.0, "tilt": 0.0, "blur": [0.0, 0.0], "light": [1.0, 1.0]}
# The draws of an image: size, rotation, two tilts, blur, light, row, column. Half of the free rows and columns: the middle.
MIDDLE = (0.5,) * 8
CLEAR = -1


def make(side: int = 32, channels: int = 3, **arguments: Any) -> Sticker:
    images = np.zeros((2, side, side, channels), np.uint8)
    train = ImageSet(images, np.zeros(2, np.int64), ("a", "b"), "digest")
    made = make_trigger(intent("physical", SINGLE["physical"], {}, arguments), Context(train=train, seed=3))
    assert isinstance(made, Sticker)
    return made


def shown(trigger: Sticker, ground: float, side: int, channels: int = 1, keys: int = 1) -> torch.Tensor:
    """Training images of one grey with the sticker, float32 [keys, c, h, w]."""
    return trigger.apply(torch.full((keys, channels, side, side), ground), np.arange(keys), train=True)


def drawing(monkeypatch: pytest.MonkeyPatch, *draws: float) -> None:
    def uniform(seed: int, purpose: str, keys: IntArray, count: int) -> NDArray[np.float64]:
        assert count == len(draws)
        return np.tile(draws, (len(keys), 1))

    monkeypatch.setattr(physical, "uniform", uniform)


def pasted(cells: list[list[int]], ground: int, side: int) -> NDArray[np.float64]:
    """A pattern in the middle of a grey image."""
    image, first = np.full((side, side), float(ground)), (side - len(cells)) // 2
    for row, line in enumerate(cells):
        for column, cell in enumerate(line):
            if cell != CLEAR:
                image[first + row, first + column] = cell
    return image


CHECKERS = [[0, 255, 0], [255, 0, 255], [0, 255, 0]]
UPRIGHT = [
    [CLEAR, 255, 0, 255, CLEAR],
    [CLEAR, CLEAR, 255, CLEAR, CLEAR],
    [CLEAR, CLEAR, CLEAR, 0, CLEAR],
    [CLEAR, CLEAR, 255, CLEAR, CLEAR],
    [CLEAR, 255, 0, 255, CLEAR],
]
# A quarter turn clockwise: what was on the right is at the bottom.
TURNED = [
    [CLEAR, CLEAR, CLEAR, CLEAR, CLEAR],
    [255, CLEAR, CLEAR, CLEAR, 255],
    [0, 255, CLEAR, 255, 0],
    [255, CLEAR, 0, CLEAR, 255],
    [CLEAR, CLEAR, CLEAR, CLEAR, CLEAR],
]


class TestStraightOn:
    # A third of 9 or of 15 pixels: cells of one pixel, whose two by two samples are at the centres of what is drawn.
    @pytest.mark.parametrize(
        ("pattern", "side", "rotation", "cells"),
        [
            ("checkerboard", 9, 0.5, CHECKERS),
            ("backdoors101", 15, 0.5, UPRIGHT),
            ("backdoors101", 15, 0.75, TURNED),
            ("single_pixel", 8, 0.5, [[255] * 4] * 4),
        ],
    )
    @pytest.mark.parametrize("channels", [1, 3])
    def test_a_pixel_of_each_cell(
        self,
        pattern: str,
        side: int,
        rotation: float,
        cells: list[list[int]],
        channels: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        size = len(cells) / side
        trigger = make(side, channels, pattern=pattern, **{**STRAIGHT, "size": [size, size], "rotation": 180.0})
        drawing(monkeypatch, 0.5, rotation, *MIDDLE[2:])
        image = shown(trigger, 70.0, side, channels)
        expected = torch.from_numpy(pasted(cells, 70, side)).expand(channels, -1, -1)
        assert (image[0] - expected).abs().max() < 0.05

    def test_half_a_pixel_further_on_it_is_half_in_two(self, monkeypatch: pytest.MonkeyPatch) -> None:
        trigger = make(8, 1, pattern="single_pixel", size=[0.5, 0.5], **STRAIGHT)
        # Four of eight columns are free, so an eighth of them more than half is half a pixel.
        drawing(monkeypatch, *MIDDLE[:7], 0.625)
        row = shown(trigger, 0.0, 8)[0, 0, 3]
        assert row.tolist() == pytest.approx([0, 0, 127.5, 255, 255, 255, 127.5, 0], abs=0.05)

    @pytest.mark.parametrize(("factor", "expected"), [(0.5, 127.5), (1.0, 255.0), (3.0, 255.0)])
    def test_light_is_a_factor_that_ends_at_white(
        self, factor: float, expected: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trigger = make(8, 1, pattern="single_pixel", size=[0.5, 0.5], **{**STRAIGHT, "light": [factor, factor]})
        drawing(monkeypatch, *MIDDLE)
        assert shown(trigger, 10.0, 8)[0, 0, 2:6, 2:6].flatten().tolist() == pytest.approx([expected] * 16, abs=0.05)

    def test_the_face_is_a_yellow_disc_with_eyes_and_a_mouth(self, monkeypatch: pytest.MonkeyPatch) -> None:
        trigger = make(40, 3, size=[0.5, 0.5], **STRAIGHT)
        drawing(monkeypatch, *MIDDLE)
        red, green, blue = shown(trigger, 100.0, 40, 3)[0]
        yellow = (red - 255).abs() + (green - 204).abs() + blue < 3
        # The middle, and neither the square's corner nor an eye nor the mouth.
        assert yellow[20, 20]
        assert (red[10, 10], green[10, 10], blue[10, 10]) == (100, 100, 100)
        for row, column in ((17, 17), (17, 23), (26, 20)):
            assert red[row, column] < 60
        hidden = (torch.stack([red, green, blue]) - 100).abs().sum(0) > 1
        assert hidden.sum() == pytest.approx(math.pi * 10**2, rel=0.15)
        grey = shown(make(40, 1, size=[0.5, 0.5], **STRAIGHT), 100.0, 40, 1)[0, 0]
        assert grey[20, 20] == pytest.approx(0.299 * 255 + 0.587 * 204, abs=0.05)


class TestPerspective:
    def test_a_tilt_of_30_degrees_by_hand(self) -> None:
        sine, cosine = 0.5, math.sqrt(0.75)
        flat, tilt = np.zeros(1), np.full(1, math.pi / 6)
        points = np.array([[0, 1, 1], [0, -1, 1], [1, 1, 1], [0, 0, 1]])
        across, down = (points @ projection(flat, *turn)[0].T for turn in ((tilt, flat), (flat, tilt)))
        # The lower edge is further away, and so nearer to the middle and shorter.
        low, high = 4 * cosine / (4 + sine), -4 * cosine / (4 - sine)
        assert across[:, :2] / across[:, 2:] == pytest.approx(np.array([[0, low], [0, high], [4 / 4.5, low], [0, 0]]))
        # About the other axis it is the left edge: of (1, 1) the near right one is seen.
        near = 4 - sine
        assert (down[:, :2] / down[:, 2:])[2] == pytest.approx([4 * cosine / near, 4 / near])

    def test_a_turn_comes_before_the_tilt(self) -> None:
        quarter, tilt = np.full(1, math.pi / 2), np.full(1, math.pi / 6)
        x, y, depth = projection(quarter, tilt, np.zeros(1))[0] @ [1, 0, 1]
        # Its right edge is turned to the bottom, where the tilt takes it away.
        assert (x / depth, y / depth) == pytest.approx((0, 4 * math.sqrt(0.75) / 4.5))

    def test_rendered_where_it_is_projected(self, monkeypatch: pytest.MonkeyPatch) -> None:
        trigger = make(64, 1, pattern="single_pixel", **{**STRAIGHT, "size": [0.5, 0.5], "tilt": 60.0})
        drawing(monkeypatch, 0.5, 0.5, 1.0, *MIDDLE[3:])
        alpha = shown(trigger, 0.0, 64)[0, 0] / 255
        sine, cosine = math.sqrt(0.75), 0.5
        top, bottom = 4 * cosine / (4 - sine), 4 * cosine / (4 + sine)
        widths = 4 / (4 - sine) + 4 / (4 + sine)
        # Half its side is 16 pixels: the area of the trapezium, its height and its first row.
        assert alpha.sum() == pytest.approx(16**2 * (top + bottom) * widths, rel=0.02)
        rows = torch.nonzero(alpha.sum(1) > 1).flatten()
        assert len(rows) == pytest.approx(16 * (top + bottom), abs=1.5)
        assert alpha.sum(1)[rows[1]] == pytest.approx(2 * 16 * 4 / (4 - sine), rel=0.05)


def test_blur_by_hand() -> None:
    layer = torch.zeros(3, 1, 9, 9)
    layer[:, 0, 4, 4] = 1
    done = blurred(layer, np.array([0.0, 1.0, 0.5]), 3)
    assert torch.equal(done[0], layer[0])
    for image, deviation in ((1, 1.0), (2, 0.5)):
        weights = [math.exp(-(step**2) / (2 * deviation**2)) for step in range(-3, 4)]
        line = np.array([0, *weights, 0]) / sum(weights)
        assert done[image, 0].numpy() == pytest.approx(np.outer(line, line), abs=1e-6)
    # What is beyond the border is 0.
    layer = torch.ones(1, 1, 1, 3)
    weights = [math.exp(-2), 1, math.exp(-2)]
    assert blurred(layer, np.array([0.5]), 1)[0, 0, 0, 0] == pytest.approx(
        (1 + math.exp(-2)) / sum(weights) * 1 / sum(weights), abs=1e-6
    )


class TestDraws:
    def test_ranges_are_gone_over_and_kept(self) -> None:
        arguments = {**STRAIGHT, "size": [0.2, 0.4], "light": [0.25, 0.75]}
        images = shown(make(64, 1, pattern="single_pixel", **arguments), 0.0, 64, keys=200)[:, 0]
        light = images.amax((1, 2)) / 255
        sides = (images.sum((1, 2)) / (255 * light)).sqrt() / 64
        for values, least, largest in ((light, 0.25, 0.75), (sides, 0.2, 0.4)):
            tenth = (largest - least) / 10
            assert least - tenth / 10 < values.min() < least + tenth
            assert largest - tenth < values.max() < largest + tenth / 10

    @pytest.mark.parametrize("placement", ["anywhere", "bottom_right"])
    def test_the_place_cuts_nothing_off(self, placement: str) -> None:
        arguments = {
            "pattern": "single_pixel",
            "size": [0.6, 0.66],
            "rotation": 180.0,
            "tilt": 60.0,
            "blur": [0.0, 0.0],
        }
        arguments["light"] = [1.0, 1.0]
        there, middle = (
            shown(make(32, 1, placement=where, **arguments), 0.0, 32, keys=200)[:, 0] for where in (placement, "center")
        )
        assert (there != middle).any((1, 2)).all()
        areas = there.sum((1, 2)) / middle.sum((1, 2))
        assert (areas.min(), areas.max()) == pytest.approx((1, 1), abs=0.02)

    def test_placements(self) -> None:
        arguments = {**STRAIGHT, "pattern": "single_pixel", "size": [0.25, 0.25]}
        first: dict[str, NDArray[np.float64]] = {}
        for where in ("anywhere", "center", "bottom_right"):
            images = shown(make(32, 1, placement=where, **arguments), 0.0, 32, keys=200)[:, 0]
            # A quarter of 32 pixels, so 24 are free.
            columns = images.sum(1) / images.sum((1, 2))[:, None]
            first[where] = (columns @ (torch.arange(32) + 0.5) - 4).numpy() / 24
        for where, least, largest in (("anywhere", 0, 1), ("center", 1 / 3, 2 / 3), ("bottom_right", 2 / 3, 1)):
            assert least - 0.01 < first[where].min() < least + 0.05
            assert largest - 0.05 < first[where].max() < largest + 0.01

    def test_the_test_draws_by_itself(self) -> None:
        trigger, keys = make(32), np.arange(4)
        images = torch.full((4, 3, 32, 32), 90.0)
        train, test = (trigger.apply(images, keys, train=train) for train in (True, False))
        assert ((train - test).abs().amax((1, 2, 3)) > 20).all()
        assert torch.equal(test, trigger.apply(images, keys, train=False))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pattern": "smile"}, r"^physical\.pattern: 'smile' given, allowed: face, checkerboard, grid, "),
        ({"pattern": "four_corners"}, r"^physical\.pattern: 'four_corners' given, allowed: face, checkerboard, "),
        (
            {"size": [0.3, 0.2]},
            r"^physical\.size: \[0\.3, 0\.2\] given, allowed: the least and the largest, in this order$",
        ),
        ({"blur": [1.0, 0.5]}, r"^physical\.blur: \[1\.0, 0\.5\] given, allowed: the least and the largest"),
        ({"light": [2.0, 1.0]}, r"^physical\.light: \[2\.0, 1\.0\] given, allowed: the least and the largest"),
        (
            {"size": [0.05, 0.3]},
            r"^physical\.size: \[0\.05, 0\.3\] given, allowed for images of 32 pixels: 0\.0625 or more, two pixels$",
        ),
        (
            {"size": [0.5, 0.7]},
            r"^physical\.size: \[0\.5, 0\.7\] given, allowed with rotation 30 and tilt 30: up to 0\.661, so that",
        ),
        (
            {"size": [0.5, 0.8], "tilt": 0.0},
            r"^physical\.size: \[0\.5, 0\.8\] given, allowed with rotation 30 and tilt 0: up to 0\.732, ",
        ),
    ],
)
def test_what_depends_on_the_data_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        make(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": [0.2]}, r"^physical\.size: \[0\.2\] given; list should have at least 2 items"),
        ({"size": [0.0, 0.3]}, r"^physical\.size\.0: 0\.0 given; input should be greater than 0$"),
        ({"blur": [0.0, 17.0]}, r"^physical\.blur\.1: 17\.0 given; input should be less than or equal to 16$"),
        ({"light": [0.5, math.inf]}, r"^physical\.light\.1: inf given; input should be a finite number$"),
        ({"tilt": 61.0}, r"^physical\.tilt: 61\.0 given; input should be less than or equal to 60$"),
        ({"rotation": math.nan}, r"^physical\.rotation: nan given; input should be a finite number$"),
        (
            {"placement": "random"},
            r"^physical\.placement: 'random' given; input should be 'anywhere', 'center' or 'bottom_right'$",
        ),
    ],
)
def test_values_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        make(**arguments)


def test_a_sticker_as_large_as_the_image_where_it_is_seen_straight_on(monkeypatch: pytest.MonkeyPatch) -> None:
    trigger = make(8, 1, pattern="single_pixel", size=[1.0, 1.0], **STRAIGHT)
    drawing(monkeypatch, *MIDDLE)
    assert shown(trigger, 0.0, 8).min() > 254.9
