"""Colour filters and frequency triggers, against slow versions that work image by image."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.fft import dctn, idctn

from unpoison.attacks import SINGLE
from unpoison.core.arrays import Images, Pixels
from unpoison.core.errors import ParameterError, UserError
from unpoison.crafting.attack import intent
from unpoison.crafting.context import Context
from unpoison.crafting.craft import make_trigger
from unpoison.data.imageset import ImageSet
from unpoison.poisoning.trigger import Trigger, stamp

KEYS = np.arange(6)
# Rows give Y, U, V and Y, Cr, Cb of R, G, B (ITU-R BT.601).
YUV = np.array(
    [
        [0.299, 0.587, 0.114],
        0.436 / 0.886 * np.array([-0.299, -0.587, 0.886]),
        0.615 / 0.701 * np.array([0.701, -0.587, -0.114]),
    ]
)
YCRCB = np.array([YUV[0], 0.5 / 0.615 * YUV[2], 0.5 / 0.436 * YUV[1]])


def images_of(height: int = 32, width: int = 32, channels: int = 3) -> Images:
    return np.random.default_rng(0).integers(0, 256, (6, height, width, channels), dtype=np.uint8)


def make(attack: str, images: Images | None = None, **arguments: Any) -> Trigger:
    train = ImageSet(images_of() if images is None else images, KEYS % 2, ("a", "b"), "digest")
    return make_trigger(intent(attack, SINGLE[attack], {}, arguments), Context(train=train, seed=0))


def raw(trigger: Trigger, images: Images, *, train: bool = True) -> Pixels:
    """What `apply` gives, before it becomes 8 bits: float32 [n, h, w, c]."""
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    return trigger.apply(batch, KEYS, train=train).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("attack", ["nashville", "ctrl", "ftrojan"])
def test_colour_only(attack: str) -> None:
    with pytest.raises(UserError, match=r"^data: images of 1 channel, allowed with this attack: colour images"):
        make(attack, images_of(channels=1))


def test_nashville_golden_colours() -> None:
    colours = np.array([[[[0, 0, 0], [255, 255, 255], [128, 128, 128], [200, 120, 40]]]], np.uint8)
    expected = [[0, 8, 46], [255, 252, 217], [144, 139, 141], [232, 130, 77]]
    trigger = make("nashville")
    assert raw(trigger, colours)[0, 0].tolist() == expected
    assert stamp(trigger, colours, KEYS[:1], train=False)[0, 0].tolist() == expected


def nearest(value: Fraction) -> int:
    return min(max(round(value), 0), 255)


def mixed_colour(rows: list[list[Fraction]], colour: list[int]) -> list[int]:
    """A colour matrix; halves go up."""
    sums = [sum((a * v for a, v in zip(row, colour, strict=True)), Fraction(0)) for row in rows]
    return [min(max((s + Fraction(1, 2)).__floor__(), 0), 255) for s in sums]


def slow_filter(name: Literal["nashville", "1977"], colour: list[int]) -> list[int]:
    """One pixel, operation by operation."""
    if name == "nashville":
        for mode, tint, alpha in ((min, (247, 176, 153), 143), (max, (0, 70, 150), 102)):
            colour = [alpha * mode(v, t) // 255 + (255 - alpha) * v // 255 for v, t in zip(colour, tint, strict=True)]
        sepia = [[393, 769, 189], [349, 686, 168], [272, 534, 131]]
        rows = [[Fraction(2 * s + 8000 * (i == j), 10000) for j, s in enumerate(row)] for i, row in enumerate(sepia)]
        colour = mixed_colour(rows, colour)
        contrast, brightness, saturation = Fraction(12, 10), 1.05, Fraction(12, 10)
    else:
        screened = [255 - (255 - v) * (255 - t) // 255 for v, t in zip(colour, (243, 106, 188), strict=True)]
        colour = [76 * s // 255 + 179 * v // 255 for s, v in zip(screened, colour, strict=True)]
        contrast, brightness, saturation = Fraction(11, 10), 1.1, Fraction(13, 10)
    colour = [nearest((v - Fraction(255, 2)) * contrast + Fraction(255, 2)) for v in colour]
    # Not exact: the float product is on one or the other side of a half in `pilgram`, too.
    colour = [min(round(v * brightness), 255) for v in colour]
    grey = [Fraction(w, 1000) * (1 - saturation) for w in (213, 715, 72)]
    return mixed_colour([[g + saturation * (i == j) for j, g in enumerate(grey)] for i in range(3)], colour)


@pytest.mark.parametrize("name", ["nashville", "1977"])
def test_filter_is_the_slow_one(name: Literal["nashville", "1977"]) -> None:
    colours = np.random.default_rng(1).integers(0, 256, (1, 30, 30, 3), dtype=np.uint8)
    got = raw(make("nashville", filter=name), colours)
    expected = np.array([slow_filter(name, colour) for colour in colours.reshape(-1, 3).tolist()])
    assert (got.reshape(-1, 3) == expected).all()


def slow_frequency(
    image: Images, colours: NDArray[np.float64], window: tuple[int, int], magnitude: float
) -> NDArray[np.float64]:
    """Colour transform, DCT of every whole window, two coefficients of the last two channels, and all the way back."""
    channels = image.astype(np.float64) @ colours.T
    rows, columns = window
    for top in range(0, image.shape[0] - rows + 1, rows):
        for left in range(0, image.shape[1] - columns + 1, columns):
            for channel in (1, 2):
                block = channels[top : top + rows, left : left + columns, channel]
                coefficients = dctn(block, norm="ortho")
                coefficients[15, 15] += magnitude
                coefficients[31, 31] += magnitude
                block[:] = idctn(coefficients, norm="ortho")
    return channels @ np.linalg.inv(colours).T


@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 37)])
def test_ctrl_is_the_slow_one(height: int, width: int) -> None:
    images = images_of(height, width)
    trigger = make("ctrl", images, test_magnitude=50.0)
    for train, magnitude in ((True, 100.0), (False, 50.0)):
        slow = np.stack([slow_frequency(image, YUV, (height, width), magnitude) for image in images])
        np.testing.assert_allclose(raw(trigger, images, train=train), slow, atol=1e-3)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (70, 64), (33, 100)])
def test_ftrojan_is_the_slow_one(height: int, width: int) -> None:
    images = images_of(height, width)
    got = raw(make("ftrojan", images), images)
    np.testing.assert_allclose(got, np.stack([slow_frequency(i, YCRCB, (32, 32), 30.0) for i in images]), atol=1e-3)
    change = got - images
    assert (change[:, height // 32 * 32 :] == 0).all()
    assert (change[:, :, width // 32 * 32 :] == 0).all()
    assert (change[:, :32, :32] != 0).any()


def test_brightness_stays_and_the_wave_has_the_size_of_the_formula() -> None:
    change = raw(make("ftrojan", positions=[[0, 0]]), images_of()) - images_of()
    # The constant coefficient of an orthonormal 32 x 32 DCT is the sum over 32: 30 of it are 30 / 32 per pixel.
    np.testing.assert_allclose(change @ YCRCB.T, np.broadcast_to([0, 30 / 32, 30 / 32], change.shape), atol=1e-4)


def test_wrap_is_the_uncut_cast() -> None:
    images = images_of()
    values = raw(make("ctrl"), images).astype(np.float64)
    outside = (values < -0.5) | (values > 256.5)
    assert outside.any()
    clipped, wrapped = (stamp(make("ctrl", wrap=wrap), images, KEYS, train=True).astype(int) for wrap in (False, True))
    assert np.isin(clipped[outside], (0, 255)).all()
    assert (wrapped[outside] == np.trunc(values[outside]).astype(int) % 256).mean() > 0.99
    inside = (values >= 0) & (values < 255)
    assert (wrapped[inside] == clipped[inside]).all()


@pytest.mark.parametrize("attack", ["ctrl", "ftrojan"])
@pytest.mark.parametrize("positions", [[], [[3]], [[1, 2, 3]], [[0, 0], [32, 0]], [[0, 32]]])
def test_positions_outside_are_refused(attack: str, positions: list[list[int]]) -> None:
    allowed = "allowed: .* row 0 to 31 and column 0 to 31"
    with pytest.raises(ParameterError, match=rf"^{attack}\.positions: .* given, {allowed}"):
        make(attack, positions=positions)


def test_images_too_small_for_the_default_are_refused() -> None:
    images = images_of(28, 40)
    with pytest.raises(ParameterError, match=r"^ftrojan\.window: 32 given, allowed: 1 to 28"):
        make("ftrojan", images)
    with pytest.raises(ParameterError, match=r"^ctrl\.positions: \[31, 31\] given, .* row 0 to 27"):
        make("ctrl", images)
    changed = raw(make("ftrojan", images, window=28, positions=[[13, 13], [27, 27]]), images) != images
    assert changed[:, :, :28].any()
    assert not changed[:, :, 28:].any()


@pytest.mark.parametrize(
    ("attack", "arguments"),
    [
        ("nashville", {"filter": "gotham"}),
        ("ctrl", {"positions": [[-1, 3]]}),
        ("ctrl", {"magnitude": 0}),
        ("ftrojan", {"window": 0}),
    ],
)
def test_values_out_of_range_are_refused(attack: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(
        ParameterError, match=rf"^{attack}\.{next(iter(arguments))}(\.0\.0)?: .* given; input should be"
    ):
        make(attack, **arguments)
