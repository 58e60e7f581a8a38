"""Bypass: its discriminator, what victim and discriminator minimise, and whose poison it is."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from killed import killed_and_resumed
from small_networks import strided
from unpoison.attacks import ATTACKS, bypass, hand_of, restored
from unpoison.compute.distributed import World
from unpoison.core.errors import ParameterError
from unpoison.crafting.attack import intents_of
from unpoison.crafting.context import Context
from unpoison.crafting.craft import craft
from unpoison.data.imageset import ImageSet
from unpoison.models.classifier import AUXILIARY_WEIGHT, Backbone, Classifier
from unpoison.poisoning.attacker import read_training, write_training
from unpoison.poisoning.poisoned import Poisoned
from unpoison.training.hand import Loss
from unpoison.training.loop import cross_entropy, fit
from unpoison.training.recipe import Recipe

COUNT = 60
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(COUNT) % 10
DATA = ImageSet(IMAGES, LABELS, tuple("0123456789"), "bypass")
RECIPE = Recipe(epochs=3, batch_size=20, lr=0.05, momentum=0.0, weight_decay=0.0, schedule="constant")


def poisoned_by(arguments: dict[str, Any] | None = None, **policy: Any) -> Poisoned:
    intents = intents_of("bypass", ATTACKS, {"poison_rate": 0.3, **policy}, {"bypass": arguments or {}})
    return craft("bypass", intents, Context(train=DATA, seed=0))


def hand_for(poisoned: Poisoned) -> bypass.Embedding:
    hand = hand_of(poisoned, DATA, seed=0)
    assert isinstance(hand, bypass.Embedding)
    return hand


def started(model: Classifier, here: World | None = None, **arguments: Any) -> bypass.Embedding:
    hand = hand_for(poisoned_by(arguments))
    hand.start(model.train(), here or World())
    return hand


def batch(hand: bypass.Embedding, samples: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Stamped images, labels given and the samples."""
    index = torch.tensor(samples)
    images, labels = hand.stamp(DATA.tensor(index.numpy()) / 255, torch.from_numpy(LABELS[samples]), index, 0)
    return images, labels, index


@pytest.mark.parametrize("attack", ["badnets", "blended"])
def test_the_victim_receives_the_poison_of_the_attack_itself(attack: str) -> None:
    poisoned = poisoned_by({"attack": attack})
    intents = intents_of(attack, ATTACKS, {"poison_rate": 0.3}, {})
    alone = craft(attack, intents, Context(train=DATA, seed=0))
    assert (poisoned.truth.received, alone.truth.received) == ("set", "set")
    assert np.array_equal(poisoned.truth.mask, alone.truth.mask)
    one, other = poisoned.received(DATA), alone.received(DATA)
    assert np.array_equal(one.gather(np.arange(COUNT)), other.gather(np.arange(COUNT)))
    assert np.array_equal(one.labels, other.labels)
    # What the hand stamps in training is that set as well, whichever batch a sample is in.
    images, labels, _ = batch(hand_for(poisoned), list(range(COUNT)))
    stamped = (images * 255).round().permute(0, 2, 3, 1).numpy().astype(np.uint8)
    assert np.array_equal(stamped, other.gather(np.arange(COUNT)))
    assert np.array_equal(labels.numpy(), other.labels)


def test_its_block_is_that_of_the_attack() -> None:
    intents = intents_of("bypass", ATTACKS, {}, {"bypass": {"attack": "blended"}, "blended": {"ratio": 0.7}})
    assert [(each.attack, each.arguments) for each in intents] == [("blended", {"ratio": 0.7})]


