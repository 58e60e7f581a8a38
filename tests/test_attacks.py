"""What holds for every attack: local, seeded, kept without pickle, batched; and the truth on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unpoison.attacks import ATTACKS, load_trigger
from unpoison.core.errors import UserError
from unpoison.crafting.assets import AssetStore
from unpoison.crafting.context import Scene
from unpoison.crafting.craft import intent, poison
from unpoison.data.imageset import ImageSet
from unpoison.poisoning.policy import Policy
from unpoison.poisoning.trigger import eight_bit, save_trigger, stamp
from unpoison.poisoning.truth import Truth, read_truth, write_truth
from unpoison.training.recipe import Recipe

RNG = np.random.default_rng(0)
# Smooth images, as photographs are: noise would hide what a filter does.
COARSE = RNG.integers(0, 256, (60, 4, 4, 3), dtype=np.uint8)
IMAGES = COARSE.repeat(8, 1).repeat(8, 2)
LABELS = np.arange(60) % 10
CLASSES = tuple("0123456789")
DATA = ImageSet(IMAGES, LABELS, CLASSES, "attack-tests")
TINY = {
    "network": {"name": "resnet18", "width": 8, "stem": "conv3_pool"},
    "recipe": Recipe(epochs=2, batch_size=20, lr=0.01),
}
# One row per attack and form: name, arguments small enough for a test, whether every image is changed at the test.
TABLE: list[tuple[str, dict[str, Any], bool]] = [
    ("badnets", {"pattern": "checkerboard", "size": 4}, True),
    ("badnets", {"pattern": "dbr_grid", "location": "random"}, True),
    ("badnets", {"pattern": "backdoors101", "location": "dynamic"}, True),
    ("blended", {}, True),
    ("sig", {"test_delta": 60.0}, True),
    ("trojan", {}, True),
    ("trojan", {"form": "optimised", "iterations": 3}, True),
    ("lc", {"steps": 2, "adversarial": False}, True),
    ("lf", {"images": 4, "passes": 1}, True),
    ("ssba", {"steps": 2, "l2_wait": 0, "l2_ramp": 1, "width": 4, "batch_size": 8}, True),
    ("nashville", {}, True),
    ("dfst", {"steps": 2, "width": 8, "batch_size": 8}, True),
    ("feature_collision", {"steps": 2}, True),
    ("ctrl", {}, True),
    ("ftrojan", {}, True),
    ("adaptive_blend", {}, True),
    ("adaptive_patch", {}, True),
    ("tact", {}, True),
    ("semantic", {}, False),
]
IDS = [f"{name}{number}" for number, (name, _, _) in enumerate(TABLE)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> AssetStore:
    return AssetStore(tmp_path_factory.mktemp("assets"))


def made(name: str, arguments: dict[str, Any], store: AssetStore, **policy: Any) -> Truth:
    scene = Scene(train=DATA, seed=5, store=store, **TINY)
    # Without candidates of class 1 there would be no TaCT: 6 of 60 samples are of it.
    return poison(name, [intent(name, {"poison_rate": 0.5, "cover_ratio": 0, **policy}, arguments)], scene)


def test_table_covers_every_attack() -> None:
    assert {row[0] for row in TABLE} == set(ATTACKS)


@pytest.mark.parametrize(("name", "arguments", "changes"), TABLE, ids=IDS)
def test_trigger_is_local_seeded_and_survives_the_disk(
    name: str, arguments: dict[str, Any], changes: bool, store: AssetStore, tmp_path: Path
) -> None:
    truth = made(name, arguments, store)
    trigger = truth.parts[0].trigger
    keys = np.flatnonzero(truth.mask)[:6]
    clean = DATA.gather(keys)
    before = clean.copy()
    for train in (True, False):
        stamped = stamp(trigger, clean, keys, train=train)
        assert (clean == before).all()
        changed = (stamped != clean).any((1, 2, 3))
        assert changed.all() if changes else not changed.any()
        alone = [stamp(trigger, clean[i : i + 1], keys[i : i + 1], train=train) for i in reversed(range(len(keys)))]
        assert (np.concatenate(alone[::-1]) == stamped).all()
        folder = tmp_path / f"trigger-{train}"
        save_trigger(folder, name, trigger)
        kept_name, kept = load_trigger(folder)
        assert kept_name == name
        assert (stamp(kept, clean, keys, train=train) == stamped).all()
    again = made(name, arguments, store)
    assert (stamp(again.parts[0].trigger, clean, keys, train=True) == stamp(trigger, clean, keys, train=True)).all()


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_declares_a_policy_that_it_can_take(name: str) -> None:
    module = ATTACKS[name]
    policy = Policy(**module.POLICY)
    assert policy.label_policy in module.POLICIES
    assert all(isinstance(word, str) for word in module.ASSETS)
    assert module.make.__doc__


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_other_label_policies_are_refused(name: str) -> None:
    for policy in {"all2one", "all2all", "clean_label", "source_specific"} - set(ATTACKS[name].POLICIES):
        with pytest.raises(UserError, match=rf"attack\.label_policy: {policy} given, allowed with {name}: "):
            intent(name, {"label_policy": policy}, {})


def test_eight_bits() -> None:
    values = torch.tensor([-40.5, -0.2, 0.6, 50.99999, 51.0, 127.5, 254.9, 255.0, 256.2, 300.0])
    assert eight_bit(values, "truncate").tolist() == [0, 0, 0, 51, 51, 127, 254, 255, 255, 255]
    assert eight_bit(values, "round").tolist() == [0, 0, 1, 51, 51, 128, 255, 255, 255, 255]
    # As a cast to uint8 without a clip: -40.5 becomes -40 and then 216, 300 becomes 44.
    assert eight_bit(values, "wrap").tolist() == [216, 0, 0, 51, 51, 127, 254, 255, 0, 44]


def test_truth_round_trip(tmp_path: Path, store: AssetStore) -> None:
    truth = made("badnets", {"size": 2}, store, target=2, cover_ratio=0.5)
    write_truth(tmp_path / "truth", truth)
    back = read_truth(tmp_path / "truth")
    assert back is not None
    assert (back.mask == truth.mask).all()
    assert (back.part == truth.part).all()
    assert back.policy == truth.policy
    assert truth.mask.sum() == 27
    assert truth.cover.sum() == 14
    assert (truth.labels_given(10)[truth.mask] == 2).all()
    assert (truth.labels_given(10)[~truth.mask] == LABELS[~truth.mask]).all()
    seen = list(back.triggered(DATA, back.parts[0]))
    true = np.concatenate([some.true for some in seen])
    assert true.tolist() == [label for label in LABELS if label != 2]
    assert all((some.wanted == 2).all() for some in seen)
    assert (np.concatenate([some.clean for some in seen]) == IMAGES[LABELS != 2]).all()
    write_truth(tmp_path / "truth", None)
    assert read_truth(tmp_path / "truth") is None


def test_damaged_truth_is_named(tmp_path: Path, store: AssetStore) -> None:
    write_truth(tmp_path / "truth", made("badnets", {"size": 2}, store))
    (tmp_path / "truth" / "part.npy").write_bytes(b"x")
    with pytest.raises(UserError, match=r"part\.npy: digest mismatch"):
        read_truth(tmp_path / "truth")
