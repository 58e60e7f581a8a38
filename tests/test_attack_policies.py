"""Attacks that carry cover samples: Adaptive-Blend, Adaptive-Patch and TaCT; the shares of the published policies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unpoison.attacks import SINGLE, adaptive_patch
from unpoison.core.arrays import Images
from unpoison.core.errors import ParameterError
from unpoison.crafting.attack import intent
from unpoison.crafting.context import Context
from unpoison.crafting.craft import make_trigger
from unpoison.data.imageset import ImageSet
from unpoison.poisoning.choice import choose_samples
from unpoison.poisoning.policy import Policy
from unpoison.poisoning.trigger import stamp

N = 200
KEYS = np.arange(N)


def images_of(shape: tuple[int, int, int], n: int = N) -> Images:
    return np.random.default_rng(3).integers(0, 256, (n, *shape), dtype=np.uint8)


def context_of(images: Images, seed: int = 0) -> Context:
    train = ImageSet(images, np.arange(len(images)) % 10, tuple("abcdefghij"), "digest")
    return Context(train=train, seed=seed)


def make(attack: str, context: Context | None = None, /, **arguments: Any) -> Any:
    context = context or context_of(images_of((32, 32, 3)))
    return make_trigger(intent(attack, SINGLE[attack], {}, arguments), context)


@pytest.mark.parametrize(
    ("attack", "poisoned", "covers"),
    # A tenth of 900 candidates, of TaCT of the 100 of class 1.
    [("adaptive_blend", 90, 90), ("adaptive_patch", 90, 180), ("tact", 10, 10), ("semantic", 90, 0)],
)
def test_published_policy_has_its_share_of_cover_samples(attack: str, poisoned: int, covers: int) -> None:
    labels = np.arange(1000) % 10
    order = np.ones(1000) if attack == "semantic" else None
    choice = choose_samples(Policy(**SINGLE[attack].policy), labels, 10, seed=0, order=order)
    assert len(np.intersect1d(choice.poison, choice.cover)) == 0
    assert (len(choice.poison), len(choice.cover)) == (poisoned, covers)
    if attack == "tact":
        assert set(labels[choice.poison]) == {1}
        assert set(labels[choice.cover]) == {5, 7}


def slow_blend(
    image: Images, pattern: Any, ratio: float, hidden: set[tuple[int, int]], edges: tuple[list[int], list[int]]
) -> Images:
    """Piece by piece: pieces (row, column) in `hidden` are left as they are."""
    out = image.astype(np.float64)
    rows, columns = edges
    for i in range(len(rows) - 1):
        for j in range(len(columns) - 1):
            if (i, j) not in hidden:
                piece = (slice(rows[i], rows[i + 1]), slice(columns[j], columns[j + 1]))
                out[piece] = out[piece] + ratio * (pattern[piece] - out[piece])
    return np.floor(out + 1e-4).astype(np.uint8)


@pytest.mark.parametrize(
    ("shape", "edges"),
    [
        ((32, 32, 3), ([0, 8, 16, 24, 32], [0, 8, 16, 24, 32])),
        ((30, 45, 3), ([0, 7, 15, 22, 30], [0, 11, 22, 33, 45])),
        ((28, 28, 1), ([0, 7, 14, 21, 28], [0, 7, 14, 21, 28])),
    ],
)
def test_adaptive_blend_hides_half_of_the_pieces_in_training_and_none_at_the_test(
    shape: tuple[int, int, int], edges: tuple[list[int], list[int]]
) -> None:
    trigger = make("adaptive_blend", context_of(images_of(shape)))
    pattern = trigger.pattern.transpose(1, 2, 0).astype(np.float64)
    black = np.zeros((N, *shape), np.uint8)
    shown = stamp(trigger, black, KEYS, train=True).any(-1)
    rows, columns = edges
    hidden = []
    for mask in shown:
        empty = {
            (i, j)
            for i in range(4)
            for j in range(4)
            if not mask[rows[i] : rows[i + 1], columns[j] : columns[j + 1]].any()
        }
        assert len(empty) == 8
        hidden.append(empty)
    images = images_of(shape)
    trained, tested = (stamp(trigger, images, KEYS, train=train) for train in (True, False))
    for key in range(20):
        fast = trained[key].astype(int), tested[key].astype(int)
        slow = (
            slow_blend(images[key], pattern, 0.15, hidden[key], edges),
            slow_blend(images[key], pattern, 0.2, set(), edges),
        )
        # float32 and float64 may lie on either side of a whole number
        assert all(abs(a - b).max() <= 1 and (a == b).mean() > 0.99 for a, b in zip(fast, slow, strict=True))
    # 200 draws of 8 out of 16: each piece is hidden about 100 times (standard deviation 7).
    counts = [sum((i, j) in pieces for pieces in hidden) for i in range(4) for j in range(4)]
    assert 65 < min(counts) <= max(counts) < 135
    assert len({frozenset(pieces) for pieces in hidden}) > 150


def test_adaptive_blend_golden_values() -> None:
    trigger = make("adaptive_blend", mask_share=0.0)
    pattern = trigger.pattern.transpose(1, 2, 0).astype(int)
    black = np.zeros((1, 32, 32, 3), np.uint8)
    assert (stamp(trigger, black, KEYS[:1], train=True)[0] == pattern * 15 // 100).all()
    assert (stamp(trigger, black, KEYS[:1], train=False)[0] == pattern // 5).all()


def test_adaptive_blend_takes_an_image_file(tmp_path: Path) -> None:
    file = tmp_path / "pattern.png"
    Image.new("RGB", (7, 9), (100, 200, 40)).save(file)
    black = np.zeros((1, 32, 32, 3), np.uint8)
    tested = stamp(make("adaptive_blend", pattern=str(file)), black, KEYS[:1], train=False)
    assert (tested == (20, 40, 8)).all()
    with pytest.raises(ParameterError, match=r"^adaptive_blend\.pattern: .*none\.png"):
        make("adaptive_blend", pattern=str(tmp_path / "none.png"))


def test_adaptive_blend_pieces_and_pattern_come_from_the_seed() -> None:
    first, second = (make("adaptive_blend", context_of(images_of((32, 32, 3)), seed)) for seed in (0, 1))
    assert (first.pattern != second.pattern).mean() > 0.9
    single = make("adaptive_blend", pieces=1, mask_share=0.4)
    images = images_of((32, 32, 3))
    whole = stamp(make("adaptive_blend", mask_share=0.0), images, KEYS, train=True)
    assert (stamp(single, images, KEYS, train=True) == whole).all()


COLOUR, GREY = (32, 32, 3), (28, 28, 1)


@pytest.mark.parametrize(
    ("attack", "shape", "arguments", "message"),
    [
        ("adaptive_blend", COLOUR, {"pieces": 15}, r"pieces: 15 given, allowed: square numbers"),
        ("adaptive_blend", GREY, {"pieces": 900}, r"pieces: 900 given, allowed: .* 1 to 784"),
        ("adaptive_blend", COLOUR, {"mask_share": 0.97}, r"mask_share: 0\.97 of 16 pieces given"),
        ("adaptive_patch", COLOUR, {"size": 17}, r"size: 17 given, allowed: 3 to 16"),
        ("adaptive_patch", COLOUR, {"size": 2}, r"size: 2 given, allowed: 3 to 16"),
        ("tact", GREY, {"size": 29}, r"size: 29 given, allowed: 1 to 28"),
    ],
)
def test_refused(attack: str, shape: tuple[int, int, int], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=rf"^{attack}\.{message}"):
        make(attack, context_of(images_of(shape)), **arguments)


def test_adaptive_patch_gives_each_training_image_one_faint_patch() -> None:
    trigger = make("adaptive_patch")
    black = np.zeros((N, 32, 32, 3), np.uint8)
    trained = stamp(trigger, black, KEYS, train=True)
    corners = {
        "ring": (slice(24, 32), slice(24, 32), (255, 64, 32), 0.5, 40),
        "cross": (slice(0, 8), slice(24, 32), (255, 224, 32), 0.2, 28),
        "stripes": (slice(24, 32), slice(0, 8), (32, 96, 255), 0.5, 32),
        "checkerboard": (slice(0, 8), slice(0, 8), (255, 255, 255), 0.3, 32),
    }
    counts = []
    owner = np.full(N, "", dtype=object)
    for name, (rows, columns, colour, opacity, ink) in corners.items():
        carriers = trained[:, rows, columns].any((1, 2, 3))
        counts.append(int(carriers.sum()))
        assert (owner[carriers] == "").all()
        owner[carriers] = name
        inked = trained[carriers][:, rows, columns].reshape(-1, 64, 3)
        assert (inked.any(-1).sum(-1) == ink).all()
        expected = np.floor(np.array(colour) * opacity + 1e-3).astype(np.uint8)
        assert (inked[inked.any(-1)] == expected).all()
        assert (trained[carriers].any(-1).sum((1, 2)) == ink).all()
    assert sum(counts) == N
    # 200 draws among four: about 50 each (standard deviation 6).
    assert 20 < min(counts) <= max(counts) < 80


def test_adaptive_patch_shows_ring_and_stripes_opaque_at_the_test() -> None:
    trigger, images = make("adaptive_patch"), images_of((32, 32, 3))
    tested = stamp(trigger, images, KEYS, train=False)
    ring = "00111100 01111110 11100111 11000011 11000011 11100111 01111110 00111100"
    stripes = " ".join(["11001100"] * 8)
    wanted = np.zeros((32, 32), bool)
    for drawing, columns in ((ring, slice(24, 32)), (stripes, slice(0, 8))):
        wanted[24:, columns] = [[pixel == "1" for pixel in row] for row in drawing.split()]
    assert (tested[:, ~wanted] == images[:, ~wanted]).all()
    assert (tested[:, 24:, 24:][:, wanted[24:, 24:]] == (255, 64, 32)).all()
    assert (tested[:, 24:, :8][:, wanted[24:, :8]] == (32, 96, 255)).all()
    assert wanted.sum() == 72


@pytest.mark.parametrize("size", [3, 4, 5, 13])
def test_adaptive_patch_shapes_differ_at_every_size(size: int) -> None:
    shapes = adaptive_patch._shapes(size)
    assert len({shape.tobytes() for shape in shapes}) == 4
    assert all(0 < shape.sum() < size**2 for shape in shapes)


def test_adaptive_patch_on_one_channel_has_the_luminance() -> None:
    tested = stamp(
        make("adaptive_patch", context_of(images_of((28, 28, 1)))),
        np.zeros((1, 28, 28, 1), np.uint8),
        KEYS[:1],
        train=False,
    )
    assert set(np.unique(tested)) == {0, 95, 117}


@pytest.mark.parametrize("train", [True, False])
def test_tact_pastes_a_white_square(train: bool) -> None:
    images = images_of((30, 45, 3))
    stamped = stamp(make("tact", context_of(images), size=5), images, KEYS, train=train)
    slow = images.copy()
    for image in slow:
        for row in range(25, 30):
            for column in range(40, 45):
                image[row, column] = 255
    assert (stamped == slow).all()