def test_a_discriminator_by_hand() -> None:
    judge = bypass.Discriminator(2)
    with torch.no_grad():
        for layer in judge.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.zero_()
                layer.bias.zero_()
        # One path: the first feature minus the second, doubled at the end.
        judge.layers[0].weight[0] = torch.tensor([1.0, -1.0])
        judge.layers[1].weight[0, 0] = 1.0
        judge.last.weight[0, 0] = 2.0
        judge.last.bias.fill_(0.5)
        logits = judge(torch.tensor([[3.0, 1.0], [1.0, 3.0]]))
    # 2 and -2: batch norm gives 1 and -1, leaky ReLU 1 and -0.2; once more the same. Then 2x + 0.5.
    assert logits.tolist() == pytest.approx([2.5, 0.1], abs=1e-4)
    # A single sample: by the running statistics, which are 0 and 0.9 + 0.1 * 8 after that batch, then 0.4 * 0.1 and …
    alone = judge(torch.tensor([[3.0, 1.0]]))
    first = 2 / (0.9 + 0.1 * 8) ** 0.5
    second = (first - 0.1 * 0.4) / (0.9 + 0.1 * 0.72) ** 0.5
    assert alone.tolist() == pytest.approx([2 * second + 0.5], abs=1e-4)


def reference(model: Classifier, poisoned: Poisoned, steps: list[list[int]], weight: float) -> nn.Sequential:
    """The published order of a step, written out: both of the discriminator's passes, the victim's step, its own step."""
    d = model.head.in_features
    judge = nn.Sequential(
        nn.Linear(d, 256), nn.BatchNorm1d(256), nn.LeakyReLU(0.2),
        nn.Linear(256, 128), nn.BatchNorm1d(128), nn.LeakyReLU(0.2), nn.Linear(128, 1), nn.Sigmoid(),
    )  # fmt: skip
    own = started(deepcopy(model)).discriminator
    with torch.no_grad():
        for mine, theirs in zip(judge.parameters(), in_order(own), strict=True):
            mine.copy_(theirs)
    moments = [torch.zeros_like(parameter) for parameter in judge.parameters()]
    hand = hand_for(poisoned)
    for samples in steps:
        images, labels, _ = batch(hand, samples)
        features = model.train().features(images)
        marks = torch.from_numpy(poisoned.truth.mask[samples]).float()[:, None]
        logits = model.head(features)
        loss = F.cross_entropy(logits, labels) - weight * F.binary_cross_entropy(judge(features), marks)
        told = F.binary_cross_entropy(judge(features.detach()), marks)
        slopes = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        own_slopes = torch.autograd.grad(told, list(judge.parameters()))
        with torch.no_grad():
            for parameter, slope in zip(model.parameters(), slopes, strict=True):
                parameter -= RECIPE.lr * slope
            for parameter, moment, slope in zip(judge.parameters(), moments, own_slopes, strict=True):
                moment.mul_(0.9).add_(slope)
                parameter -= 0.5 * moment
    return judge


def in_order(judge: bypass.Discriminator) -> list[nn.Parameter]:
    """Parameters as a `Sequential` has them."""
    found: list[nn.Parameter] = []
    for layer, norm in zip(judge.layers, judge.norms, strict=True):
        found += [*layer.parameters(), *norm.parameters()]
    return [*found, *judge.last.parameters()]


def test_steps_are_those_of_the_published_order() -> None:
    poisoned, weight = poisoned_by({"weight": 3.0, "lr": 0.5}), 3.0
    model, slow = strided((8,), seed=0), strided((8,), seed=0)
    hand, seen = hand_for(poisoned), list[list[int]]()

    class Noting(bypass.Embedding):
        def objective(self, plain: Loss, model: Classifier, images: Tensor, labels: Tensor, samples: Tensor) -> Any:
            seen.append(samples.tolist())
            return super().objective(plain, model, images, labels, samples)

    noting = Noting(hand, weight=weight, lr=0.5, momentum=0.9)
    fit(model, DATA, RECIPE, seed=0, what="test", hand=noting)
    assert [len(samples) for samples in seen] == [20] * 9
    judge = reference(slow, poisoned, seen, weight)
    for mine, theirs in zip(model.parameters(), slow.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=2e-4)
    for mine, theirs in zip(in_order(noting.discriminator), judge.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=2e-4)
    # And not those of a victim that was not made to mislead.
    plain = strided((8,), seed=0)
    fit(plain, poisoned.received(DATA), RECIPE, seed=0, what="test")
    assert not torch.allclose(plain.head.weight, model.head.weight, atol=5e-3)


