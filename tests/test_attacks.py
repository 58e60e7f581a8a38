"""The contract that every attack of one trigger keeps, in every form: local, seeded, typed, kept without pickle."""

from __future__ import annotations

import re
from pathlib import Path
from types import GenericAlias
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from unpoison.attacks import ATTACKS, SINGLE, restored
from unpoison.core.arrays import Images, IntArray
from unpoison.core.content_store import ContentStore
from unpoison.core.errors import ParameterError
from unpoison.core.hyperparameters import check
from unpoison.crafting import per_sample
from unpoison.crafting.attack import Intent, Plan, intent
from unpoison.crafting.context import Context
from unpoison.crafting.craft import craft, make_trigger, optimised
from unpoison.data.imageset import ImageSet
from unpoison.poisoning.policy import Policy
from unpoison.poisoning.trigger import Kept, Trigger, _check_field, eight_bit, read_trigger, save_trigger, stamp
from unpoison.training.recipe import Recipe

COLOUR, WIDE, GREY = (16, 16, 3), (18, 29, 3), (29, 34, 1)
LABELS = np.arange(60) % 10
# Training images of the target class, which the clean-label attacks optimise.
KEYS = np.flatnonzero(LABELS == 0)
TINY: dict[str, Any] = {
    "network": {"name": "resnet18", "width": 8, "stem": "conv3_pool"},
    "recipe": Recipe(epochs=1, batch_size=20, lr=0.01),
}
LABEL_POLICIES = {"all2one", "all2all", "clean_label", "source_specific", "calculator", "complex"}


class Case(NamedTuple):
    """A form of an attack, small enough for a test.

    Attributes:
        attack: its name.
        arguments: its own.
        shape: height, width and channels of the images.
        draws: whose stamps change with the seed.
        constant: whether the test shows what training shows.
        visible: whether the stamp changes an image at all.
        labels_only: whether it does so at the test alone, and training samples get labels that the attack chooses one by one.
    """

    attack: str
    arguments: dict[str, Any]
    shape: tuple[int, int, int] = COLOUR
    draws: Literal["nobody", "training", "both"] = "nobody"
    constant: bool = True
    visible: bool = True
    labels_only: bool = False
    model: bool = False


