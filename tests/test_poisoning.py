"""Policies, several triggers in one data set, triggers stamped in training, and the store of expensive assets."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unpoison import models
from unpoison.attacks import multi
from unpoison.core.errors import UserError
from unpoison.core.seeding import uniform
from unpoison.crafting.assets import AssetStore
from unpoison.crafting.context import Scene
from unpoison.crafting.craft import drawn_at_random, intent, poison
from unpoison.data.imageset import ImageSet
from unpoison.poisoning.in_training import InTraining
from unpoison.poisoning.policy import Choice, Policy, choose_samples
from unpoison.poisoning.trigger import stamp
from unpoison.poisoning.truth import Truth
from unpoison.training.loop import fit
from unpoison.training.recipe import Recipe

LABELS = np.arange(1000) % 10
IMAGES = np.random.default_rng(0).integers(0, 256, (1000, 12, 12, 3), dtype=np.uint8)
DATA = ImageSet(IMAGES, LABELS, tuple("0123456789"), "policies")
HERE = [sys.modules[__name__]]


def chosen(seed: int = 0, labels: np.ndarray = LABELS, **policy: Any) -> Choice:
    return choose_samples(Policy(**policy), labels, 10, seed=seed)


def attack(name: str = "badnets", arguments: dict[str, Any] | None = None, **policy: Any) -> Truth:
    return poison(name, [intent(name, policy, arguments or {})], Scene(train=DATA, seed=0))


def test_rate_is_of_candidates_and_rounded_up() -> None:
    poisoned = chosen(poison_rate=0.1).poison
    assert len(poisoned) == 90
    assert (LABELS[poisoned] != 0).all()
    assert (np.diff(poisoned) > 0).all()
    assert len(chosen(poison_rate=0.1001).poison) == 91
    assert len(chosen(poison_rate=0.1, rate_of="all").poison) == 100
    assert len(chosen(poison_count=7).poison) == 7
    with_target = chosen(poison_rate=0.1, poison_target_class=True).poison
    assert len(with_target) == 100
    assert (LABELS[with_target] == 0).any()


def test_lower_rate_is_a_subset() -> None:
    many, few = (set(chosen(seed=4, poison_rate=rate).poison) for rate in (0.1, 0.01))
    assert few < many
    assert many != set(chosen(seed=5, poison_rate=0.1).poison)


@pytest.mark.parametrize(
    ("policy", "candidates", "attacked", "new"),
    [
        ({"target": 3}, LABELS != 3, LABELS != 3, np.full(1000, 3)),
        ({"label_policy": "all2all", "shift": 3}, LABELS >= 0, LABELS >= 0, (LABELS + 3) % 10),
        ({"label_policy": "clean_label", "target": 2}, LABELS == 2, LABELS != 2, np.full(1000, 2)),
        (
            {"label_policy": "source_specific", "sources": [1, 4], "target": 2},
            np.isin(LABELS, [1, 4]),
            np.isin(LABELS, [1, 4]),
            np.full(1000, 2),
        ),
    ],
)
def test_label_policies(policy: dict[str, Any], candidates: Any, attacked: Any, new: Any) -> None:
    made = Policy(**policy)
    assert (made.candidates(LABELS) == candidates).all()
    assert (made.attacked(LABELS) == attacked).all()
    assert (made.new_labels(LABELS, 10) == new).all()


def test_clean_label_keeps_labels_and_is_counted_of_its_class() -> None:
    truth = attack("sig", label_policy="clean_label", target=2, poison_rate=0.1)
    assert truth.mask.sum() == 10
    assert (LABELS[truth.mask] == 2).all()
    assert (truth.labels_given(10) == LABELS).all()


def test_cover_samples_keep_their_label() -> None:
    truth = attack("tact", {"size": 2}, target=0, sources=[1], cover_classes=[5, 7], poison_rate=0.4, cover_ratio=1.5)
    assert truth.mask.sum() == 40
    assert truth.cover.sum() == 60
    assert set(LABELS[truth.cover]) == {5, 7}
    assert set(LABELS[truth.mask]) == {1}
    assert (truth.labels_given(10)[truth.cover] == LABELS[truth.cover]).all()
    stamped = truth.stamped(DATA, np.flatnonzero(truth.cover))
    assert (stamped[:, -2:, -2:] == 255).all()


def test_order_comes_before_chance() -> None:
    order = np.where(LABELS % 2, np.arange(1000.0), -np.inf)
    some = choose_samples(Policy(poison_rate=0.02), LABELS, 10, seed=0, order=order)
    assert some.poison.tolist() == list(range(981, 1000, 2))
    with pytest.raises(UserError, match=r"allowed: 1 to 500, the candidates"):
        choose_samples(Policy(poison_count=501), LABELS, 10, seed=0, order=order)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"target": 10}, r"attack\.target: 10 given, allowed: 0 to 9"),
        ({"label_policy": "source_specific", "sources": [12]}, r"attack\.sources: 12 given, allowed: 0 to 9"),
        ({"label_policy": "source_specific"}, r"attack\.sources: \[\] given, allowed with source_specific: classes"),
        ({"label_policy": "source_specific", "sources": [0]}, r"attack\.sources: \[0\] given"),
        ({"cover_classes": [10]}, r"attack\.cover_classes: 10 given"),
        ({"poison_count": 901}, r"attack\.poison_count: 901 given, allowed: 1 to 900"),
        (
            {"poison_rate": 0.95, "rate_of": "all"},
            r"attack\.poison_rate: 0\.95 of 1000 samples given, allowed: up to 0\.9,",
        ),
        ({"cover_classes": [0], "cover_ratio": 1.0}, r"attack\.cover_classes: 0 given, allowed: neither the target"),
        ({"cover_ratio": 10.0, "poison_rate": 0.5}, r"attack\.cover_ratio: 10\.0 given, which asks for 4500 cover"),
        ({"label_policy": "all2all", "shift": 20}, r"attack\.shift: 20 given, allowed: no multiple of the 10 classes"),
        ({"random_poisoning": True, "poison_count": 3}, r"attack\.poison_count: 3 given, allowed with random"),
        ({"random_poisoning": True, "rate_of": "all"}, r"attack\.rate_of: all given, allowed with random"),
        ({"random_poisoning": True, "cover_ratio": 1.0}, r"attack\.cover_ratio: 1\.0 given, allowed with random"),
    ],
)
def test_impossible_policies(policy: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        chosen(**policy)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"poison_rate": 1.0}, r"attack\.poison_rate: 1\.0 given, which leaves no sample in class 1; allowed: less"),
        ({"poison_count": 900}, r"attack\.poison_count: 900 given, which leaves no sample in class 1"),
        ({"poison_rate": 1.0, "random_poisoning": True}, r"attack\.poison_rate: 1\.0 given, which leaves no sample in"),
    ],
)
def test_a_class_that_would_be_empty(policy: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        attack(**policy)


def test_several_triggers_may_not_empty_a_class_together() -> None:
    blocks = [{"attack": "badnets", "target": 0, "size": 2}, {"attack": "blended", "target": 1}]
    intents = multi.intents({"poison_rate": 1.0, "poison_target_class": True}, {}, blocks, where="attack")
    with pytest.raises(UserError, match=r"attack\.poison_rate: 0\.5 given, which leaves no sample in class 2"):
        poison("multi", intents, Scene(train=DATA, seed=0))


def test_nothing_to_poison_is_no_error() -> None:
    truth = attack("lc", {"adversarial": False}, poison_rate=0.0)
    assert not truth.mask.any()
    assert truth.stamped(DATA, np.flatnonzero(truth.mask)).shape == (0, 12, 12, 3)


def test_source_class_that_is_not_there() -> None:
    labels = np.where(LABELS == 4, 5, LABELS)
    with pytest.raises(UserError, match=r"for which no training sample is a candidate"):
        chosen(labels=labels, label_policy="source_specific", sources=[4])


def test_multi_shares_the_rate_out() -> None:
    blocks = [
        {"attack": "badnets", "target": 1, "pattern": "white", "size": 2},
        {"attack": "blended", "target": 3},
    ]
    intents = multi.intents({"poison_rate": 0.1}, {"badnets": {"pattern": "black"}}, blocks, where="attack")
    assert intents[0].arguments == {"pattern": "white", "size": 2}
    truth = poison("multi", intents, Scene(train=DATA, seed=0))
    first, second = (truth.mask & (truth.part == number) for number in (0, 1))
    assert first.sum() == second.sum() == 45
    given = truth.labels_given(10)
    assert set(given[first]) == {1}
    assert set(given[second]) == {3}
    assert not (first & (LABELS == 1)).any()
    stamped = truth.stamped(DATA, np.flatnonzero(first))
    assert (stamped[:, -2:, -2:] == 255).all()


@pytest.mark.parametrize(
    ("policy", "blocks", "message"),
    [
        ({}, [{"attack": "badnets", "target": 0}], r"attack\.multi\.triggers: 1 given, allowed: at least 2"),
        ({}, [{"attack": "badnet", "target": 0}] * 2, r"triggers\[0\]\.attack: 'badnet' given, allowed: badnets"),
        ({}, [{"attack": "badnets"}] * 2, r"triggers\[0\]\.target: nothing given, allowed: a class"),
        ({}, [{"attack": "badnets", "target": 0, "alpha": 1}] * 2, r"attack\.badnets\.alpha: unknown key"),
        ({}, [{"attack": "badnets", "target": 0}, {"attack": "sig", "target": 1}], r"label_policy: null given"),
        ({"poison_count": 1}, [{"attack": "badnets", "target": 0}] * 2, r"poison_count: 1 given, allowed with 2"),
        ({}, [{"attack": "badnets", "target": None}] * 2, r"triggers\[0\]\.target: nothing given, allowed: a class"),
        (
            {},
            [{"attack": "badnets", "target": 0}, {"attack": "badnets", "target": 1}],
            r"triggers\[1\]: the same trigger as an earlier one",
        ),
        ({"random_poisoning": True}, [{"attack": "badnets", "target": 0}] * 2, r"random_poisoning: true given"),
    ],
)
def test_multi_errors(policy: dict[str, Any], blocks: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        multi.intents(policy, {}, blocks, where="attack")


def batch_of(truth: Truth, samples: np.ndarray, epoch: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.from_numpy(IMAGES[samples]).permute(0, 3, 1, 2).float() / 255
    labels = torch.from_numpy(LABELS[samples])
    return InTraining(truth, seed=0, classes=10)(images, labels, torch.from_numpy(samples), epoch)


def test_stamping_after_augmentation_equals_stamping_before_when_nothing_is_augmented() -> None:
    samples = np.arange(1000)
    truth = attack("blended", poison_first=False)
    images, labels = batch_of(truth, samples)
    assert (labels.numpy() == truth.labels_given(10)).all()
    first = attack("blended")
    assert (first.mask == truth.mask).all()
    expected = IMAGES.copy()
    expected[first.mask] = first.stamped(DATA, np.flatnonzero(first.mask))
    shown = images.permute(0, 2, 3, 1).numpy() * 255
    # Stamped as float images, they keep the fraction that 8 bits drop.
    difference = shown - expected
    assert difference.min() > -1e-3
    assert difference.max() < 1
    assert difference.max() > 0.5


def test_wrapping_triggers_wrap_after_augmentation_as_well() -> None:
    truth = attack("trojan", {"wrap": True}, poison_first=False)
    images, _ = batch_of(truth, np.arange(1000))
    poisoned = np.flatnonzero(truth.mask)
    expected = attack("trojan", {"wrap": True}).stamped(DATA, poisoned)
    assert np.abs(images.permute(0, 2, 3, 1).numpy()[poisoned] * 255 - expected).max() < 1


def test_training_sees_the_trigger_where_augmentation_put_it() -> None:
    seen: dict[bool, torch.Tensor] = {}
    for first in (True, False):
        truth = attack(
            arguments={"pattern": "white", "size": 3}, poison_first=first, random_poisoning=True, poison_rate=0.99
        )

        def loss(model: Any, images: torch.Tensor, labels: torch.Tensor, first: bool = first) -> Any:
            seen[first] = images[labels == 0].clone()
            logits = model(images)
            return logits, torch.nn.functional.cross_entropy(logits, labels, reduction="none")

        model = models.build("resnet18", num_classes=10, image_size=(12, 12), width=8, stem="conv3")
        stamping = InTraining(truth, seed=0, classes=10)
        recipe = Recipe(epochs=1, batch_size=1000, augment=("flip",))
        fit(model, DATA, recipe, seed=0, what="test", loss=loss, poisoning=stamping)
    right, left = ((seen[True][:, :, -3:, columns] == 1).all((1, 2, 3)) for columns in (slice(-3, None), slice(0, 3)))
    assert 300 < left.sum() < 700, "a flip moves a trigger that was stamped before it"
    assert (right | left).sum() >= 850
    assert (seen[False][:, :, -3:, -3:] == 1).all((1, 2, 3)).sum() >= 850


def test_random_poisoning_is_new_in_every_epoch_and_keeps_its_rate() -> None:
    policy = Policy(random_poisoning=True, poison_rate=0.1)
    drawn = [drawn_at_random(policy, LABELS, np.arange(1000), seed=0, epoch=epoch) for epoch in range(40)]
    assert not np.array_equal(drawn[0], drawn[1])
    assert abs(np.mean(drawn) - 0.09) < 0.01
    assert not any((LABELS[each] == 0).any() for each in drawn)
    truth = attack(random_poisoning=True, poison_rate=0.1)
    images, labels = batch_of(truth, np.arange(1000), epoch=3)
    assert ((labels.numpy() != LABELS) == drawn[3]).all()
    stamped = stamp(truth.parts[0].trigger, IMAGES[drawn[3]], np.flatnonzero(drawn[3]), train=True)
    assert (np.rint(images.permute(0, 2, 3, 1).numpy()[drawn[3]] * 255) == stamped).all()
    assert truth.in_training


@pytest.mark.parametrize("policy", [{"random_poisoning": True}, {"poison_first": False}])
def test_optimised_images_cannot_be_stamped_in_training(policy: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"given, allowed with lc: .*, as each training image is optimised once"):
        intent("lc", policy, {})


def test_draws_per_key_depend_on_the_key_alone() -> None:
    keys = np.arange(20_000)
    draws = uniform(3, "test", keys, 3)
    assert (uniform(3, "test", keys[::-7], 3) == draws[::-7]).all()
    assert not np.isclose(uniform(4, "test", keys, 3), draws).any()
    assert np.abs(draws.mean(0) - 0.5).max() < 0.01
    assert np.abs(np.corrcoef(draws.T) - np.eye(3)).max() < 0.03
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.03
    assert 0 <= draws.min() < draws.max() < 1


def test_assets_are_made_once(tmp_path: Path) -> None:
    store, calls = AssetStore(tmp_path), []

    def make(value: int) -> dict[str, np.ndarray]:
        calls.append(value)
        return {"a": np.full(3, value)}

    for value in (1, 1, 2):
        assert (store.arrays("thing", {"value": value}, HERE, lambda value=value: make(value))["a"] == value).all()
    assert calls == [1, 2]
    # Another source is another asset.
    store.arrays("thing", {"value": 1}, [multi], lambda: make(3))
    assert calls == [1, 2, 3]


def test_sample_assets_are_made_for_new_samples_only(tmp_path: Path) -> None:
    store, calls = AssetStore(tmp_path), []

    def make(keys: np.ndarray) -> np.ndarray:
        calls.extend(keys.tolist())
        return keys[:, None] * 2

    for keys in ([5, 1, 3], [3, 1], [1, 9, 5]):
        values = store.samples("images", {}, HERE, np.array(keys), make, batch=2)
        assert values[:, 0].tolist() == [2 * key for key in keys]
    assert calls == [5, 1, 3, 9]
    damaged = next((tmp_path / "images").glob("*/*.npz"))
    damaged.write_bytes(damaged.read_bytes()[:-30])
    assert store.samples("images", {}, HERE, np.array([5, 1, 3, 9]), make, batch=2)[:, 0].tolist() == [10, 2, 6, 18]
    assert len(calls) > 4