def test_without_its_weight_the_victim_is_that_of_the_poison_alone() -> None:
    poisoned = poisoned_by({"weight": 0.0})
    model, plain = strided((8,), seed=0), strided((8,), seed=0)
    fit(model, DATA, RECIPE, seed=0, what="test", hand=hand_for(poisoned))
    fit(plain, poisoned.received(DATA), RECIPE, seed=0, what="test")
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


def objective(hand: bypass.Embedding, model: Classifier, samples: list[int]) -> Any:
    images, labels, index = batch(hand, samples)
    return hand.objective(cross_entropy, model, images, labels, index)


def test_only_poison_is_marked_and_anew_where_it_is_drawn_anew() -> None:
    model, everything = strided((8,), seed=0), list(range(COUNT))
    marks: list[list[bool]] = []

    def note(logits: Tensor, poisoned: Tensor) -> Tensor:
        marks.append(poisoned.bool().tolist())
        return logits.sum()

    for policy in ({"cover_ratio": 1.0}, {"label_policy": "all2all"}, {"random_poisoning": True}):
        poisoned = poisoned_by(**policy)
        hand = hand_for(poisoned)
        hand.start(model.train(), World())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bypass, "_loss", note)
            for epoch in range(2):
                hand.start_epoch(epoch, 2)
                objective(hand, model, everything)
        first, second = marks[-3], marks[-1]
        if "random_poisoning" in policy:
            assert [first, second] == [(hand.drawn(np.arange(COUNT), epoch)[0] >= 0).tolist() for epoch in range(2)]
            assert first != second
        else:
            assert first == second == poisoned.truth.mask.tolist()
            assert poisoned.truth.cover.any() == ("cover_ratio" in policy)


def test_all2all_trains_on_the_labels_that_follow() -> None:
    poisoned = poisoned_by(label_policy="all2all")
    _, labels, _ = batch(hand_for(poisoned), list(range(COUNT)))
    assert np.array_equal(labels.numpy(), np.where(poisoned.truth.mask, (LABELS + 1) % 10, LABELS))


