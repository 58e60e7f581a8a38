"""Attacks that train the victim: their stamps, which samples they take, their hand in the loop, a training that was killed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from killed import killed_and_resumed
from originals import GOLDEN, golden
from unpoison import models
from unpoison.attacks import SINGLE, bpp, hand_of, wanet
from unpoison.compute.checkpoints import Checkpoints
from unpoison.compute.distributed import World
from unpoison.core.arrays import IntArray
from unpoison.core.errors import ParameterError, UserError
from unpoison.core.files import read_json
from unpoison.crafting.attack import intent
from unpoison.crafting.context import Context
from unpoison.crafting.craft import craft
from unpoison.data.imageset import ImageSet
from unpoison.data.store import new_overlay, open_poisoned, open_split, received_of, write_base
from unpoison.evaluation.grading import attack_metrics, model_metrics
from unpoison.models.classifier import Classifier
from unpoison.poisoning.attacker import Held
from unpoison.poisoning.poisoned import Poisoned
from unpoison.poisoning.triggered import read_triggered, triggered_of, write_triggered
from unpoison.poisoning.truth import Truth, read_truth, write_truth
from unpoison.training.hand import Hand, Loss, Objective
from unpoison.training.loop import fit
from unpoison.training.recipe import Recipe

COUNT = 400
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, 12, 12, 3), dtype=np.uint8)
LABELS = np.arange(COUNT) % 10
DATA = ImageSet(IMAGES, LABELS, tuple("0123456789"), "attacks that train")


def attack(name: str, arguments: dict[str, Any] | None = None, **policy: Any) -> Poisoned:
    return craft(name, [intent(name, SINGLE[name], policy, arguments or {})], Context(train=DATA, seed=0))


def stamped(poisoned: Poisoned, samples: IntArray, epoch: int = 0) -> tuple[Tensor, IntArray]:
    """Images in [0, 255] and labels of a batch after the attack."""
    images, labels = DATA.tensor(samples) / 255, torch.from_numpy(LABELS[samples])
    given, new = hand_of(poisoned, DATA, seed=0).stamp(images, labels, torch.from_numpy(samples), epoch)
    return given * 255, new.numpy()


def network() -> Classifier:
    return models.build("resnet18", num_classes=10, image_size=(12, 12), width=8, stem="conv3_pool", seed=1)


class TestWarp:
    def test_a_constant_field_moves_every_pixel_alike(self) -> None:
        # A field of ones has mean 1 as it is: every place moves by strength / side, where side - 1 pixels are 2.
        side, strength = 9, 4.5
        grid = wanet.warp_grid(torch.ones(1, 2, 3, 3), side, side, strength=strength)
        ramp = torch.arange(side, dtype=torch.float32).expand(1, 1, side, side)
        moved = wanet._sampled(ramp, torch.from_numpy(grid)[None])[0, 0, 0]
        shift = strength / side * (side - 1) / 2
        assert moved.tolist() == pytest.approx([min(column + shift, side - 1) for column in range(side)], abs=1e-5)

    def test_without_noise_a_cover_is_warped_as_poison_is(self) -> None:
        trigger = wanet.make(Context(train=DATA, seed=0), noise=0.0)
        images, keys = DATA.tensor(np.arange(5)).float(), np.arange(5)
        assert torch.equal(trigger.cross(images, keys, images, epoch=3), trigger.apply(images, keys, train=True))
        noisy = wanet.make(Context(train=DATA, seed=0))
        assert not torch.equal(noisy.cross(images, keys, images, epoch=3), noisy.apply(images, keys, train=True))

    @golden
    @pytest.mark.parametrize("seed", [0, 1])
    def test_is_what_backdoorbench_s_code_gives_for_its_draws(self, seed: int) -> None:
        arrays = np.load(GOLDEN / "triggers_part2_backdoorbench.npz")
        images = torch.from_numpy(np.load(GOLDEN / "images64.npz")["images"]).permute(0, 3, 1, 2).float()
        name = f"bb_wanet_seed{seed}"
        grid = wanet.warp_grid(torch.from_numpy(arrays[f"{name}_draw"]), 32, 32, strength=0.5)
        assert np.array_equal(grid, arrays[f"{name}_grid"][0])
        noisy = (grid + arrays[f"{name}_cross_noise"] / 32).clip(-1, 1)
        for places, expected in ((np.broadcast_to(grid, (64, 32, 32, 2)), name), (noisy, f"{name}_cross")):
            given = wanet._sampled(images, torch.from_numpy(np.ascontiguousarray(places)))
            assert np.abs(given.permute(0, 2, 3, 1).numpy() / 255 - arrays[expected]).max() < 1e-5

    @golden
    def test_a_point_per_pixel_is_cognitive_distillation_s(self) -> None:
        arrays = np.load(GOLDEN / "triggers_part1.npz")
        images = torch.from_numpy(np.load(GOLDEN / "images64.npz")["images"]).permute(0, 3, 1, 2).float()
        grid = torch.from_numpy(wanet.warp_grid(torch.from_numpy(arrays["cd_wanet_seed0_draw"]), 32, 32, strength=0.5))
        given = wanet._sampled(images, grid.expand(64, -1, -1, -1)).permute(0, 2, 3, 1).numpy()
        assert np.abs(np.floor(given + 1e-4) - arrays["cd_wanet_seed0"]).max() <= 1


class TestQuantisation:
    def test_by_hand(self) -> None:
        values = torch.tensor([0.0, 60.0, 64.0, 127.0, 128.0, 255.0]).view(1, 1, 1, 6)
        assert bpp.quantised(values, 3).flatten().tolist() == [0, 0, 127.5, 127.5, 127.5, 255]
        # 100 becomes 0 and hands 100 * 7/16 to the right: 143.75, which becomes 255 and hands back -111.25 * 7/16.
        row = torch.tensor([100.0, 100.0, 100.0]).view(1, 1, 1, 3)
        assert bpp.dithered(row, 2).flatten().tolist() == [0, 255, 0]

    def test_dithering_is_that_of_a_loop_over_pixels(self) -> None:
        images = DATA.tensor(np.arange(3)).double()
        slow = images.numpy().copy()
        for row, column in np.ndindex(12, 12):
            before = slow[..., row, column].copy()
            slow[..., row, column] = np.round(before / 255 * 4) / 4 * 255
            error = before - slow[..., row, column]
            for down, right, share in ((0, 1, 7), (1, -1, 3), (1, 0, 5), (1, 1, 1)):
                if row + down < 12 and 0 <= column + right < 12:
                    slow[..., row + down, column + right] += error * share / 16
        assert np.array_equal(bpp.dithered(images, 5).numpy(), np.round(slow))

    @golden
    @pytest.mark.parametrize("levels", [8, 32])
    def test_is_what_backdoorbench_s_code_gives(self, levels: int) -> None:
        arrays = np.load(GOLDEN / "triggers_part2_backdoorbench.npz")
        images = torch.from_numpy(np.load(GOLDEN / "images64.npz")["images"]).permute(0, 3, 1, 2)
        plain = bpp.quantised(images.float(), levels).permute(0, 2, 3, 1).numpy()
        assert np.array_equal(plain, arrays[f"bb_bpp_squeeze{levels}"])
        dithered = bpp.dithered(images.double(), levels).permute(0, 2, 3, 1).numpy()
        assert np.array_equal(dithered, arrays[f"bb_bpp_dither_squeeze{levels}_float64"])

    def test_a_negative_sample_has_the_change_of_another_image(self) -> None:
        trigger = bpp.make(Context(train=DATA, seed=0), levels=4)
        images, others, keys = DATA.tensor(np.arange(4)), DATA.tensor(np.arange(4, 8)), np.arange(4)
        expected = (images + bpp.quantised(others, 4) - others).clamp(0, 255)
        assert torch.equal(trigger.cross(images, keys, others, epoch=0), expected)
        partners = trigger.partners(np.arange(COUNT), COUNT, epoch=0)
        assert (partners != np.arange(COUNT)).all()
        assert 0 <= partners.min() < partners.max() < COUNT
        assert not np.array_equal(partners, trigger.partners(np.arange(COUNT), COUNT, epoch=1))
        with pytest.raises(
            ParameterError, match=r"^1 sample given, allowed with an attack that crosses samples: at least 2$"
        ):
            trigger.partners(np.arange(1), 1, epoch=0)


@pytest.mark.parametrize("name", ["wanet", "bpp"])
class TestSamples:
    def test_the_same_in_every_epoch_and_covers_are_no_poison(self, name: str) -> None:
        poisoned, everything = attack(name, poison_rate=0.1), np.arange(COUNT)
        truth = poisoned.truth
        assert truth.controlled
        assert truth.in_training
        ratio = SINGLE[name].policy["cover_ratio"]
        assert truth.cover.sum() == ratio * truth.mask.sum() == ratio * 36
        clean = DATA.tensor(everything)
        before = None
        for epoch in range(3):
            images, labels = stamped(poisoned, everything, epoch)
            assert ((images - clean).abs().amax((1, 2, 3)) > 0.01).numpy().tolist() == (truth.part >= 0).tolist()
            assert (labels != LABELS).tolist() == truth.mask.tolist()
            if before is not None:
                same = (images == before).all(1).all(1).all(1).numpy()
                assert same[~truth.cover].all()
                assert same[truth.cover].mean() < 0.1, "covers are drawn anew"
            before = images

    def test_anew_in_every_epoch_if_asked_for_with_exact_shares(self, name: str) -> None:
        poisoned, everything = attack(name, random_poisoning=True, poison_rate=0.1), np.arange(COUNT)
        hand = hand_of(poisoned, DATA, seed=0)
        drawn = [hand.drawn(everything, epoch)[:2] for epoch in range(60)]
        poison, cover = (np.array([part >= 0 for part in parts]) for parts in zip(*drawn, strict=True))
        assert not (poison & cover).any()
        assert not np.array_equal(poison[0], poison[1])
        ratio = SINGLE[name].policy["cover_ratio"]
        assert poison.mean() == pytest.approx(0.09, abs=0.006)
        assert cover.mean() == pytest.approx(0.09 * ratio, abs=0.01)

    @pytest.mark.parametrize("fresh", [False, True])
    def test_neither_the_batch_nor_the_processes_matter(self, name: str, fresh: bool) -> None:
        poisoned = attack(name, random_poisoning=fresh)
        order = np.random.default_rng(1).permutation(COUNT)
        images, labels = stamped(poisoned, order, 2)
        for rank in range(2):
            share = World(rank, 2).share(torch.from_numpy(order)).numpy()
            part, given = stamped(poisoned, share, 2)
            assert torch.equal(part, images[rank::2])
            assert np.array_equal(given, labels[rank::2])
        # One by one as well: a batch of one is poisoned as often as any other.
        alone = [stamped(poisoned, order[[row]], 2) for row in range(60)]
        assert torch.equal(torch.cat([part for part, _ in alone]), images[:60])
        assert np.concatenate([given for _, given in alone]).tolist() == labels[:60].tolist()

    def test_all2all_gives_no_poisoned_sample_its_own_label(self, name: str) -> None:
        poisoned = attack(name, label_policy="all2all", poison_rate=0.3)
        _, labels = stamped(poisoned, np.arange(COUNT))
        assert (labels[poisoned.truth.mask] == (LABELS[poisoned.truth.mask] + 1) % 10).all()
        assert (labels[~poisoned.truth.mask] == LABELS[~poisoned.truth.mask]).all()

    def test_as_poisoned_data_everything_is_in_the_set(self, name: str) -> None:
        poisoned = attack(name, {"anew": False})
        assert not poisoned.truth.controlled
        assert not poisoned.truth.in_training
        received, covers = poisoned.received(DATA), np.flatnonzero(poisoned.truth.cover)
        assert (received.labels[covers] == LABELS[covers]).all()
        differs = (received.gather(np.arange(COUNT)) != IMAGES).any((1, 2, 3))
        assert differs.tolist() == (poisoned.truth.part >= 0).tolist()
        without = attack(name, {"anew": False}, cover_ratio=0.0)
        poison = np.flatnonzero(without.truth.mask)
        assert np.array_equal(without.received(DATA).gather(poison), received.gather(poison))


def test_test_images_are_stamped_as_covers_as_well_and_graded(tmp_path: Path) -> None:
    write_base(tmp_path / "base", {"train": (IMAGES, LABELS), "test": (IMAGES, LABELS)}, classes=DATA.classes)
    test, poisoned = open_split(tmp_path / "base", "test"), attack("wanet")
    trigger, policy = poisoned.triggers[0], poisoned.truth.policy
    write_triggered(tmp_path / "triggered", test, {"wanet": Held(policy, trigger)}, {})
    kept, made = read_triggered(tmp_path / "triggered", tmp_path / "base")["wanet"], triggered_of(test, policy, trigger)
    assert kept.crossed is not None
    assert made.crossed is not None
    crossed = kept.crossed.images[np.arange(len(kept))]
    assert np.array_equal(crossed, made.crossed.images[np.arange(len(made))])
    assert (crossed != kept.overlay.images[np.arange(len(kept))]).any((1, 2, 3)).all()
    assert np.array_equal(kept.crossed.labels, LABELS[LABELS != 0])
    # A network that always says 1: of the images of nine classes a ninth is right, whatever the stamp.
    model = network()
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.eye(10)[1])
    graded = model_metrics(model, test, poisoned.truth, {"wanet": kept})
    assert graded["cross_acc"] == pytest.approx(1 / 9)
    assert "cross_acc" not in model_metrics(model, test, poisoned.truth, {"wanet": replace(kept, crossed=None)})
    folder, index = tmp_path / "triggered/crossed/wanet", kept.crossed.index
    with new_overlay(folder, test, index, kept.crossed.labels % 2, split="test") as place:
        place.write(np.arange(len(crossed)), crossed)
    with pytest.raises(
        UserError, match=r"crossed/wanet: not the triggered images with their true labels; run the stage again$"
    ):
        read_triggered(tmp_path / "triggered", tmp_path / "base")


COPIES = replace(SINGLE["badnets"], hand=lambda stamping: stamping, copies=True)
"""BadNets by an attacker who trains on stamped copies and hands out a model."""


class TestWhatTheVictimReceives:
    def crafted(self, surrogate: bool = False, **policy: Any) -> Poisoned:
        return craft(
            "badnets", [intent("badnets", COPIES, policy, {})], Context(train=DATA, seed=0), surrogate=surrogate
        )

    def kept(self, poisoned: Poisoned, folder: Path) -> tuple[ImageSet, Truth | None]:
        write_base(folder / "base", {"train": (IMAGES, LABELS), "test": (IMAGES, LABELS)}, classes=DATA.classes)
        poisoned.write_overlay(folder / "poisoned", open_split(folder / "base", "train"))
        data = open_poisoned(folder / "base", folder / "poisoned")
        write_truth(folder / "truth", poisoned.truth, {"poisoned": data.digest})
        return data, read_truth(folder / "truth", poisoned=data)

    def test_a_model_comes_with_a_data_set_as_it_was(self, tmp_path: Path) -> None:
        poisoned = self.crafted(poison_rate=1.0, poison_target_class=True)
        data, truth = self.kept(poisoned, tmp_path)
        assert received_of(tmp_path / "poisoned") == "model"
        assert np.array_equal(data.gather(np.arange(COUNT)), IMAGES)
        assert np.array_equal(data.labels, LABELS)
        # Every sample has a copy, and no class is emptied by that.
        assert truth is not None
        assert truth.mask.all()
        assert truth.received == "model"
        assert not truth.labels_given(10).any()

    def test_a_surrogate_says_that_it_is_one(self, tmp_path: Path) -> None:
        data, truth = self.kept(self.crafted(surrogate=True), tmp_path)
        ordinary = attack("badnets")
        assert truth is not None
        assert truth.received == received_of(tmp_path / "poisoned") == "surrogate"
        assert np.array_equal(data.gather(np.arange(COUNT)), ordinary.received(DATA).gather(np.arange(COUNT)))
        assert attack_metrics(truth, {})["surrogate"] == 1
        assert "surrogate" not in attack_metrics(ordinary.truth, {})
        # A poisoned set says nothing of the kind, as it says nothing else about an attack.
        ordinary.write_overlay(tmp_path / "set", open_split(tmp_path / "base", "train"))
        assert "received" not in read_json(tmp_path / "set" / "manifest.json")
        with pytest.raises(
            ParameterError, match=r"^poison_rate: 1.0 given, which leaves no sample in class 1; allowed: up to"
        ):
            self.crafted(surrogate=True, poison_rate=1.0)

    def test_is_refused_where_there_is_a_set(self) -> None:
        context = Context(train=DATA, seed=0)
        with pytest.raises(
            ParameterError,
            match=r"^surrogate.data: true given, allowed with badnets: false, as its victim receives a poisoned",
        ):
            craft("badnets", [intent("badnets", SINGLE["badnets"], {}, {})], context, surrogate=True)

    def test_truth_and_set_that_contradict_each_other(self, tmp_path: Path) -> None:
        self.kept(self.crafted(), tmp_path)
        path = tmp_path / "truth" / "truth.json"
        path.write_text(path.read_text().replace('"received": "model"', '"received": "set"'))
        with pytest.raises(UserError, match=r"truth: not the samples and labels of the present poisoned set"):
            read_truth(tmp_path / "truth", poisoned=open_poisoned(tmp_path / "base", tmp_path / "poisoned"))


class Pull(Hand):
    """Adds the sum of the head's weights for every sample, and counts what it is told."""

    def __init__(self, weight: float) -> None:
        self.weight, self.seen, self.steps = weight, list[tuple[int, int]](), torch.zeros(())

    def start(self, model: Classifier, here: World) -> None:
        self.model = model

    def start_epoch(self, epoch: int, epochs: int) -> None:
        self.seen.append((epoch, epochs))

    def objective(self, plain: Loss, model: Classifier, images: Tensor, labels: Tensor, samples: Tensor) -> Objective:
        logits, losses = plain(model, images, labels)
        return Objective(logits, losses, self.weight * len(samples) * model.head.weight.sum())

    def after_step(self) -> None:
        self.steps += 1

    def tensors(self) -> dict[str, Tensor]:
        return {"steps": self.steps}


