"""LIRA: its network, its noise, the two losses of its stages, a training that was killed."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from killed import killed_and_resumed
from unpoison import models
from unpoison.attacks import SINGLE, hand_of, lira, restored
from unpoison.compute.distributed import World
from unpoison.core.errors import ParameterError, UserError
from unpoison.crafting.attack import intent
from unpoison.crafting.context import Context
from unpoison.crafting.craft import craft
from unpoison.data.imageset import ImageSet
from unpoison.models.classifier import Classifier
from unpoison.poisoning.poisoned import Poisoned
from unpoison.poisoning.trigger import read_trigger, save_trigger, stamp
from unpoison.training.loop import cross_entropy, fit
from unpoison.training.recipe import Recipe

COUNT = 60
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, 12, 12, 3), dtype=np.uint8)
LABELS = np.arange(COUNT) % 10
DATA = ImageSet(IMAGES, LABELS, tuple("0123456789"), "lira")
EVERYTHING = torch.arange(COUNT)


def attack(arguments: dict[str, Any] | None = None, **policy: Any) -> Poisoned:
    return craft("lira", [intent("lira", SINGLE["lira"], policy, arguments or {})], Context(train=DATA, seed=0))


def hand(poisoned: Poisoned) -> lira.InTurns:
    made = hand_of(poisoned, DATA, seed=0)
    assert isinstance(made, lira.InTurns)
    return made


def network() -> Classifier:
    return models.build("resnet18", num_classes=10, image_size=(12, 12), width=8, stem="conv3_pool", seed=1)


def started(poisoned: Poisoned, model: Classifier) -> lira.InTurns:
    made = hand(poisoned)
    made.start(model, World())
    made.start_epoch(0, 4)
    return made


def weights_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


class TestNoise:
    def test_the_network_s_layers_are_the_published_ones(self) -> None:
        net = lira.Autoencoder(3)
        kinds = (nn.Conv2d, nn.ConvTranspose2d)
        shapes = [(type(m), m.in_channels, m.out_channels) for m in net.modules() if isinstance(m, kinds)]
        chain = [3, 16, 32, 64, 128]
        down = [(nn.Conv2d, a, b) for a, b in itertools.pairwise(chain)]
        assert shapes == down + [(nn.ConvTranspose2d, b, a) for a, b in zip(chain[::-1][1:], chain[::-1], strict=False)]
        assert all((m.kernel_size, m.stride) == ((4, 4), (2, 2)) for m in net.modules() if isinstance(m, kinds))
        assert sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == 7
        for height, width in ((32, 32), (12, 19)):
            assert net(torch.rand(2, 3, height, width)).shape == (2, 3, height, width)

    def test_by_hand_in_the_normalised_space_and_on_eight_bits(self) -> None:
        net = lira.Autoencoder(3)
        last = net.layers[-1]
        assert isinstance(last, nn.ConvTranspose2d)
        nn.init.zeros_(last.weight)
        with torch.no_grad():
            # Hyperbolic tangents of 1, -1 and 0.5.
            last.bias.copy_(torch.tensor([20.0, -20.0, float(np.arctanh(0.5))]))  # type: ignore[union-attr]
        trigger = attack({"epsilon": 0.01}).triggers[0]
        assert isinstance(trigger, lira.Noise)
        trigger = replace(trigger, weights=lira.packed(net), std=np.float32([0.25, 0.25, 0.5]))  # type: ignore[arg-type]
        images = np.full((1, 12, 12, 3), 100, np.uint8)
        values = trigger.apply(torch.from_numpy(images).permute(0, 3, 1, 2).float(), np.arange(1), train=False)
        assert values[0, :, 0, 0].tolist() == pytest.approx([100 + 0.6375, 100 - 0.6375, 100 + 0.6375], abs=1e-4)
        # Rounded, not cut off: 0.64 of a level up is a level, as it is down. The range ends where images end.
        images[0, 0] = [255, 0, 255]
        stamped = stamp(trigger, images, np.arange(1), train=False)
        assert stamped[0, 0, 0].tolist() == [255, 0, 255]
        assert stamped[0, 1, 0].tolist() == [101, 99, 101]

    def test_an_image_s_stamp_is_its_own_and_is_read_again(self, tmp_path: Path) -> None:
        trigger = attack({"epsilon": 1.0}).triggers[0]
        save_trigger(tmp_path / "trigger", "lira", trigger)
        again = restored(read_trigger(tmp_path / "trigger"))
        assert again.trained
        together = stamp(trigger, IMAGES, np.arange(COUNT), train=False)
        alone = np.concatenate([stamp(again, IMAGES[[n]], np.array([n]), train=True) for n in range(3)])
        assert (together[:3] != IMAGES[:3]).any()
        assert np.abs(together[:3].astype(int) - alone).max() <= 1

    def test_bad_input(self) -> None:
        with pytest.raises(ParameterError, match=r"^lira\.epsilon: 0\.0 given"):
            attack({"epsilon": 0.0})
        with pytest.raises(ParameterError, match=r"^lira\.joint: 1\.5 given"):
            attack({"joint": 1.5})
        with pytest.raises(
            ParameterError, match=r"^label_policy: clean_label given, allowed with lira: all2one, all2all$"
        ):
            attack(label_policy="clean_label")
        wanted = [intent("lira", SINGLE["lira"], {}, {})]
        with pytest.raises(
            ParameterError, match=r"^surrogate\.data: true given, allowed with lira: false, as its trigger"
        ):
            craft("lira", wanted, Context(train=DATA, seed=0), surrogate=True)

    def test_a_rate_of_zero_copies_nothing(self) -> None:
        said = "^attack.poison_rate: 0 given, with which no sample has a stamped copy; allowed: more$"
        with pytest.raises(UserError, match=said):
            hand_of(attack(poison_rate=0.0), DATA, seed=0)

    def test_a_generator_that_diverges_is_named_and_not_the_victim(self) -> None:
        recipe = Recipe(epochs=2, batch_size=20, lr=0.01)
        with pytest.raises(
            UserError, match=r"^lira\.lr: 1e\+25 given, with which the training of the autoencoder diverged"
        ):
            fit(network(), DATA, recipe, seed=0, what="test", hand=hand(attack({"lr": 1e25, "joint": 1.0})))


class TestHand:
    def test_a_batch_of_one_copy_teaches_the_victim_alone(self) -> None:
        # Of 12 pixels a side the generator's lowest map has one, over which batch norm needs two copies.
        made, taught = hand(attack(poison_rate=0.05)), list[int]()
        assert made.poisoned.truth.mask.sum() == 3
        follow = lira.Learner.follow

        class Counted(lira.Learner):
            def follow(self, loss: torch.Tensor) -> None:
                taught.append(1)
                follow(self, loss)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lira, "Learner", Counted)
            fit(network(), DATA, Recipe(epochs=4, batch_size=20, lr=0.01), seed=0, what="test", hand=made)
        # Two epochs with three batches each, of which some have one copy, and some none.
        assert 0 < len(taught) < 6

    def test_all_samples_are_copied_and_the_victim_receives_a_model(self) -> None:
        truth = attack().truth
        assert truth.mask.all()
        assert (truth.received, truth.controlled) == ("model", True)
        assert len(truth.stamped) == 0
        assert np.array_equal(truth.labels_received(10), LABELS)

    @pytest.mark.parametrize("policy", ["all2one", "all2all"])
    def test_the_victim_s_loss_by_hand(self, policy: str) -> None:
        model = network()
        made = started(attack({"alpha": 0.3, "epsilon": 0.5}, label_policy=policy), model)
        images, labels = made.stamp(DATA.tensor() / 255, torch.from_numpy(LABELS), EVERYTHING, 0)
        assert torch.equal(images, DATA.tensor() / 255)
        objective = made.objective(cross_entropy, model, images, labels, EVERYTHING)
        copies = made.trigger.apply(DATA.tensor().float(), EVERYTHING.numpy(), train=True) / 255
        wanted = torch.from_numpy((LABELS + 1) % 10 if policy == "all2all" else np.zeros_like(LABELS))
        logits = network()(torch.cat([images, copies]))
        clean, backdoor = F.cross_entropy(logits[:COUNT], labels), F.cross_entropy(logits[COUNT:], wanted)
        assert objective.extra is not None
        value = (objective.losses.sum() + objective.extra) / COUNT
        assert value.item() == pytest.approx((0.3 * clean + 0.7 * backdoor).item(), rel=1e-4)
        assert objective.losses.mean().item() == pytest.approx(clean.item(), rel=1e-4)
        assert len(objective.logits) == COUNT

    def test_in_small_batches_as_well_the_copies_have_their_weight(self) -> None:
        # A third of the samples are copied: over an epoch their losses have as much weight as those of all would.
        model = network().eval()
        made = started(attack({"alpha": 0.0}, poison_rate=0.3), model)
        assert made.share == pytest.approx(0.3)
        total, images = 0.0, DATA.tensor() / 255
        for samples in EVERYTHING.split(4):
            labels = torch.from_numpy(LABELS)[samples]
            objective = made.objective(cross_entropy, model, images[samples], labels, samples)
            assert objective.extra is not None
            total += (objective.losses.sum() + objective.extra).item()
        mask = made.poisoned.truth.mask
        copies = made.trigger.apply(DATA.tensor()[mask].float(), np.flatnonzero(mask), train=True) / 255
        backdoor = F.cross_entropy(model(copies), torch.zeros(len(copies), dtype=torch.int64))
        assert total / COUNT == pytest.approx(backdoor.item(), rel=1e-4)
        fresh = started(attack(random_poisoning=True, poison_rate=0.4), model)
        assert fresh.share == pytest.approx(0.4)

    def test_the_generator_follows_the_loss_of_its_own_copies_and_nothing_else_does(self) -> None:
        model = network().train()
        made = started(attack({"epsilon": 0.5}), model)
        images, labels = DATA.tensor() / 255, torch.from_numpy(LABELS)
        objective = made.objective(cross_entropy, model, images, labels, EVERYTHING)
        assert objective.extra is not None
        (objective.losses.sum() + objective.extra).backward()
        victim, old, before = weights_of(model), weights_of(made.old), made.new.parameters[0].detach().clone()
        gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        # By hand: the gradient of the mean cross entropy to class 0, whose sign Adam's first step takes.
        again = lira.loaded(made.trigger.empty, made.trigger.weights, torch.device("cpu")).train()
        stamped = (images + 0.5 * 0.25 * again((images - 0.5) / 0.25)).clamp(0, 1)
        F.cross_entropy(network().train()(stamped), torch.zeros(COUNT, dtype=torch.int64)).backward()
        expected = next(again.parameters()).grad
        made.after_step()
        assert expected is not None
        large = expected.abs() > 1e-4
        assert large.sum() > 100
        moved = made.new.parameters[0].detach() - before
        assert torch.allclose(moved[large], -1e-4 * expected[large].sign(), rtol=1e-2)
        assert same(victim, weights_of(model)), "neither weights nor statistics"
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            assert (parameter.grad is None and gradient is None) or torch.equal(parameter.grad, gradient)  # type: ignore[arg-type]
        assert same(old, weights_of(made.old))
        made.start_epoch(1, 4)
        assert same(weights_of(made.new.network), weights_of(made.old))
        assert not same(old, weights_of(made.old))

    def test_stages(self) -> None:
        made = started(attack({"joint": 0.5}), network())
        stages = []
        for epochs in (1, 4, 5):
            for epoch in range(epochs):
                made.start_epoch(epoch, epochs)
                stages.append(made.together)
        assert stages == [True, True, True, False, False, True, True, True, False, False]
        fixed = weights_of(made.new.network)
        made._batch = (DATA.tensor()[:4] / 255, torch.zeros(4, dtype=torch.int64), 4)
        made.after_step()
        assert same(fixed, weights_of(made.new.network))
        made.start_epoch(0, 5)
        made.after_step()
        assert not same(fixed, weights_of(made.new.network))

    def test_a_killed_training_ends_with_the_same_bytes(self, tmp_path: Path) -> None:
        recipe, poisoned = Recipe(epochs=3, batch_size=30, lr=0.02, augment=("crop", "flip")), attack({"lr": 0.01})
        # In the first stage, which has one more epoch; then comes the second.
        first, second = killed_and_resumed(lambda: hand(poisoned), network, DATA, recipe, at=1, folder=tmp_path)
        one, other = first.trained()[0], second.trained()[0]
        assert isinstance(one, lira.Noise)
        assert isinstance(other, lira.Noise)
        assert np.array_equal(one.weights, other.weights)
        assert not np.array_equal(one.weights, first.trigger.weights)
        # What the second stage stamped is what the test stamps.
        assert np.array_equal(one.weights, lira.packed(first.old))
