"""Policies, several triggers in one data set, triggers stamped in training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from unpoison import models
from unpoison.attacks import ATTACKS, SINGLE
from unpoison.core.arrays import IntArray
from unpoison.core.errors import ParameterError
from unpoison.core.seeding import uniform
from unpoison.crafting.attack import Intent, intent, intents_of
from unpoison.crafting.context import Context
from unpoison.crafting.craft import craft
from unpoison.crafting.stamping import Stamping
from unpoison.data.imageset import ImageSet
from unpoison.poisoning.choice import Choice, choose_samples, chosen_anew
from unpoison.poisoning.poisoned import Poisoned
from unpoison.poisoning.policy import Policy
from unpoison.poisoning.trigger import stamp
from unpoison.training.loop import fit
from unpoison.training.recipe import Recipe

LABELS = np.arange(1000) % 10
IMAGES = np.random.default_rng(0).integers(0, 256, (1000, 12, 12, 3), dtype=np.uint8)
DATA = ImageSet(IMAGES, LABELS, tuple("0123456789"), "policies")


def chosen(seed: int = 0, labels: IntArray = LABELS, **policy: Any) -> Choice:
    return choose_samples(Policy(**policy), labels, 10, seed=seed)


def attack(name: str = "badnets", arguments: dict[str, Any] | None = None, **policy: Any) -> Poisoned:
    return craft(name, [intent(name, SINGLE[name], policy, arguments or {})], Context(train=DATA, seed=0))


def several(policy: dict[str, Any], blocks: list[dict[str, Any]], **sections: dict[str, Any]) -> list[Intent]:
    return intents_of("multi", ATTACKS, policy, {"multi": {"triggers": blocks}, **sections})


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
    truth = attack("sig", label_policy="clean_label", target=2, poison_rate=0.1).truth
    assert truth.mask.sum() == 10
    assert (LABELS[truth.mask] == 2).all()
    assert (truth.labels_given(10) == LABELS).all()


def test_cover_samples_keep_their_label() -> None:
    poisoned = attack(
        "tact", {"size": 2}, target=0, sources=[1], cover_classes=[5, 7], poison_rate=0.4, cover_ratio=1.5
    )
    truth = poisoned.truth
    assert truth.mask.sum() == 40
    assert truth.cover.sum() == 60
    assert set(LABELS[truth.cover]) == {5, 7}
    assert set(LABELS[truth.mask]) == {1}
    assert (truth.labels_given(10)[truth.cover] == LABELS[truth.cover]).all()
    stamped = poisoned.stamped(DATA, np.flatnonzero(truth.cover))
    assert (stamped[:, -2:, -2:] == 255).all()


def test_order_comes_before_chance() -> None:
    order = np.where(LABELS % 2, np.arange(1000.0), -np.inf)
    chosen_first = choose_samples(Policy(poison_rate=0.02), LABELS, 10, seed=0, order=order)
    assert chosen_first.poison.tolist() == list(range(981, 1000, 2))
    with pytest.raises(ParameterError, match=r"allowed: 1 to 500, the candidates"):
        choose_samples(Policy(poison_count=501), LABELS, 10, seed=0, order=order)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"target": 10}, r"^target: 10 given, allowed: 0 to 9"),
        ({"label_policy": "source_specific", "sources": [12]}, r"^sources: 12 given, allowed: 0 to 9"),
        ({"label_policy": "source_specific"}, r"^sources: \[\] given, allowed with source_specific: classes"),
        ({"label_policy": "source_specific", "sources": [0]}, r"^sources: \[0\] given"),
        ({"cover_classes": [10]}, r"^cover_classes: 10 given"),
        ({"poison_count": 901}, r"^poison_count: 901 given, allowed: 1 to 900"),
        (
            {"poison_rate": 0.95, "rate_of": "all"},
            r"^poison_rate: 0\.95 of 1000 samples given, allowed: up to 0\.9,",
        ),
        ({"cover_classes": [0], "cover_ratio": 1.0}, r"^cover_classes: 0 given, allowed: neither the target"),
        ({"cover_ratio": 10.0, "poison_rate": 0.5}, r"^cover_ratio: 10\.0 given, which asks for 4500 cover"),
        ({"label_policy": "all2all", "shift": 20}, r"^shift: 20 given, allowed: no multiple of the 10 classes"),
        ({"random_poisoning": True, "poison_count": 3}, r"^poison_count: 3 given, allowed with random"),
        ({"random_poisoning": True, "rate_of": "all"}, r"^rate_of: all given, allowed with random"),
        (
            {"random_poisoning": True, "poison_rate": 0.5, "cover_ratio": 1.5},
            r"^cover_ratio: 1\.5 given, allowed with random_poisoning and poison_rate 0\.5: up to 1, as a sample",
        ),
    ],
)
def test_impossible_policies(policy: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        chosen(**policy)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"poison_rate": 1.0}, r"^poison_rate: 1\.0 given, which leaves no sample in class 1; allowed: up to 0\.9"),
        ({"poison_count": 900}, r"^poison_count: 900 given, which leaves no sample in class 1"),
        ({"poison_rate": 1.0, "random_poisoning": True}, r"^poison_rate: 1\.0 given, which leaves no sample in"),
    ],
)
def test_a_class_that_would_be_empty(policy: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        attack(**policy)


def test_several_triggers_may_not_empty_a_class_together() -> None:
    blocks = [{"attack": "badnets", "target": 0, "size": 2}, {"attack": "blended", "target": 1}]
    intents = several({"poison_rate": 1.0, "poison_target_class": True}, blocks)
    with pytest.raises(ParameterError, match=r"^poison_rate: 0\.5 given, which leaves no sample in class 2"):
        craft("multi", intents, Context(train=DATA, seed=0))


def test_nothing_to_poison_is_no_error() -> None:
    poisoned = attack("lc", {"adversarial": False}, poison_rate=0.0)
    assert not poisoned.truth.mask.any()
    assert poisoned.stamped(DATA, poisoned.truth.stamped).shape == (0, 12, 12, 3)
    received = poisoned.received(DATA)
    assert (received.gather(np.arange(1000)) == IMAGES).all()
    assert (received.labels == LABELS).all()


def test_source_class_that_is_not_there() -> None:
    labels = np.where(LABELS == 4, 5, LABELS)
    with pytest.raises(ParameterError, match=r"for which no training sample is a candidate"):
        chosen(labels=labels, label_policy="source_specific", sources=[4])


def test_multi_shares_the_rate_out() -> None:
    blocks = [{"attack": "badnets", "target": 1, "pattern": "white", "size": 2}, {"attack": "blended", "target": 3}]
    intents = several({"poison_rate": 0.1}, blocks, badnets={"pattern": "black"}, blended={"ratio": 0.9})
    assert [one.arguments for one in intents] == [{"pattern": "white", "size": 2}, {"ratio": 0.9}]
    poisoned = craft("multi", intents, Context(train=DATA, seed=0))
    truth = poisoned.truth
    assert truth.names == ["0_badnets", "1_blended"]
    first, second = (truth.mask & (truth.part == number) for number in (0, 1))
    assert first.sum() == second.sum() == 45
    given = truth.labels_given(10)
    assert set(given[first]) == {1}
    assert set(given[second]) == {3}
    assert not (first & (LABELS == 1)).any()
    assert (given[~truth.mask] == LABELS[~truth.mask]).all()
    received = poisoned.received(DATA)
    assert (received.gather(np.flatnonzero(first))[:, -2:, -2:] == 255).all()
    expected = stamp(poisoned.triggers[1], IMAGES[second], np.flatnonzero(second), train=True)
    assert (received.gather(np.flatnonzero(second)) == expected).all()
    assert (received.gather(np.flatnonzero(~truth.mask)) == IMAGES[~truth.mask]).all()


def test_multi_shares_a_count_out_as_evenly_as_it_goes() -> None:
    blocks = [{"attack": "badnets", "target": target, "size": target + 1} for target in range(3)]
    assert [one.policy.poison_count for one in several({"poison_count": 8}, blocks)] == [3, 3, 2]


@pytest.mark.parametrize(
    ("policy", "blocks", "message"),
    [
        ({}, [{"attack": "badnets", "target": 0}], r"^multi\.triggers: 1 given, allowed: at least 2"),
        (
            {},
            [{"attack": "badnet", "target": 0}] * 2,
            r"^multi\.triggers\[0\]\.attack: 'badnet' given, allowed: badnets",
        ),
        ({}, [{"attack": "multi", "target": 0}] * 2, r"^multi\.triggers\[0\]\.attack: 'multi' given, allowed: badnets"),
        ({}, [{"attack": "badnets"}] * 2, r"^multi\.triggers\[0\]\.target: nothing given, allowed: a class"),
        ({}, [{"attack": "badnets", "target": None}] * 2, r"^multi\.triggers\[0\]\.target: nothing given"),
        ({}, [{"attack": "badnets", "target": 0, "alpha": 1}] * 2, r"^badnets\.alpha: unknown key"),
        ({}, [{"attack": "badnets", "target": 0}, {"attack": "sig", "target": 1}], r"^label_policy: null given"),
        ({"poison_count": 1}, [{"attack": "badnets", "target": 0}] * 2, r"^poison_count: 1 given, allowed with 2"),
        (
            {},
            [{"attack": "badnets", "target": 0}, {"attack": "badnets", "target": 1}],
            r"^multi\.triggers\[1\]: the same trigger as an earlier one",
        ),
        ({"random_poisoning": True}, [{"attack": "badnets", "target": 0}] * 2, r"^random_poisoning: true given"),
    ],
)
def test_multi_errors(policy: dict[str, Any], blocks: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        several(policy, blocks)


def test_no_attack_has_no_intents_and_no_parameters() -> None:
    assert intents_of("none", ATTACKS, {"target": 3}, {}) == []
    with pytest.raises(ParameterError, match=r"^none\.size: unknown key, allowed: no keys at all"):
        intents_of("none", ATTACKS, {}, {"none": {"size": 3}})


def batch_of(poisoned: Poisoned, samples: IntArray, epoch: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.from_numpy(IMAGES[samples]).permute(0, 3, 1, 2).float() / 255
    labels = torch.from_numpy(LABELS[samples])
    return Stamping(poisoned, DATA, seed=0).stamp(images, labels, torch.from_numpy(samples), epoch)


def test_stamping_after_augmentation_equals_stamping_before_when_nothing_is_augmented() -> None:
    late, early = attack("blended", poison_first=False), attack("blended")
    assert late.truth.in_training
    assert not early.truth.in_training
    images, labels = batch_of(late, np.arange(1000))
    assert (labels.numpy() == late.truth.labels_given(10)).all()
    assert (early.truth.mask == late.truth.mask).all()
    shown = images.permute(0, 2, 3, 1).numpy() * 255
    # Stamped as float images, they keep the fraction that 8 bits drop.
    difference = shown - early.received(DATA).gather(np.arange(1000))
    assert difference.min() > -1e-3
    assert difference.max() < 1
    assert difference.max() > 0.5


def test_wrapping_triggers_wrap_after_augmentation_as_well() -> None:
    late, early = (attack("trojan", {"wrap": True}, poison_first=first) for first in (False, True))
    images, _ = batch_of(late, np.arange(1000))
    shown = images.permute(0, 2, 3, 1).numpy()[late.truth.stamped] * 255
    assert np.abs(shown - early.stamped(DATA, early.truth.stamped)).max() < 1
    assert (early.stamped(DATA, early.truth.stamped) < IMAGES[early.truth.stamped]).any(), "something wraps"


def test_training_sees_the_trigger_where_augmentation_put_it() -> None:
    seen: dict[bool, torch.Tensor] = {}
    for first in (True, False):
        policy = {"poison_first": first, "random_poisoning": True, "poison_rate": 0.99}
        poisoned = attack(arguments={"pattern": "white", "size": 3}, **policy)

        def loss(model: Any, images: torch.Tensor, labels: torch.Tensor, first: bool = first) -> Any:
            seen[first] = images[labels == 0].clone()
            logits = model(images)
            return logits, torch.nn.functional.cross_entropy(logits, labels, reduction="none")

        model = models.build("resnet18", num_classes=10, image_size=(12, 12), width=8, stem="conv3")
        stamping = Stamping(poisoned, DATA, seed=0)
        recipe = Recipe(epochs=1, batch_size=1000, augment=("flip",))
        fit(model, DATA, recipe, seed=0, what="test", loss=loss, hand=stamping)
    right, left = ((seen[True][:, :, -3:, columns] == 1).all((1, 2, 3)) for columns in (slice(-3, None), slice(0, 3)))
    assert 300 < left.sum() < 700, "a flip moves a trigger that was stamped before it"
    assert (right | left).sum() >= 850
    assert (seen[False][:, :, -3:, -3:] == 1).all((1, 2, 3)).sum() >= 850


def test_random_poisoning_is_new_in_every_epoch_and_keeps_its_rate() -> None:
    policy = Policy(random_poisoning=True, poison_rate=0.1)
    drawn = [chosen_anew(policy, LABELS, np.arange(1000), seed=0, epoch=epoch)[0] for epoch in range(40)]
    assert not np.array_equal(drawn[0], drawn[1])
    assert abs(np.mean(drawn) - 0.09) < 0.01
    assert not any((LABELS[mask] == 0).any() for mask in drawn)
    poisoned = attack(random_poisoning=True, poison_rate=0.1)
    images, labels = batch_of(poisoned, np.arange(1000), epoch=3)
    assert ((labels.numpy() != LABELS) == drawn[3]).all()
    stamped = stamp(poisoned.triggers[0], IMAGES[drawn[3]], np.flatnonzero(drawn[3]), train=True)
    assert (np.rint(images.permute(0, 2, 3, 1).numpy()[drawn[3]] * 255) == stamped).all()
    assert poisoned.truth.in_training


@pytest.mark.parametrize("policy", [{"random_poisoning": True}, {"poison_first": False}])
def test_optimised_images_cannot_be_stamped_in_training(policy: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match=r"given, allowed with lc: .*, as each training image is optimised once"):
        intent("lc", SINGLE["lc"], policy, {})


@pytest.mark.parametrize(("key", "value"), [("random_poisoning", True), ("cover_ratio", 1.0)])
def test_an_attack_that_chooses_its_samples_draws_none(key: str, value: Any) -> None:
    listed = {"predicate": "index", "train_index": [1, 2, 3], "test_index": [1]}
    assert attack("semantic", listed, poison_rate=1.0).truth.stamped.tolist() == [1, 2, 3]
    with pytest.raises(ParameterError, match=rf"^{key}: .* given, allowed with an attack that chooses its samples: "):
        attack("semantic", listed, **{key: value})


def test_draws_per_key_depend_on_the_key_alone() -> None:
    keys = np.arange(20_000)
    draws = uniform(3, "test", keys, 3)
    assert (uniform(3, "test", keys[::-7], 3) == draws[::-7]).all()
    assert not np.isclose(uniform(4, "test", keys, 3), draws).any()
    assert np.abs(draws.mean(0) - 0.5).max() < 0.01
    assert np.abs(np.corrcoef(draws.T) - np.eye(3)).max() < 0.03
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.03
    assert 0 <= draws.min() < draws.max() < 1