class TestHand:
    def test_what_it_adds_is_minimised_and_not_recorded(self) -> None:
        recipe = Recipe(epochs=1, batch_size=COUNT, lr=0.1, momentum=0.0, weight_decay=0.0, schedule="constant")
        ends, records = [], []
        for weight in (0.0, 3.0):
            model, hand = network(), Pull(weight)
            records.append(fit(model, DATA, recipe, seed=0, what="test", hand=hand).losses)
            ends.append(model.head.weight.detach())
        # One step: each weight goes 0.1 * 3 further down than without, and the loss before it is the same.
        assert (ends[0] - ends[1]).flatten().tolist() == pytest.approx([0.3] * ends[0].numel(), abs=1e-5)
        assert np.array_equal(*records)

    def test_is_told_of_epochs_and_steps(self) -> None:
        hand = Pull(0.0)
        fit(network(), DATA, Recipe(epochs=2, batch_size=100), seed=0, what="test", hand=hand)
        assert hand.seen == [(0, 2), (1, 2)]
        assert hand.steps == 8

    def test_its_radius_is_that_of_the_recipe(self) -> None:
        plain = Recipe(epochs=1, batch_size=100, lr=0.05)
        weights = []
        for recipe, radius in ((plain, 0.0), (plain, 0.5), (Recipe(epochs=1, batch_size=100, lr=0.05, sam=0.5), 0.0)):
            model, hand = network(), Hand()
            hand.sam = radius
            fit(model, DATA, recipe, seed=0, what="test", hand=hand)
            weights.append(model.head.weight)
        assert torch.equal(weights[1], weights[2])
        assert not torch.equal(weights[0], weights[1])