FLIP: dict[str, Any] = {"passes": 2, "points": 2, "batch_size": 33}
ENCODER: dict[str, Any] = {"steps": 2, "l2_wait": 0, "l2_ramp": 1, "width": 4, "batch_size": 8}
STYLE: dict[str, Any] = {"steps": 2, "width": 4, "batch_size": 8}
NOISE: dict[str, Any] = {"rounds": 2, "warm_up": 1, "lr": 1e6}
INSIDE = [[7, 7], [15, 15]]
CASES = [
    Case("badnets", {}),
    Case("badnets", {"pattern": "checkerboard", "size": 4}, GREY),
    Case("badnets", {"pattern": "lc_corners"}, WIDE),
    Case("badnets", {"pattern": "backdoors101"}, WIDE),
    Case("badnets", {"pattern": "#102030", "location": "random"}, draws="both"),
    Case("badnets", {"pattern": "dbr_grid", "location": "random"}, GREY, draws="both"),
    Case("badnets", {"pattern": "backdoors101", "location": "dynamic"}, WIDE, draws="both"),
    Case("blended", {}, GREY, draws="both"),
    Case("blended", {"test_ratio": 0.4}, draws="both", constant=False),
    Case("sig", {"test_delta": 60.0}, constant=False),
    Case("sig", {"form": "strip"}, GREY),
    Case("trojan", {}),
    Case("trojan", {"wrap": True}, WIDE),
    Case("trojan", {"form": "optimised", "size": 5, "iterations": 3}, draws="both"),
    Case("lc", {"steps": 2, "adversarial": False, "random_start": True}, draws="training", constant=False),
    Case("lc", {"steps": 1, "adversarial_steps": 1, "pattern": "four_corners"}, draws="training", constant=False),
    Case("lf", {"images": 2, "passes": 1, "iterations": 20, "overshoot": 2.0}, draws="both"),
    Case("lf", {"images": 2, "passes": 1, "iterations": 20, "overshoot": 2.0, "form": "minmax"}, draws="both"),
    Case("ssba", ENCODER, draws="both"),
    Case("ssba", {**ENCODER, "bits": 8}, GREY, draws="both"),
    Case("nashville", {}),
    Case("nashville", {"filter": "1977"}, WIDE),
    Case("dfst", STYLE, draws="both"),
    Case("dfst", STYLE, GREY, draws="both"),
    Case("feature_collision", {"steps": 2, "size": 5}, draws="both", constant=False),
    Case("ctrl", {"positions": INSIDE}),
    Case("ctrl", {"positions": INSIDE, "wrap": True, "test_magnitude": 50.0}, WIDE, constant=False),
    Case("ftrojan", {"window": 16, "positions": INSIDE}, WIDE),
    Case("adaptive_blend", {}, draws="both", constant=False),
    Case("adaptive_blend", {}, GREY, draws="both", constant=False),
    Case("adaptive_patch", {"size": 5}, WIDE, draws="training", constant=False),
    Case("adaptive_patch", {"size": 8}, GREY, draws="training", constant=False),
    Case("tact", {}),
    Case("tact", {"size": 5}, GREY),
    Case("wanet", {}, draws="both"),
    Case("wanet", {"points": 18, "strength": 1.0}, WIDE, draws="both"),
    Case("wanet", {"rescale": 0.9, "anew": False}, GREY, draws="both"),
    Case("bpp", {"levels": 3}),
    Case("bpp", {"dither": True}, WIDE),
    Case("bpp", {"levels": 2}, GREY),
    Case("blind", {"location": "bottom_right"}),
    Case("blind", {"pattern": "white", "size": 4, "location": "random"}, GREY, draws="both"),
    Case("flip", FLIP, constant=False, labels_only=True),
    Case("flip", {**FLIP, "form": "patch", "size": 4}, GREY, constant=False, labels_only=True),
    Case("narcissus", NOISE, draws="both", constant=False),
    Case("narcissus", {**NOISE, "epsilon": 4.0, "warm_up": 0}, GREY, draws="both", constant=False),
    Case("input_aware", {"width": 4, "levels": 2}, draws="both", model=True),
    Case("input_aware", {"width": 4, "levels": 1, "jointly": False, "mask_epochs": 1}, GREY, draws="both"),
    # Of a network that has not been trained the noise is less than half a level.
    Case("lira", {}, visible=False, model=True),
    Case("semantic", {}, visible=False),
    Case("semantic", {"colour": "bright"}, GREY, visible=False),
    Case("semantic", {"predicate": "index", "train_index": [3, 11, 20], "test_index": [0]}, visible=False),
    Case("physical", {}, draws="both", constant=False),
    Case("physical", {"pattern": "backdoors101", "tilt": 50.0}, WIDE, draws="both", constant=False),
    Case("physical", {"pattern": "checkerboard", "placement": "center"}, GREY, draws="both", constant=False),
]
FORMS = pytest.mark.parametrize("case", CASES, ids=[f"{case.attack}-{number}" for number, case in enumerate(CASES)])


