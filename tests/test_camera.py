"""What a camera does to images: each change by hand, and what is left of a backdoor of a model that reads one pixel."""

from __future__ import annotations

import math
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from unpoison import models
from unpoison.core.arrays import Images
from unpoison.core.errors import ParameterError
from unpoison.core.seeding import uniform
from unpoison.data.imageset import ImageSet, Overlay
from unpoison.evaluation import camera
from unpoison.evaluation.camera import STRENGTHS, photographed, under_camera
from unpoison.poisoning.triggered import Triggered

CHANGES = [(change, strength) for change, strengths in STRENGTHS.items() for strength in strengths]


def noise(n: int, side: int = 8, channels: int = 3) -> Images:
    return np.random.default_rng(0).integers(0, 256, (n, side, side, channels), dtype=np.uint8)


def changed(images: Images, change: str, strength: float) -> Images:
    return photographed(images, np.arange(len(images)), change, strength, seed=4)


def ways(change: str, n: int) -> list[bool]:
    """Which of n images the change goes the second way for."""
    return (uniform(4, f"camera/{change}", np.arange(n), 1)[:, 0] >= 0.5).tolist()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("change", "strength"), CHANGES)
def test_an_image_s_change_is_its_own(change: str, strength: float, channels: int) -> None:
    images = noise(6, 10, channels)
    before, together = images.copy(), changed(images, change, strength)
    assert (together.dtype, together.shape) == (np.uint8, images.shape)
    assert (images == before).all()
    alone = [photographed(images[[i]], np.array([i]), change, strength, seed=4) for i in (3, 0)]
    assert (np.concatenate(alone) == together[[3, 0]]).all()
    assert (together != images).any((1, 2, 3)).all()


@pytest.mark.parametrize(
    ("change", "strength"), [("none", 0), ("rotation", 0.0), ("scale", 1.0), ("shift", 0.0), ("brightness", 1.0)]
)
def test_no_strength_is_no_change(change: str, strength: float) -> None:
    assert (changed(noise(4), change, strength) == noise(4)).all()


def test_a_quarter_turn_either_way() -> None:
    images, done, clockwise = noise(8), changed(noise(8), "rotation", 90.0), ways("rotation", 8)
    assert len(set(clockwise)) == 2
    for image, turned, way in zip(images, done, clockwise, strict=True):
        assert (turned == np.rot90(image, -1 if way else 1)).all()


def test_half_the_size_is_the_mean_of_four_pixels_in_the_middle_of_black() -> None:
    images = noise(2)
    done = changed(images, "scale", 0.5)
    means = images.reshape(2, 4, 2, 4, 2, 3).mean((2, 4))
    assert np.abs(done[:, 2:6, 2:6] - means).max() <= 0.51
    done[:, 2:6, 2:6] = 0
    assert not done.any()


def test_a_shift_moves_by_its_length_in_directions_of_all_kinds() -> None:
    images = np.zeros((40, 32, 32, 1), np.uint8)
    images[:, 15:17, 15:17] = 200
    done = changed(images, "shift", 0.25)[..., 0].astype(float)
    places = np.arange(32) - 15.5
    moved = np.stack([(done.sum(axis) @ places) / done.sum((1, 2)) for axis in (2, 1)])
    assert np.hypot(*moved) == pytest.approx(np.full(40, 8.0), abs=0.1)
    assert {(row > 0, column > 0) for row, column in moved.T.tolist()} == {
        (a, b) for a in (False, True) for b in (False, True)
    }


def test_brightness_is_a_factor_or_its_inverse() -> None:
    images = np.full((8, 2, 2, 1), 60, np.uint8)
    brighter = ways("brightness", 8)
    assert changed(images, "brightness", 2.5)[:, 0, 0, 0].tolist() == [150 if way else 24 for way in brighter]
    assert changed(images, "brightness", 10.0).max() == 255


def test_blur_by_hand() -> None:
    images = np.zeros((1, 9, 9, 1), np.uint8)
    images[0, 4, 4] = 255
    weights = [math.exp(-(step**2) / 2) for step in range(-3, 4)]
    line = np.array([0, *weights, 0]) / sum(weights)
    assert (changed(images, "blur", 1.0)[0, ..., 0] == np.round(255 * np.outer(line, line))).all()
    # The border goes on.
    assert (changed(np.full((1, 5, 5, 3), 77, np.uint8), "blur", 2.0) == 77).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_pillow_s(channels: int) -> None:
    images, file = noise(1, 16, channels), BytesIO()
    Image.fromarray(images[0].squeeze()).save(file, "JPEG", quality=40)
    assert (changed(images, "jpeg", 40)[0].squeeze() == np.asarray(Image.open(file))).all()


@pytest.mark.parametrize(
    ("change", "strength", "message"),
    [
        ("zoom", 1.0, r"^change: 'zoom' given, allowed: none, rotation, scale, "),
        ("scale", 0.0, r"^strength: 0\.0 given, allowed with scale: 0\.1 to 1$"),
        ("rotation", math.nan, r"^strength: nan given, allowed with rotation: 0 to 180$"),
        ("blur", math.inf, r"^strength: inf given, allowed with blur: 0\.1 to 16$"),
        ("jpeg", 40.5, r"^strength: 40\.5 given, allowed with jpeg: whole numbers from 1 to 95$"),
    ],
)
def test_what_no_change_has_is_refused(change: str, strength: float, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        changed(noise(1), change, strength)


def test_what_is_left_of_a_backdoor_that_reads_a_corner(monkeypatch: pytest.MonkeyPatch) -> None:
    def logits_of(model: object, data: ImageSet) -> Tensor:
        """Class 1 where the last pixel is bright, else class 0."""
        bright = torch.from_numpy(data.gather(np.arange(len(data)))[:, -1, -1, 0] > 100).float()
        return torch.stack([1 - bright, bright], 1)

    monkeypatch.setattr(camera, "logits_of", logits_of)
    black = np.zeros((12, 8, 8, 1), np.uint8)
    test = ImageSet(black, np.array([0, 0, 1, 0] * 3), ("a", "b"))
    stamped, index = black[:9].copy(), np.flatnonzero(test.labels == 0)
    stamped[:, -1, -1] = 200
    triggered = Triggered(test, Overlay(index, stamped, np.ones(9, np.int64)))
    model = models.build("resnet18", num_classes=2, image_size=(8, 8), channels=1, width=8, seed=0)

    def left(change: str, strength: float) -> tuple[float, float, float]:
        graded = under_camera(model, test, triggered, change, strength, seed=4)
        return graded["acc"], graded["asr"], graded["without"]

    # Of the images that ASR counts one has a bright corner of its own, and is taken for class 1 by that.
    black[3, -1, -1] = 255
    assert left("none", 0) == (pytest.approx(8 / 12), 1.0, pytest.approx(1 / 9))
    assert left("rotation", 180.0) == (0.75, 0.0, 0.0)
    # Divided by 2.5 it is 80, which is too dark.
    brighter = (uniform(4, "camera/brightness", index, 1)[:, 0] >= 0.5).mean()
    assert 0 < brighter < 1
    black[3, -1, -1] = 0
    assert left("brightness", 2.5) == (0.75, pytest.approx(brighter), 0.0)
