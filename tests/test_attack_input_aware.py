"""The input-aware attack: its networks, its stamps, what its hand in training minimises, data that it poisons alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from killed import killed_and_resumed
from originals import GOLDEN, golden
from unpoison import models
from unpoison.attacks import ATTACKS, SINGLE, hand_of, input_aware, restored
from unpoison.compute.distributed import World
from unpoison.core.content_store import ContentStore
from unpoison.core.errors import ParameterError, UserError
from unpoison.crafting.attack import intent, intents_of
from unpoison.crafting.context import Context
from unpoison.crafting.craft import craft
from unpoison.crafting.generators import statistics
from unpoison.data.imageset import ImageSet
from unpoison.models.classifier import Classifier
from unpoison.poisoning.poisoned import Poisoned
from unpoison.poisoning.trigger import eight_bit, read_trigger, save_trigger, stamp
from unpoison.training.loop import cross_entropy, fit
from unpoison.training.recipe import Recipe

COUNT = 120
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, 12, 12, 3), dtype=np.uint8)
LABELS = np.arange(COUNT) % 10
DATA = ImageSet(IMAGES, LABELS, tuple("0123456789"), "input-aware")
TINY: dict[str, Any] = {"width": 4, "levels": 1, "mask_epochs": 1, "batch_size": 40}
SURROGATE: dict[str, Any] = {"name": "resnet18", "width": 8, "stem": "conv3_pool"}
RECIPE = Recipe(epochs=3, batch_size=40, lr=0.02, augment=("crop", "flip"))


def attack(arguments: dict[str, Any] | None = None, *, context: Context | None = None, **policy: Any) -> Poisoned:
    wanted = intent("input_aware", SINGLE["input_aware"], policy, TINY | (arguments or {}))
    return craft("input_aware", [wanted], context or Context(train=DATA, seed=0))


def hand(poisoned: Poisoned) -> input_aware.Joint:
    made = hand_of(poisoned, DATA, seed=0)
    assert isinstance(made, input_aware.Joint)
    return made


def started(poisoned: Poisoned, **changes: float) -> input_aware.Joint:
    """A hand whose mask network stays as it was drawn."""
    made = hand(poisoned)
    vars(made).update(changes)
    made.start(network(), World())
    made.start_epoch(1, 3)
    return made


def network() -> Classifier:
    return models.build("resnet18", num_classes=10, image_size=(12, 12), width=8, stem="conv3_pool", seed=1)


class TestNetworks:
    def test_a_network_that_passes_its_input_on(self) -> None:
        net = input_aware.EncoderDecoder(1, 1, 1, 1).eval()
        for module in net.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.dirac_(module.weight)
                torch.nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        image = torch.tensor([[1.0, 0, 0, 4], [0, 0, 0, 0], [-5, -1, 2, 0], [-2, -3, 0, 2]]).view(1, 1, 4, 4)
        # Negative values are cut off, the largest of four is kept, and between two of those are weights of 3/4 and 1/4. The five
        # batch norms divide by the root of 1 + 1e-5.
        weights = torch.tensor([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
        expected = weights @ torch.tensor([[1.0, 4], [0, 2]]) @ weights.T / (1 + 1e-5) ** 2.5
        assert torch.allclose(net(image)[0, 0], expected, atol=1e-6)

    def test_sizes_are_the_published_ones(self) -> None:
        for channels, width, levels, wide in ((3, 32, 3, [32, 64, 128]), (1, 16, 2, [16, 32])):
            net = input_aware.EncoderDecoder(channels, channels, width, levels)
            shapes = [list(module.weight.shape[:2]) for module in net.modules() if isinstance(module, torch.nn.Conv2d)]
            down = [[b, a] for a, b in zip([channels, *wide], wide, strict=False)]
            expected = [pair for first in down for pair in (first, [first[0]] * 2)] + [[wide[-1]] * 2]
            for a, b in zip(wide[::-1], [*wide[-2::-1], channels], strict=True):
                expected += [[a, a], [b, a]]
            assert shapes == expected
            assert all(m.momentum == 0.05 for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d))
            # A side that is no multiple of 8 is kept.
            assert net(torch.rand(2, channels, 29, 18)).shape == (2, channels, 29, 18)

    def test_squashed_sharpened_and_ratios_by_hand(self) -> None:
        values = torch.tensor([-50.0, 0.0, 1.0, 50.0])
        assert input_aware.squashed(values).tolist() == pytest.approx([0, 0.5, 0.5 + np.tanh(1) / 2, 1], abs=1e-6)
        shares = torch.tensor([0.0, 0.45, 0.5, 1.0])
        assert input_aware.sharpened(shares).tolist() == pytest.approx([0, 0.5 - np.tanh(1) / 2, 0.5, 1], abs=1e-6)
        images, others = torch.zeros(2, 3, 2, 2), torch.full((2, 3, 2, 2), 0.5)
        masks, beside = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
        beside[0, 0, 0, 0] = 1.0
        # Roots of the mean squares 1/4 and 1/4; two equal masks are 1e-7 apart, and 1e-7 is added.
        found = input_aware.ratios(images, others, masks, beside)
        assert found.tolist() == pytest.approx([1.0, 0.5 / 2e-7], rel=1e-5)

    def test_equal_images_have_finite_gradients(self) -> None:
        made = torch.ones(1, 1, 2, 2, requires_grad=True)
        input_aware.ratios(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), made, made.detach()).sum().backward()
        assert made.grad is not None
        assert made.grad.isfinite().all()

    @golden
    def test_is_what_cognitive_distillation_s_code_gives_for_the_same_weights(self) -> None:
        weights, arrays = np.load(GOLDEN / "inputaware_seed0_weights.npz"), np.load(GOLDEN / "triggers_part3.npz")

        def packed(network: str) -> Any:
            names = [name for name in weights if name.startswith(network)]
            learnt = [name for name in names if name.endswith(("weight", "bias"))]
            running = [name for name in names if name.endswith(("running_mean", "running_var"))]
            return np.concatenate([weights[name].ravel() for name in learnt + running])

        trigger = input_aware.InputAware(
            mean=np.float32([0.4914, 0.4822, 0.4465]),  # type: ignore[arg-type]
            std=np.float32([0.247, 0.243, 0.261]),  # type: ignore[arg-type]
            generator=packed("G."),
            mask=packed("M."),
            channels=3,
            width=32,
            levels=3,
            seed=0,
            trained=False,
        )
        images = np.load(GOLDEN / "images64.npz")["images"][:16]
        batch = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        assert np.abs(trigger.pattern_of(batch).numpy() - arrays["cd_inputaware_pattern"][:16]).max() < 1e-6
        assert np.abs(trigger.mask_of(batch).numpy() - arrays["cd_inputaware_mask"][:16]).max() < 1e-5
        stamped = stamp(trigger, images, np.arange(16), train=False)
        assert np.abs(stamped.astype(int) - arrays["cd_inputaware_x_bd_uint8"][:16]).max() <= 1


class TestTrigger:
    def test_image_and_pattern_are_mixed_by_the_mask_of_the_image_or_of_another(self) -> None:
        (trigger,) = attack().triggers
        assert isinstance(trigger, input_aware.InputAware)
        images, others, keys = DATA.tensor(np.arange(5)).float(), DATA.tensor(np.arange(5, 10)).float(), np.arange(5)
        own, crossed = trigger.apply(images, keys, train=True), trigger.cross(images, keys, others, epoch=0)
        for values, sources in ((own, images), (crossed, others)):
            pattern, mask = 255 * trigger.pattern_of(sources / 255), trigger.mask_of(sources / 255)
            assert torch.allclose(values, images * (1 - mask) + pattern * mask, atol=1e-3)
        assert (own - crossed).abs().amax((1, 2, 3)).min() > 1

    def test_an_image_s_stamp_is_its_own(self) -> None:
        (trigger,) = attack().triggers
        together = stamp(trigger, IMAGES, np.arange(COUNT), train=False)
        alone = np.concatenate([stamp(trigger, IMAGES[[n]], np.array([n]), train=True) for n in range(3)])
        assert np.abs(together[:3].astype(int) - alone).max() <= 1

    def test_is_kept_and_read_again(self, tmp_path: Path) -> None:
        (trigger,) = attack().triggers
        save_trigger(tmp_path / "trigger", "input_aware", trigger)
        again = restored(read_trigger(tmp_path / "trigger"))
        assert again.trained
        images, keys = DATA.tensor(np.arange(3)).float(), np.arange(3)
        assert torch.equal(again.apply(images, keys, train=False), trigger.apply(images, keys, train=False))

    def test_levels_that_do_not_fit(self) -> None:
        with pytest.raises(
            ParameterError, match=r"^input_aware\.levels: 3 given, allowed for images of 12 px: 1 to 2$"
        ):
            attack({"levels": 3})
        for side, said in (
            (6, "null, which is 2 here, given, allowed for images of 6 px: 1 to 1"),
            (3, "null given for images of 3 px, allowed: images of 4 px or more"),
        ):
            small = ImageSet(IMAGES[:, :side, :side], LABELS, DATA.classes, "small")
            with pytest.raises(ParameterError, match=f"^input_aware.levels: {said}$"):
                attack({"levels": None}, context=Context(train=small, seed=0))
        with pytest.raises(ParameterError, match=r"^input_aware\.density: 1\.5 given"):
            attack({"density": 1.5})


class TestHand:
    def test_the_victim_receives_a_model(self) -> None:
        poisoned = attack()
        truth = poisoned.truth
        assert (truth.received, truth.controlled) == ("model", True)
        assert truth.cover.sum() == truth.mask.sum() == 11
        assert hand(poisoned).after_augmentation

    def test_stamps_poisoned_and_cross_samples_and_no_others(self) -> None:
        poisoned, everything = attack(poison_rate=0.2), np.arange(COUNT)
        made, truth, clean = started(poisoned), poisoned.truth, DATA.tensor(everything) / 255
        images, labels = made.stamp(clean.clone(), torch.from_numpy(LABELS), torch.from_numpy(everything), 0)
        assert ((images - clean).abs().amax((1, 2, 3)) > 0).numpy().tolist() == (truth.part >= 0).tolist()
        assert (labels.numpy() != LABELS).tolist() == truth.mask.tolist()
        # By hand, of networks as they are in training: batch norm sees poisoned images, their partners, and those of the covers.
        stamped = np.concatenate([np.flatnonzero(truth.mask), np.flatnonzero(truth.cover)])
        count, trigger = int(truth.mask.sum()), made.trigger
        others = DATA.tensor(trigger.partners(stamped, COUNT, epoch=0)).float() / 255
        sources = torch.cat([clean[stamped[:count]], others])
        patterns = input_aware.squashed(made.generator.network(trigger.normalised(sources)))
        masks = trigger.mask_of(torch.cat([clean[stamped[:count]], others[count:]]))
        carried = torch.cat([patterns[:count], patterns[2 * count :]])
        expected = clean[stamped] * (1 - masks) + carried * masks
        assert torch.allclose(images[stamped], expected, atol=1e-5)
        distance = (clean[stamped[:count]] - others[:count]).square().mean((1, 2, 3)).sqrt()
        apart = (patterns[:count] - patterns[count : 2 * count]).square().mean((1, 2, 3)).sqrt()
        victim = network()
        objective = made.objective(cross_entropy, victim, images, labels, torch.from_numpy(everything))
        assert objective.extra is not None
        # Over 120 samples, that is the mean over the poisoned ones.
        mean = (distance / (apart + 1e-7)).mean()
        assert (objective.extra / COUNT).item() == pytest.approx(mean.item(), rel=1e-4)
        assert made.objective(cross_entropy, victim, images, labels, torch.from_numpy(everything)).extra is None

    def test_the_victim_s_loss_reaches_the_generator_and_not_the_mask(self) -> None:
        made = started(attack(poison_rate=0.2), diversity=0.0)
        samples = torch.from_numpy(np.flatnonzero(made.poisoned.truth.mask)[:6])
        victim, clean = network().train(), DATA.tensor(samples.numpy()) / 255
        images, labels = made.stamp(clean.clone(), torch.from_numpy(LABELS)[samples], samples, 0)
        objective = made.objective(cross_entropy, victim, images, labels, samples)
        objective.losses.sum().backward()
        assert all(parameter.grad is not None for parameter in made.generator.parameters)
        assert all(parameter.grad is None for parameter in made.mask.parameters)
        before = [parameter.detach().clone() for parameter in made.generator.parameters]
        made.after_step()
        # Adam's first step is as long as the rate where there is a gradient, and no gradient is left for the next one.
        moved = torch.cat([(a - b).flatten() for a, b in zip(before, made.generator.parameters, strict=True)]).abs()
        assert moved.max().item() == pytest.approx(0.01, rel=1e-3)
        assert all(parameter.grad is None for parameter in made.generator.parameters)

    def test_small_batches_have_the_shares_of_large_ones(self) -> None:
        poisoned = attack(poison_rate=0.2)
        made, clean, changed, extra = started(poisoned), DATA.tensor(np.arange(COUNT)) / 255, [], 0.0
        for sample in range(COUNT):
            samples = torch.tensor([sample])
            _images, labels = made.stamp(clean[samples].clone(), torch.from_numpy(LABELS)[samples], samples, 0)
            changed.append(labels.item() != LABELS[sample])
            extra += 0.0 if made._extra is None else (made._extra.item() > 0)
        assert changed == poisoned.truth.mask.tolist()
        assert extra == poisoned.truth.mask.sum()
        fresh = started(attack(random_poisoning=True, poison_rate=0.2))
        assert fresh.share == pytest.approx(0.2 * 0.9)
        assert fresh.shares()[1] == pytest.approx(0.2 * 0.9)

    def test_all2all_gives_no_poisoned_sample_its_own_label(self) -> None:
        poisoned = attack(label_policy="all2all", poison_rate=0.3)
        everything = torch.arange(COUNT)
        _, labels = started(poisoned).stamp(DATA.tensor() / 255, torch.from_numpy(LABELS), everything, 0)
        assert np.array_equal(labels.numpy(), np.where(poisoned.truth.mask, (LABELS + 1) % 10, LABELS))

    def test_the_mask_s_loss_by_hand(self) -> None:
        made, images = started(attack(), diversity=2.0, density=0.4), DATA.tensor(np.arange(4)) / 255
        masks = made.trigger.mask_of(images)
        found = made.mask_loss(images)
        for row in range(4):
            beside = (row - 1) % 4
            far = (images[row] - images[beside]).square().mean().sqrt()
            apart = (masks[row] - masks[beside]).square().mean().sqrt()
            dense = (masks[row] - 0.4).clamp(min=0).mean()
            assert found[row].item() == pytest.approx((2 * far / (apart + 1e-7) + 100 * dense).item(), rel=1e-4)

    def test_the_mask_is_trained_for_a_third_of_the_epochs_and_then_fixed(self) -> None:
        made, steps = hand(attack({"mask_epochs": None})), list[float | None]()
        made.start(network(), World())
        take = made.mask.step

        def step(here: World, *, lr: float | None = None) -> None:
            steps.append(lr)
            take(here, lr=lr)

        made.mask.step = step  # type: ignore[method-assign]
        before = made.trigger.mask
        made.start_epoch(0, 13)
        # Five epochs of three batches: the rate falls after two and after four.
        assert steps == pytest.approx([0.01] * 6 + [0.001] * 6 + [0.0001] * 3)
        after = made.trained()[0]
        assert isinstance(after, input_aware.InputAware)
        assert not np.array_equal(after.mask, before)
        made.start_epoch(1, 13)
        assert len(steps) == 15
        assert not made.mask.network.training

    def test_networks_that_diverge_are_named_and_not_the_victim(self) -> None:
        with pytest.raises(
            UserError, match=r"^input_aware\.lr: 1e\+25 given, with which the training of the encoderdecoder"
        ):
            fit(network(), DATA, replace(RECIPE, epochs=1), seed=0, what="test", hand=hand(attack({"lr": 1e25})))

    def test_a_killed_training_ends_with_the_same_bytes(self, tmp_path: Path) -> None:
        poisoned = attack()
        first, second = killed_and_resumed(lambda: hand(poisoned), network, DATA, RECIPE, at=2, folder=tmp_path)
        for one, other in zip(first.trained(), second.trained(), strict=True):
            assert isinstance(one, input_aware.InputAware)
            assert isinstance(other, input_aware.InputAware)
            assert np.array_equal(one.generator, other.generator)
            assert np.array_equal(one.mask, other.mask)
            assert not np.array_equal(one.generator, first.trigger.generator)
            assert np.array_equal(one.mean, np.float32([0.5] * 3))

    def test_a_step_to_the_worst_weights_counts_the_attacker_s_loss_once(self) -> None:
        made = hand(attack(poison_rate=0.3))
        fit(network(), DATA, replace(RECIPE, epochs=1, sam=0.1), seed=0, what="test", hand=made)
        assert all(
            np.isfinite(value).all() for value in vars(made.trained()[0]).values() if isinstance(value, np.ndarray)
        )


class TestPoisonedData:
    def test_a_surrogate_trains_the_networks_and_the_victim_gets_data(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        context = Context(
            train=DATA, seed=0, network=SURROGATE, recipe=replace(RECIPE, epochs=1), store=ContentStore(tmp_path)
        )
        poisoned = attack({"jointly": False}, context=context)
        assert (poisoned.truth.received, poisoned.truth.controlled, poisoned.teaching) == ("set", False, ())
        received = poisoned.received(DATA)
        differs = (received.gather(np.arange(COUNT)) != IMAGES).any((1, 2, 3))
        assert differs.tolist() == (poisoned.truth.part >= 0).tolist()
        (trigger,) = poisoned.triggers
        poison = np.flatnonzero(poisoned.truth.mask)
        expected = eight_bit(trigger.apply(DATA.tensor(poison).float(), poison, train=True), "truncate")
        assert np.abs(received.gather(poison).astype(int) - expected.permute(0, 2, 3, 1).numpy()).max() <= 1
        capsys.readouterr()
        attack({"jointly": False}, context=context, poison_rate=0.3)
        assert "input_aware_networks: taken from the store" in capsys.readouterr().out
        fresh = attack().triggers[0]
        assert isinstance(trigger, input_aware.InputAware)
        assert isinstance(fresh, input_aware.InputAware)
        assert not np.array_equal(trigger.generator, fresh.generator)

    def test_among_several_triggers_only_as_data(self) -> None:
        context = Context(train=DATA, seed=0, network=SURROGATE, recipe=replace(RECIPE, epochs=1))

        def several(**arguments: Any) -> Poisoned:
            blocks = [{"attack": "input_aware", "target": 0, **TINY, **arguments}, {"attack": "badnets", "target": 1}]
            return craft("multi", intents_of("multi", ATTACKS, {}, {"multi": {"triggers": blocks}}), context)

        with pytest.raises(
            ParameterError, match=r"^multi\.triggers\[0\]\.attack: 'input_aware' given, which trains the victim"
        ):
            several()
        assert several(jointly=False).truth.received == "set"

    def test_no_surrogate_of_data_for_a_trigger_that_is_not_there_yet(self) -> None:
        wanted = [intent("input_aware", SINGLE["input_aware"], {}, TINY)]
        with pytest.raises(
            ParameterError, match=r"^surrogate\.data: true given, allowed with input_aware: false, as its trigger"
        ):
            craft("input_aware", wanted, Context(train=DATA, seed=0), surrogate=True)


def test_statistics_before_a_victim_is_known_are_those_of_a_network() -> None:
    model, given = network(), statistics(3)
    assert np.array_equal(given["mean"], model.mean.flatten().numpy())
    assert np.array_equal(given["std"], model.std.flatten().numpy())