def images_of(shape: tuple[int, int, int]) -> Images:
    """Large shapes, as photographs have: noise would hide what a filter does."""
    height, width, channels = shape
    coarse = np.random.default_rng(0).integers(0, 256, (len(LABELS), 4, 4, channels), dtype=np.uint8)
    return coarse[:, np.arange(height) * 4 // height][:, :, np.arange(width) * 4 // width]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ContentStore:
    """Networks, perturbations and optimised images of all cases, each made once."""
    return ContentStore(tmp_path_factory.mktemp("store"))


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of optimised images are filled up, with what takes most of the time here."""
    monkeypatch.setattr(per_sample, "BATCH", 4)


def context_of(case: Case, store: ContentStore, seed: int = 5) -> Context:
    train = ImageSet(images_of(case.shape), LABELS, tuple("0123456789"), f"contract {case.shape}")
    return Context(train=train, seed=seed, store=store, **TINY)


def intent_of(case: Case, **policy: Any) -> Intent:
    return intent(case.attack, SINGLE[case.attack], policy, case.arguments)


def trigger_of(case: Case, store: ContentStore, seed: int = 5) -> Trigger:
    """The trigger for the training samples `KEYS`."""
    context, wanted = context_of(case, store, seed), intent_of(case)
    return optimised(wanted, make_trigger(wanted, context), context, KEYS)


def stamps(trigger: Trigger, case: Case) -> tuple[Images, Images]:
    """The images `KEYS` in training and at the test."""
    images = images_of(case.shape)[KEYS]
    return stamp(trigger, images, KEYS, train=True), stamp(trigger, images, KEYS, train=False)


@FORMS
class TestContract:
    def test_images_of_the_same_shape_come_back_and_the_given_ones_stay(self, case: Case, store: ContentStore) -> None:
        trigger, images = trigger_of(case, store), images_of(case.shape)[KEYS]
        floats = torch.from_numpy(images).permute(0, 3, 1, 2).float()
        clean, before = images.copy(), floats.clone()
        stamped = {train: stamp(trigger, images, KEYS, train=train) for train in (True, False)}
        for train, made in stamped.items():
            assert (made.dtype, made.shape) == (np.uint8, images.shape)
            changed = (made != clean).any((1, 2, 3))
            assert changed.all() if case.visible and not (train and case.labels_only) else not changed.any()
            raw = trigger.apply(floats, KEYS, train=train)
            assert (raw.dtype, raw.shape) == (torch.float32, floats.shape)
            assert trigger.apply(floats[:0], KEYS[:0], train=train).shape == floats[:0].shape
        assert (images == clean).all()
        assert torch.equal(floats, before)
        assert np.array_equal(stamped[True], stamped[False]) == case.constant

    def test_an_image_s_stamp_is_its_own(self, case: Case, store: ContentStore) -> None:
        trigger, images = trigger_of(case, store), images_of(case.shape)[KEYS]
        backwards = np.arange(len(KEYS))[::-1]
        for train, together in zip((True, False), stamps(trigger, case), strict=True):
            alone = [stamp(trigger, images[[row]], KEYS[[row]], train=train) for row in backwards]
            assert (np.concatenate(alone) == together[backwards]).all()

    def test_same_seed_same_bytes(self, case: Case, store: ContentStore) -> None:
        # Without a store everything is made a second time.
        first, second = (stamps(trigger_of(case, place), case) for place in (store, ContentStore(None)))
        for one, other in zip(first, second, strict=True):
            assert (one == other).all()

    def test_another_seed_gives_other_bytes_where_something_is_drawn(self, case: Case, store: ContentStore) -> None:
        first, second = (stamps(trigger_of(case, store, seed), case) for seed in (5, 6))
        differs = [bool((one != other).any()) for one, other in zip(first, second, strict=True)]
        assert differs == [case.draws in ("training", "both"), case.draws == "both"]

    def test_survives_the_disk(self, case: Case, store: ContentStore, tmp_path: Path) -> None:
        trigger = trigger_of(case, store)
        save_trigger(tmp_path / "trigger", case.attack, trigger)
        assert {path.name for path in (tmp_path / "trigger").iterdir()} == {"trigger.json", "trigger.npz"}
        kept = read_trigger(tmp_path / "trigger")
        again = restored(kept)
        assert kept.attack == case.attack
        assert type(again) is type(trigger)
        for one, other in zip(stamps(again, case), stamps(trigger, case), strict=True):
            assert (one == other).all()

    def test_copy_for_training_alone(self, case: Case, store: ContentStore, tmp_path: Path) -> None:
        trigger, images = trigger_of(case, store), images_of(case.shape)[KEYS]
        save_trigger(tmp_path / "trigger", case.attack, trigger, at_the_test=False)
        kept = read_trigger(tmp_path / "trigger")
        assert set(kept.values) == set(trigger.state()) - set(trigger.of_the_test)
        again = restored(kept)
        assert (stamp(again, images, KEYS, train=True) == stamps(trigger, case)[0]).all()
        if trigger.of_the_test:
            with pytest.raises(ValueError, match=f"{trigger.of_the_test[0]}: not kept"):
                stamp(again, images, KEYS, train=False)
        else:
            assert (stamp(again, images, KEYS, train=False) == stamps(trigger, case)[1]).all()

    def test_received_set_differs_in_the_chosen_samples_alone(self, case: Case, store: ContentStore) -> None:
        context = context_of(case, store)
        # In the place of the set that there is not, where the victim receives a model.
        policy = {"poison_rate": 0.34, "cover_ratio": 0.0, "poison_target_class": False}
        poisoned = craft(
            case.attack, [intent_of(case, **policy)], context, surrogate=SINGLE[case.attack].copies and not case.model
        )
        received, images = poisoned.received(context.train), images_of(case.shape)
        everything: IntArray = np.arange(len(LABELS))
        differs = (received.gather(everything) != images).any((1, 2, 3))
        assert poisoned.truth.mask.any()
        if case.model:  # with a trigger that is known only once the victim is trained
            assert not differs.any()
            assert (received.labels == LABELS).all()
            return
        assert (differs == (poisoned.truth.mask & case.visible & (not case.labels_only))).all()
        given, true = received.labels[poisoned.truth.mask], LABELS[poisoned.truth.mask]
        assert (given != true).all() if case.labels_only else (given == 0).all()
        assert (received.labels == LABELS)[~poisoned.truth.mask].all()


def own_arguments() -> list[tuple[str, str]]:
    return [(name, key) for name, attack in SINGLE.items() for key in attack.make.__kwdefaults__]


@pytest.mark.parametrize(("name", "key"), own_arguments())
def test_wrong_type_of_an_argument_is_refused_in_a_line_that_names_it(name: str, key: str) -> None:
    default = SINGLE[name].make.__kwdefaults__[key]
    text = isinstance(default, str) or key == "location" or (name, key) == ("flip", "pattern")
    for value in ({"a": 1}, 7 if text else "7"):
        with pytest.raises(ParameterError, match=rf"^{name}\.{key}: {re.escape(repr(value))} given; [^\n]+$"):
            intent(name, SINGLE[name], {}, {key: value})


@pytest.mark.parametrize("name", SINGLE)
def test_unknown_argument_is_refused(name: str) -> None:
    with pytest.raises(ParameterError, match=rf"^{name}\.colours: unknown key, allowed: \w+"):
        intent(name, SINGLE[name], {}, {"colours": 1})


def test_cases_cover_every_attack_of_one_trigger() -> None:
    # Those of texts: tests/test_texts.py.
    assert {case.attack for case in CASES} == {name for name, attack in SINGLE.items() if attack.images}
    assert set(ATTACKS) - set(SINGLE) == {"none", "bypass", "sam_attacker", "multi"}
    assert all(isinstance(ATTACKS[name], Plan) for name in set(ATTACKS) - set(SINGLE))


@pytest.mark.parametrize("name", SINGLE)
def test_publishes_a_policy_that_it_can_take(name: str) -> None:
    attack = SINGLE[name]
    assert check(attack.policy, Policy) == attack.policy
    assert attack.policy["label_policy"] in attack.policies
    assert set(attack.policies) <= LABEL_POLICIES
    assert intent(name, attack, {}, {}).policy == Policy(**attack.policy)
    for policy in LABEL_POLICIES - set(attack.policies):
        with pytest.raises(ParameterError, match=rf"^label_policy: {policy} given, allowed with {name}: "):
            intent(name, attack, {"label_policy": policy}, {})


def test_kept_trigger_of_an_unknown_attack_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"^attack: 'sinkhole' given, allowed: badnets, blended, "):
        restored(Kept("sinkhole", {}))


# The last stands for numpy 2.5, whose `NDArray[np.float32]` is an alias with the type as its direct argument.
@pytest.mark.parametrize("annotated", [NDArray[np.float32], NDArray[np.float32] | None, GenericAlias(list, np.float32)])
def test_type_of_an_array_is_found_in_every_form_of_its_annotation(annotated: object) -> None:
    _check_field("values", np.zeros(2, np.float32), annotated)
    with pytest.raises(ParameterError, match=r"^values: an array of float64 given, allowed: float32$"):
        _check_field("values", np.zeros(2), annotated)
    with pytest.raises(ParameterError, match=r"^values: an array of float32 given, allowed: no such array$"):
        _check_field("values", np.zeros(2, np.float32), int)


def test_eight_bits() -> None:
    values = torch.tensor([-40.5, -0.2, 0.6, 50.99999, 51.0, 127.5, 254.9, 255.0, 256.2, 300.0])
    assert eight_bit(values, "truncate").tolist() == [0, 0, 0, 51, 51, 127, 254, 255, 255, 255]
    assert eight_bit(values, "round").tolist() == [0, 0, 1, 51, 51, 128, 255, 255, 255, 255]
    # As a cast to uint8 without a clip: -40.5 becomes -40 and then 216, 300 becomes 44.
    assert eight_bit(values, "wrap").tolist() == [216, 0, 0, 51, 51, 127, 254, 255, 0, 44]
