"""Triggers to the pixel, policies, and the truth on disk."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unpoison.attacks import ATTACKS, badnets, blended, load_trigger
from unpoison.attacks.policy import Policy, choose_samples
from unpoison.attacks.trigger import save_trigger
from unpoison.attacks.truth import Truth, read_truth, write_truth
from unpoison.data.imageset import ImageSet
from unpoison.errors import UserError

SHAPE = (32, 32, 3)
IMAGES = np.random.default_rng(0).integers(0, 256, (6, *SHAPE), dtype=np.uint8)
KEYS = np.arange(6)
# One row per attack: name, arguments, pixels it may change per image.
TABLE: list[tuple[str, dict[str, Any], int]] = [
    ("badnets", {"pattern": "checkerboard", "size": 4}, 16),
    ("badnets", {"pattern": "grid", "size": 3, "location": "random"}, 9),
    ("blended", {"pattern": "noise", "ratio": 0.2}, 1024),
]


def test_table_covers_every_attack() -> None:
    assert {row[0] for row in TABLE} == set(ATTACKS)


@pytest.mark.parametrize(("name", "arguments", "pixels"), TABLE)
def test_trigger_is_local_seeded_and_survives_the_disk(
    name: str, arguments: dict[str, Any], pixels: int, tmp_path: Path
) -> None:
    module: ModuleType = ATTACKS[name]
    trigger = module.make(SHAPE, 5, **arguments)
    before = IMAGES.copy()
    stamped = trigger(IMAGES, KEYS)
    assert (before == IMAGES).all()
    assert ((stamped != IMAGES).any(-1).sum((1, 2)) <= pixels).all()
    assert (stamped != IMAGES).any()
    alone = np.concatenate([trigger(IMAGES[i : i + 1], KEYS[i : i + 1]) for i in reversed(range(6))])[::-1]
    assert (alone == stamped).all()
    save_trigger(tmp_path / "trigger", name, trigger)
    assert (load_trigger(tmp_path / "trigger")(IMAGES, KEYS) == stamped).all()


@pytest.mark.parametrize(
    ("pattern", "rows"),
    [
        ("checkerboard", [[0, 255, 0], [255, 0, 255], [0, 255, 0]]),
        ("grid", [[255, 1, 255], [1, 255, 1], [255, 1, 255]]),
        ("white", [[255] * 3] * 3),
        ("black", [[0] * 3] * 3),
        ("#0a0a0a", [[10] * 3] * 3),
        ("checkerboard_#010101_#020202", [[2, 1, 2], [1, 2, 1], [2, 1, 2]]),
    ],
)
def test_patch_patterns_to_the_pixel(pattern: str, rows: list[list[int]]) -> None:
    stamped = badnets.make(SHAPE, 0, pattern=pattern, size=3)(IMAGES, KEYS)
    assert (stamped[:, 29:, 29:] == np.array(rows)[..., None]).all()
    untouched = stamped.copy()
    untouched[:, 29:, 29:] = IMAGES[:, 29:, 29:]
    assert (untouched == IMAGES).all()


def test_random_location_covers_rows_and_columns_apart() -> None:
    black = np.zeros((200, *SHAPE), np.uint8)
    stamped = badnets.make(SHAPE, 0, pattern="white", size=1, location="random")(black, np.arange(200))
    rows, columns = np.nonzero(stamped[..., 0])[1:]
    assert len(set(rows)) > 20
    assert len(set(columns)) > 20
    assert (rows != columns).mean() > 0.9


def test_blend_truncates_as_published(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9), (255, 0, 100)).save(tmp_path / "p.png")
    trigger = blended.make(SHAPE, 0, pattern=str(tmp_path / "p.png"), ratio=0.2)
    assert trigger(np.full((1, *SHAPE), 101, np.uint8), KEYS[:1])[0, 0, 0].tolist() == [131, 80, 100]
    # 0.8 * 255 + 0.2 * 255 is a little below 255 in floating point; it is 255.
    assert (trigger(np.full((1, *SHAPE), 255, np.uint8), KEYS[:1])[..., 0] == 255).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: badnets.make(SHAPE, 0, pattern="stripes"),
            r"attack\.badnets\.pattern: 'stripes' given, allowed: check",
        ),
        (lambda: badnets.make(SHAPE, 0, size=33), r"attack\.badnets\.size: 33 given, allowed: 1 to 32"),
        (lambda: blended.make(SHAPE, 0, pattern="nowhere.png"), r"attack\.blended\.pattern: 'nowhere\.png' given"),
    ],
)
def test_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


LABELS = np.arange(1000) % 10


def test_rate_is_of_candidates_and_rounded_up() -> None:
    chosen = choose_samples(Policy(poison_rate=0.1), LABELS, 10, seed=0)
    assert len(chosen) == 90
    assert (LABELS[chosen] != 0).all()
    assert (np.diff(chosen) > 0).all()
    assert len(choose_samples(Policy(poison_rate=0.1001), LABELS, 10, seed=0)) == 91
    with_target = choose_samples(Policy(poison_rate=0.1, poison_target_class=True), LABELS, 10, seed=0)
    assert len(with_target) == 100
    assert (LABELS[with_target] == 0).any()


def test_lower_rate_is_a_subset() -> None:
    many, few = (set(choose_samples(Policy(poison_rate=rate), LABELS, 10, seed=4)) for rate in (0.1, 0.01))
    assert few < many
    assert many != set(choose_samples(Policy(poison_rate=0.1), LABELS, 10, seed=5))


def test_label_policies() -> None:
    labels = np.array([0, 3, 9])
    assert Policy(target=3).new_labels(labels, 10).tolist() == [3, 3, 3]
    assert Policy(target=3).attacked(labels).tolist() == [True, False, True]
    assert Policy(label_policy="all2all").new_labels(labels, 10).tolist() == [1, 4, 0]
    assert Policy(label_policy="all2all").attacked(labels).all()
    assert len(choose_samples(Policy(label_policy="all2all", poison_rate=0.1), LABELS, 10, seed=0)) == 100


def test_impossible_policies() -> None:
    with pytest.raises(UserError, match=r"attack\.target: 10 given, allowed: 0 to 9"):
        choose_samples(Policy(target=10), LABELS, 10, seed=0)
    with pytest.raises(UserError, match=r"attack\.poison_count: 901 given, allowed: 1 to 900"):
        choose_samples(Policy(poison_count=901), LABELS, 10, seed=0)


def test_truth_round_trip(tmp_path: Path) -> None:
    trigger = badnets.make(SHAPE, 0, size=2)
    truth = Truth("badnets", LABELS == 3, LABELS, Policy(target=2), trigger)
    write_truth(tmp_path / "truth", truth)
    back = read_truth(tmp_path / "truth")
    assert back is not None
    assert (back.mask == truth.mask).all()
    assert back.policy == truth.policy
    test = ImageSet(IMAGES, np.array([0, 1, 2, 2, 4, 5]), tuple("0123456789"))
    images, attackers, true = back.triggered(test)
    assert (images == trigger(IMAGES[[0, 1, 4, 5]], KEYS[[0, 1, 4, 5]])).all()
    assert attackers.tolist() == [2, 2, 2, 2]
    assert true.tolist() == [0, 1, 4, 5]
    write_truth(tmp_path / "truth", None)
    assert read_truth(tmp_path / "truth") is None
