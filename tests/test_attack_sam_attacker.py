"""An attacker who trains the victim of another attack by Sharpness-Aware Minimisation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from small_networks import strided
from unpoison.attacks import ATTACKS, SINGLE, hand_of, restored, sam_attacker
from unpoison.core.errors import ParameterError
from unpoison.crafting.attack import intents_of
from unpoison.crafting.context import Context
from unpoison.crafting.craft import craft
from unpoison.crafting.stamping import Stamping
from unpoison.data.imageset import ImageSet
from unpoison.models.classifier import Classifier
from unpoison.poisoning.attacker import read_training, write_training
from unpoison.poisoning.poisoned import Poisoned
from unpoison.poisoning.policy import Policy
from unpoison.training.hand import Loss, Objective
from unpoison.training.loop import fit
from unpoison.training.recipe import Recipe

COUNT = 100
DATA = ImageSet(
    np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3), dtype=np.uint8),
    np.arange(COUNT) % 10,
    tuple("0123456789"),
    "sam attacker",
)
RECIPE = Recipe(epochs=2, batch_size=25, lr=0.05)


def poisoned_by(name: str, own: dict[str, Any], attacks: Any = ATTACKS, **policy: Any) -> Poisoned:
    return craft(name, intents_of(name, attacks, policy, {name: own}), Context(train=DATA, seed=0))


def trained(poisoned: Poisoned, recipe: Recipe) -> Classifier:
    model = strided((8,), seed=0)
    fit(model, DATA, recipe, seed=0, what="test", hand=hand_of(poisoned, DATA, seed=0))
    return model


def same(one: Classifier, other: Classifier) -> bool:
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("attack", ["badnets", "wanet", "bpp"])
def test_is_the_attack_trained_at_the_radius(attack: str) -> None:
    poisoned = poisoned_by("sam_attacker", {"attack": attack, "radius": 0.3})
    alone = craft(attack, intents_of(attack, ATTACKS, {}, {}), Context(train=DATA, seed=0))
    assert poisoned.truth.received == "set"
    assert np.array_equal(poisoned.truth.part, alone.truth.part)
    flat = trained(poisoned, RECIPE)
    assert same(flat, trained(alone, replace(RECIPE, sam=0.3)))
    assert not same(flat, trained(alone, RECIPE))
    # His radius, whatever the recipe's.
    assert same(flat, trained(poisoned, replace(RECIPE, sam=0.01)))


class Counting(Stamping):
    """Adds to what is minimised, and counts passes and steps."""

    def __init__(self, stamping: Stamping, pull: float) -> None:
        super().__init__(stamping.poisoned, stamping.data, seed=stamping.seed)
        self.pull, self.passes, self.steps = pull, 0, torch.zeros(())

    def objective(self, plain: Loss, model: Classifier, images: Tensor, labels: Tensor, samples: Tensor) -> Objective:
        self.passes += 1
        return Objective(*plain(model, images, labels), self.pull * len(samples) * model.head.weight.sum())

    def after_step(self) -> None:
        self.steps += 1

    def tensors(self) -> dict[str, Tensor]:
        return {"steps": self.steps}


def make(context: Context, *, pull: float = 2.0) -> Any:
    return SINGLE["badnets"].make(context)


def counting(stamping: Stamping, *, pull: float) -> Stamping:
    return Counting(stamping, pull)


def test_an_attack_with_a_hand_of_its_own_keeps_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tiny = replace(SINGLE["badnets"], make=make, hand=counting)
    monkeypatch.setitem(ATTACKS, "tiny", tiny)
    monkeypatch.setitem(SINGLE, "tiny", tiny)
    poisoned = poisoned_by("sam_attacker", {"attack": "tiny", "radius": 0.3})
    assert [taught.attack for taught in poisoned.teaching] == ["tiny", "sam_attacker"]
    assert [taught.arguments for taught in poisoned.teaching] == [{"pull": 2.0}, {"radius": 0.3}]
    write_training(tmp_path / "training", poisoned, {})
    kept = read_training(tmp_path / "training", lambda: restored)
    assert kept is not None
    hand = hand_of(kept, DATA, seed=0)
    assert isinstance(hand, Counting)
    assert (hand.pull, hand.sam) == (2.0, 0.3)
    model = strided((8,), seed=0)
    fit(model, DATA, RECIPE, seed=0, what="test", hand=hand)
    # Four batches in each of two epochs; two passes a step, and one step for them.
    assert (hand.passes, hand.steps) == (16, 8)


@pytest.mark.parametrize("attack", SINGLE)
def test_its_policy_and_block_are_those_of_the_attack(attack: str) -> None:
    (found,) = intents_of("sam_attacker", ATTACKS, {}, {"sam_attacker": {"attack": attack}})
    assert (found.attack, found.method, found.policy) == (attack, SINGLE[attack], Policy(**SINGLE[attack].policy))
    assert found.around is not None
    assert (found.around.plan, found.around.arguments) == ("sam_attacker", {"radius": 0.05})
    assert sam_attacker.Parameters().radius == 0.05


def test_its_attack_s_block() -> None:
    sections = {"sam_attacker": {"attack": "wanet"}, "wanet": {"points": 7}}
    (found,) = intents_of("sam_attacker", ATTACKS, {"cover_ratio": 0.5}, sections)
    assert (found.arguments, found.policy.cover_ratio) == ({"points": 7}, 0.5)


@pytest.mark.parametrize("attack", ["none", "multi", "bypass", "sam_attacker", "sinkhole"])
def test_what_is_no_attack_of_one_trigger_is_refused(attack: str) -> None:
    said = rf"^sam_attacker\.attack: '{attack}' given, allowed: badnets, blended, [\w, ]+$"
    with pytest.raises(ParameterError, match=said):
        intents_of("sam_attacker", ATTACKS, {}, {"sam_attacker": {"attack": attack}})


@pytest.mark.parametrize("radius", [0.0, -0.1])
def test_a_radius_that_is_none_is_refused(radius: float) -> None:
    with pytest.raises(
        ParameterError, match=rf"^sam_attacker\.radius: {radius} given; input should be greater than 0$"
    ):
        intents_of("sam_attacker", ATTACKS, {}, {"sam_attacker": {"radius": radius}})