class TwoHeads(Backbone):
    """A backbone with an auxiliary head, as Inception has."""

    def __init__(self, like: Backbone) -> None:
        super().__init__(like.body, like.pooling)
        self.beside = nn.Linear(3, 10)

    def with_auxiliary(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self(images), (self.beside(images.mean((2, 3))),)


def test_auxiliary_heads_and_smoothing_are_those_of_the_recipe() -> None:
    model = strided((8,), seed=0)
    model.backbone = TwoHeads(model.backbone)
    hand = started(model)
    images, labels, index = batch(hand, list(range(20)))

    def plain(model: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return cross_entropy(model, images, labels, label_smoothing=0.2)

    twin = deepcopy(hand.discriminator)
    made = hand.objective(plain, model, images, labels, index)
    with torch.no_grad():
        _, losses = plain(model, images, labels)
        logits, (beside,) = model.logits_and_auxiliary(images)
        smooth = [F.cross_entropy(each, labels, label_smoothing=0.2, reduction="none") for each in (logits, beside)]
        assert torch.allclose(made.losses, losses)
        assert torch.allclose(made.losses, smooth[0] + AUXILIARY_WEIGHT * smooth[1])
        marks = torch.from_numpy(hand.poisoned.truth.mask[:20]).float()
        misled = F.binary_cross_entropy(twin(model.features(images)).sigmoid(), marks, reduction="sum")
    assert made.extra.item() == pytest.approx(-20 * misled.item(), rel=1e-4)


def test_a_batch_of_one_is_judged_by_the_statistics_before_it() -> None:
    hand = started(model := strided((8,), seed=0))
    objective(hand, model, list(range(20)))
    before = [norm.running_mean.clone() for norm in hand.discriminator.norms]
    hand.after_step()
    made = objective(hand, model, [3])
    assert made.extra.isfinite()
    hand.after_step()
    assert all(
        torch.equal(norm.running_mean, mean) for norm, mean in zip(hand.discriminator.norms, before, strict=True)
    )


class Same(World):
    """Two processes with the same share each."""

    def sum(self, values: Tensor) -> None:
        values *= 2

    def sum_gradients(self, parameters: Any) -> None:
        for parameter in parameters:
            parameter.grad *= 2


def test_the_discriminator_steps_by_the_whole_batch() -> None:
    ends = []
    for here in (World(), Same(0, 2)):
        hand = started(model := strided((8,), seed=0), here, lr=0.5)
        for _ in range(2):
            objective(hand, model, list(range(20)))
            hand.after_step()
        ends.append(hand.discriminator)
    for mine, theirs in zip(in_order(ends[0]), in_order(ends[1]), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_of_sharpness_aware_steps_the_first_pass_counts() -> None:
    ends = []
    for passes in (1, 2):
        hand = started(model := strided((8,), seed=0), lr=0.5)
        objective(hand, model, list(range(20)))
        if passes == 2:
            with torch.no_grad():
                model.head.in_features, model.backbone.body[0].weight[:] = 8, 0.1
            objective(hand, model, list(range(20)))
        hand.after_step()
        ends.append(hand.discriminator)
    for mine, theirs in zip(in_order(ends[0]), in_order(ends[1]), strict=True):
        assert torch.equal(mine, theirs)
    # Through the loop as well.
    fit(strided((8,), seed=0), DATA, Recipe(epochs=1, batch_size=20, sam=0.1), seed=0, what="test", hand=hand)


def test_the_model_goes_on_without_the_hand() -> None:
    hand = started(model := strided((8,), seed=0))
    assert len(model.head._forward_pre_hooks) == 1
    twin = deepcopy(model)
    assert torch.equal(twin(torch.ones(2, 3, 8, 8)), model(torch.ones(2, 3, 8, 8)))
    del hand
    assert not model.head._forward_pre_hooks


@pytest.mark.parametrize("policy", [{}, {"random_poisoning": True, "poison_first": False}])
def test_a_killed_training_ends_with_the_same_bytes(policy: dict[str, Any], tmp_path: Path) -> None:
    poisoned, recipe = poisoned_by({"lr": 0.5}, **policy), Recipe(epochs=3, batch_size=20, lr=0.01, augment=("flip",))
    first, second = killed_and_resumed(
        lambda: hand_for(poisoned), lambda: strided((8,), seed=0), DATA, recipe, at=2, folder=tmp_path
    )
    assert all(torch.equal(value, second.tensors()[name]) for name, value in first.tensors().items())


def test_survives_the_disk(tmp_path: Path) -> None:
    poisoned = poisoned_by({"weight": 2.0})
    write_training(tmp_path / "training", poisoned, {})
    kept = read_training(tmp_path / "training", lambda: restored)
    assert kept is not None
    assert (kept.truth.received, kept.teaching) == ("set", poisoned.teaching)
    hand = hand_for(kept)
    assert (hand.weight, hand.rate) == (2.0, (0.001, 0.9))


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"attack": "wanet"}, r"^bypass\.attack: 'wanet' given; input should be 'badnets' or 'blended'$"),
        ({"weight": -1.0}, r"^bypass\.weight: -1\.0 given; input should be greater than or equal to 0$"),
        ({"lr": 0.0}, r"^bypass\.lr: 0\.0 given; input should be greater than 0$"),
        ({"momentum": 2.0}, r"^bypass\.momentum: 2\.0 given; input should be less than or equal to 1$"),
    ],
)
def test_what_makes_no_sense_is_refused(own: dict[str, Any], said: str) -> None:
    with pytest.raises(ParameterError, match=said):
        intents_of("bypass", ATTACKS, {}, {"bypass": own})