def test_a_killed_training_goes_on_with_the_draws_of_its_layers(tmp_path: Path) -> None:
    def dropping() -> Classifier:
        made = network()
        made.backbone.body = nn.Sequential(made.backbone.body, nn.Dropout(0.5))
        return made

    state = torch.get_rng_state()
    recipe = Recipe(epochs=3, batch_size=100, lr=0.05)
    killed_and_resumed(lambda: Pull(0.01), dropping, DATA, recipe, at=2, folder=tmp_path)
    # A caller's own draws go on as they would have.
    assert torch.equal(torch.get_rng_state(), state)


class KilledError(RuntimeError):
    pass


class Mortal(Pull):
    """Is killed at the start of an epoch."""

    def __init__(self, at: int) -> None:
        super().__init__(0.01)
        self.at = at

    def start_epoch(self, epoch: int, epochs: int) -> None:
        if epoch == self.at:
            raise KilledError
        super().start_epoch(epoch, epochs)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(epochs=3, batch_size=90, lr=0.05, augment=("crop", "flip"), drop_last=True),
        Recipe(epochs=3, batch_size=100, lr=0.001, optimizer="adam", augment=("translate",)),
        Recipe(epochs=3, batch_size=100, lr=0.1, optimizer="muon", whiten=True, schedule="linear"),
    ],
    ids=["sgd", "adam", "muon"],
)
def test_a_killed_training_ends_with_the_same_bytes(recipe: Recipe, tmp_path: Path, capsys: Any) -> None:
    kept = Checkpoints(tmp_path, "key", what="test", unit="epoch")

    def run(hand: Pull, **more: Any) -> tuple[Classifier, Any]:
        model = network()
        return model, fit(model, DATA, recipe, seed=0, what="test", hand=hand, **more)

    whole, record = run(Pull(0.01))
    with pytest.raises(KilledError):
        run(Mortal(2), checkpoints=kept)
    assert len(list(tmp_path.iterdir())) == 2
    hand = Pull(0.01)
    resumed, again = run(hand, checkpoints=kept)
    assert "test: going on from the checkpoint at epoch 2" in capsys.readouterr().out
    assert [epoch for epoch, _ in hand.seen] == [2]
    assert hand.steps == 3 * (COUNT // recipe.batch_size)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert np.array_equal(record.losses, again.losses, equal_nan=True)
    assert record.epochs == again.epochs
    # Whoever asked for the training removes them, once he has kept its model: killed before that, he gets it without a step.
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["key-000000002.npz", "key-000000003.npz"]
    third, once_more = run(hand := Pull(0.01), checkpoints=kept)
    assert not hand.seen
    assert np.array_equal(record.losses, once_more.losses, equal_nan=True)
    assert all(torch.equal(value, third.state_dict()[name]) for name, value in whole.state_dict().items())
    kept.remove()
    assert not tmp_path.exists()
