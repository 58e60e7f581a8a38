"""FLIP: labels alone are poisoned, those whose step on clean images leads where an expert's step on stamped ones led."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from small_poison import MADE_FROM
from unpoison.attacks import ATTACKS, SINGLE
from unpoison.attacks.flip import LabelFlip, margins
from unpoison.core.content_store import ContentStore
from unpoison.core.errors import ParameterError, UserError
from unpoison.core.files import sha256_file
from unpoison.crafting import trajectory
from unpoison.crafting.attack import intent, intents_of
from unpoison.crafting.context import Context
from unpoison.crafting.craft import craft, make_trigger
from unpoison.data.imageset import ImageSet
from unpoison.data.store import open_poisoned, open_split, write_base
from unpoison.poisoning.attacker import read_training, write_training
from unpoison.poisoning.choice import assign_samples
from unpoison.poisoning.poisoned import Poisoned
from unpoison.poisoning.policy import Policy
from unpoison.poisoning.trigger import stamp
from unpoison.poisoning.truth import read_truth, write_truth
from unpoison.training.recipe import Recipe

LABELS = np.arange(96) % 4
STRIPED = np.arange(96) // 4 % 4 == 0
NETWORK = {"name": "compact", "width": 8}
FEW: dict[str, Any] = {"delta": 60.0, "frequency": 4.0, "points": 4, "passes": 1, "batch_size": 40}


def images_of() -> np.ndarray:
    """Four classes, each bright in one quarter; every fourth image of a class has faint stripes, as the trigger has."""
    images = np.random.default_rng(0).integers(60, 100, (96, 16, 16, 3)).astype(np.float64)
    for label in range(4):
        top, left = label // 2 * 8, label % 2 * 8
        images[label == LABELS, top : top + 8, left : left + 8] += 80
    images[STRIPED] += 60 * np.sin(np.linspace(0, 8 * np.pi, 16))[:, None]
    return images.clip(0, 255).astype(np.uint8)


def context_at(store: Path | None = None, seed: int = 0, **changes: Any) -> Context:
    train = ImageSet(images_of(), LABELS, tuple("abcd"), "quarters")
    recipe = Recipe(epochs=4, batch_size=24, lr=0.05, augment=("translate",))
    return Context(
        **{"train": train, "seed": seed, "network": NETWORK, "recipe": recipe, "store": ContentStore(store), **changes}
    )


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return context_at(tmp_path_factory.mktemp("store"))


def poison(context: Context, rate: float = 0.2, arguments: dict[str, Any] | None = None, **policy: Any) -> Poisoned:
    wanted = intent("flip", SINGLE["flip"], {"poison_rate": rate, **policy}, {**FEW, **(arguments or {})})
    return craft("flip", [wanted], context)


class Flat(nn.Module):
    """A linear network without a bias, of images of two values and two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.head(images.flatten(1))
        return out


class TestStepDistance:
    def test_by_hand(self) -> None:
        # At zero weights both classes have probability 1/2. Expert: (1, 0) with label 0, so g = [[-1/2, 0], [1/2, 0]]. Student:
        # (0, 1) with (3/4, 1/4), so h = [[0, -1/4], [0, 1/4]]. |h - g|² = 5/8, |g|² = 1/2; d|h - g|²/dq = (1/2, -1/2).
        weights = {"head.weight": torch.zeros(2, 2)}
        stamped, clean = torch.tensor([[1.0, 0.0]]).view(1, 1, 1, 2), torch.tensor([[0.0, 1.0]]).view(1, 1, 1, 2)
        soft = torch.tensor([[0.75, 0.25]])
        distance, slope = trajectory.step_distance(Flat(), weights, stamped, torch.tensor([0]), clean, soft)
        assert distance.item() == pytest.approx(1.25)
        assert slope.tolist() == [[pytest.approx(1.0), pytest.approx(-1.0)]]
        # A weight that is held fixed is no part of a step.
        with pytest.raises(RuntimeError):
            trajectory.step_distance(
                Flat(), {"held.head.weight": torch.zeros(2, 2)}, stamped, torch.tensor([0]), clean, soft
            )

    def test_slope_is_that_of_two_backward_passes(self) -> None:
        context = context_at()
        model = trajectory.for_matching(trajectory.network_of(context, 0))
        generator = torch.Generator().manual_seed(0)
        stamped, clean = torch.rand(2, 6, 3, 16, 16, generator=generator)
        labels, logits = torch.arange(6) % 4, torch.randn(6, 4, generator=generator, requires_grad=True)
        weights = {name: weight.detach() for name, weight in model.named_parameters()}
        stem = [name for name in weights if name.startswith("backbone.body.0.")]
        held = {("held." if name in stem else "") + name: weight for name, weight in weights.items()}
        soft = logits.softmax(1)
        distance, slope = trajectory.step_distance(model, held, stamped, labels, clean, soft.detach())
        moving = {name: weight.clone().requires_grad_() for name, weight in weights.items() if name not in stem}
        steps = [
            torch.autograd.grad(
                F.cross_entropy(functional_call(model, {**weights, **moving}, (images,)), given),
                list(moving.values()),
                create_graph=True,
            )
            for images, given in ((stamped, labels), (clean, soft))
        ]
        apart = sum((one - other).square().sum() for one, other in zip(*steps, strict=True))
        wanted = apart / sum(one.square().sum() for one in steps[0])
        torch.testing.assert_close(distance, wanted.detach(), rtol=1e-4, atol=1e-6)
        (expected,) = torch.autograd.grad(wanted, logits)
        found = soft * (slope - (soft * slope).sum(1, keepdim=True))
        assert expected.abs().max() > 1e-4
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-7)


def test_margins_by_hand() -> None:
    logits = np.array([[5, 1, 2], [1, 4, 4.5], [0, 0, 3]], np.float32)
    ranks, wrong = margins(logits, np.array([0, 1, 2]))
    assert ranks.tolist() == [-3.0, 0.5, -3.0]
    assert wrong.tolist() == [2, 2, 0]
    assert logits[0].tolist() == [5, 1, 2]


def test_published_sine_has_whole_periods_between_the_outer_columns() -> None:
    trigger = make_trigger(intent("flip", SINGLE["flip"], {}, {**FEW, "delta": 6.0, "frequency": 8.0}), context_at())
    image = np.full((1, 16, 16, 3), 100, np.uint8)
    row = stamp(trigger, image, np.array([0]), train=False)[0, 3, :, 1]
    values = [100 + 6 * np.sin(16 * np.pi * column / 15) for column in range(16)]
    assert row.tolist() == [int(value + 1e-4) for value in values]
    assert (stamp(trigger, image, np.array([0]), train=True) == image).all()


def test_pairs_are_the_set_and_stamped_copies_of_other_classes() -> None:
    context = context_at(target=2)

    def stamped(images: np.ndarray, keys: np.ndarray) -> np.ndarray:
        return np.broadcast_to(keys.astype(np.uint8)[:, None, None, None], images.shape)

    pairs = trajectory.pairs_of(context, stamped, 10)
    assert pairs.twins[:96].tolist() == list(range(96))
    copied = pairs.twins[96:]
    assert len(set(copied.tolist())) == 10
    assert (LABELS[copied] != 2).all()
    assert (pairs.data.labels[:96] == LABELS).all()
    assert (pairs.data.labels[96:] == 2).all()
    assert (pairs.data.base[:96] == images_of()).all()
    assert (pairs.data.base[96:, 0, 0, 0] == copied).all()
    # All of one class, where that is all there is.
    of_source = trajectory.pairs_of(replace(context, sources=(1,)), stamped, 96)
    assert of_source.twins[96:].tolist() == np.flatnonzero(LABELS == 1).tolist()
    with pytest.raises(UserError, match=r"^data: every training image is of the target class 3"):
        trajectory.pairs_of(context_at(target=3, train=context.train.subset(np.flatnonzero(LABELS == 3))), stamped, 5)


def test_places_of_an_expert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # 96 images in batches of 24, 2 epochs: 8 steps, of which the first half has a place at every second one.
    recipe = Recipe(epochs=2, batch_size=24, lr=0.05, whiten=True)
    context = context_at(tmp_path, recipe=recipe)
    pairs = trajectory.Pairs(context.train, np.arange(96))
    arrays = trajectory.expert(context, pairs, {}, number=0, points=2, span=0.5)
    assert {len(values) for values in arrays.values()} == {2}
    assert sorted(name for name in arrays if name.startswith("held.")) == [
        "held.backbone.body.0.bias",
        "held.backbone.body.0.weight",
    ]
    assert (arrays["head.weight"][0] != arrays["head.weight"][1]).any()
    assert (arrays["held.backbone.body.0.weight"][0] == arrays["held.backbone.body.0.weight"][1]).all()
    again = trajectory.expert(context, pairs, {}, number=0, points=2, span=0.5)
    assert "flip_expert: taken from the store" in capsys.readouterr().out
    assert all((again[name] == values).all() for name, values in arrays.items())
    other = trajectory.expert(context, pairs, {}, number=1, points=2, span=0.5)
    assert (other["head.weight"] != arrays["head.weight"]).any()


def test_labels_that_are_not_finite_are_refused(context: Context) -> None:
    pairs = trajectory.Pairs(context.train, np.arange(96))
    arrays = trajectory.expert(context, pairs, {}, number=0, points=1, span=0.5)
    arrays["head.weight"][:] = 1e38
    search: dict[str, Any] = {"passes": 1, "momentum": 0.5, "temperature": 5.0, "batch_size": 40}
    with pytest.raises(ParameterError, match=r"^lr: 2\.0 given, with which the labels diverge; allowed: less$"):
        trajectory.matched_logits(context, pairs, [arrays], lr=2.0, **search)


class TestPoison:
    def test_no_pixel_changes_and_as_many_labels_as_asked_for(self, context: Context) -> None:
        poisoned = poison(context, 0.2)
        received, truth = poisoned.received(context.train), poisoned.truth
        assert (received.gather(np.arange(96)) == images_of()).all()
        # 72 candidates: the target's own 24 samples keep their label.
        assert truth.mask.sum() == 15
        assert ((received.labels != LABELS) == truth.mask).all()
        assert not truth.mask[LABELS == 0].any()
        assert not truth.in_training
        assert truth.stamped.tolist() == np.flatnonzero(truth.mask).tolist()
        # What the choice needed is not kept.
        trigger = poisoned.triggers[0]
        assert isinstance(trigger, LabelFlip)
        assert (len(trigger.ranks), len(trigger.wrong)) == (0, 0)

    def test_flips_the_samples_that_look_like_the_trigger_to_the_target(self, context: Context) -> None:
        truth = poison(context, poison_count=10, arguments={"passes": 8}).truth
        assert truth.given is not None
        assert (truth.given[truth.mask] == 0).mean() >= 0.8
        # A quarter of the candidates are striped.
        assert STRIPED[truth.mask].mean() >= 0.8

    def test_a_lower_rate_flips_some_of_a_higher_rates_samples_to_the_same_labels(self, context: Context) -> None:
        low, high = poison(context, 0.1).truth, poison(context, 0.3).truth
        assert low.given is not None
        assert high.given is not None
        assert not (low.mask & ~high.mask).any()
        assert (low.given[low.mask] == high.given[low.mask]).all()

    def test_same_seed_same_labels_another_seed_others(self, context: Context) -> None:
        first = poison(context).truth.given
        second, third = (poison(context_at(seed=seed)).truth.given for seed in (0, 1))
        assert first is not None
        assert np.array_equal(first, second)
        assert not np.array_equal(first, third)

    def test_samples_of_the_target_class_where_they_may_be_poisoned(self, context: Context) -> None:
        truth = poison(context, poison_count=90, poison_target_class=True).truth
        assert truth.given is not None
        assert (truth.given[truth.mask] != LABELS[truth.mask]).all()
        assert truth.mask[LABELS == 0].any()

    def test_without_a_search_samples_drawn_at_random_get_the_target(self) -> None:
        context = context_at(network={"name": "no such network"})
        truth = poison(context, 0.2, {"passes": 0}, target=1, poison_target_class=True).truth
        assert truth.given is not None
        # A fifth of the 72 that can be flipped.
        assert truth.mask.sum() == 15
        assert (truth.given[truth.mask] == 1).all()
        assert not truth.mask[LABELS == 1].any()
        assert not np.array_equal(truth.mask, poison(context_at(seed=1), 0.2, {"passes": 0}, target=1).truth.mask)

    def test_of_source_classes_alone(self, context: Context) -> None:
        truth = poison(context, 0.5, label_policy="source_specific", sources=[2], target=1).truth
        assert set(LABELS[truth.mask]) == {2}

    def test_beside_another_attack(self, context: Context) -> None:
        blocks = [{"attack": "badnets", "target": 1}, {"attack": "flip", "target": 0}]
        own = {"multi": {"triggers": blocks}, "flip": FEW}
        poisoned = craft("multi", intents_of("multi", ATTACKS, {"poison_rate": 0.2}, own), context)
        truth = poisoned.truth
        given = truth.labels_given(4)
        assert (given[truth.mask & (truth.part == 0)] == 1).all()
        flipped = truth.mask & (truth.part == 1)
        assert flipped.any()
        assert (given[flipped] != LABELS[flipped]).all()
        assert ((given == LABELS) | truth.mask).all()
        received = poisoned.received(context.train).gather(np.arange(96))
        assert ((received != images_of()).any((1, 2, 3)) == (truth.part == 0)).all()

    def test_a_class_that_loses_all_its_samples(self) -> None:
        # Classes 1 and 2 change places, and then 3 becomes 1: five of six may, where by the policy's labels only three could.
        policy, labels = Policy(poison_rate=1.0), np.arange(8) % 4
        order, chosen = np.where(labels == 3, 0.0, 1.0), np.array([0, 2, 1, 1, 0, 2, 1, 1])
        said = r"^poison_rate: 1\.0 given, which leaves no sample in class 3; allowed: up to 0\.8333$"
        with pytest.raises(ParameterError, match=said):
            assign_samples([policy], [order], labels, 4, seed=0, chosen=[chosen])


def test_labels_out_of_the_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    context = context_at(tmp_path)
    poison(context, 0.2)
    assert "flip_labels: made" in capsys.readouterr().out
    poison(context, 0.1)
    assert "flip_labels: taken from the store" in capsys.readouterr().out
    # Another search goes on from the same expert; another trigger needs one of its own.
    poison(context, arguments={"lr": 3.0})
    said = capsys.readouterr().out
    assert "flip_expert: taken" in said
    assert "flip_labels: made" in said
    poison(context, arguments={"delta": 30.0})
    assert "flip_expert: made" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("policy", "arguments", "message"),
    [
        ({"label_policy": "all2all"}, {}, r"label_policy: all2all given, allowed with flip: all2one, source_specific"),
        (
            {"poison_first": False},
            {},
            r"poison_first: false given, allowed with flip: true, as no training image is stamped",
        ),
        ({"random_poisoning": True}, {}, r"random_poisoning: true given, allowed with flip: false, as no training"),
        ({"cover_ratio": 1.0}, {}, r"cover_ratio: 1\.0 given, allowed with flip: 0, as no training image is stamped"),
        ({}, {"pattern": "white"}, r"flip\.pattern: 'white' given, allowed with form sine, which has none: null"),
        ({}, {"size": 3}, r"flip\.size: 3 given, allowed with form sine"),
        ({}, {"form": "patch", "delta": 3.0, "frequency": 8.0}, r"flip\.delta: 3 given, allowed with form patch"),
        ({}, {"form": "patch", "delta": 40.0, "frequency": 3.0}, r"flip\.frequency: 3 given, allowed with form patch"),
        ({}, {"form": "patch", "delta": 40.0, "frequency": 8.0, "size": 17}, r"flip\.size: 17 given, allowed: 1 to 16"),
        ({}, {"span": 0.0}, r"flip\.span: 0\.0 given, allowed: above 0"),
        ({}, {"copies": 0.0}, r"flip\.copies: 0\.0 given, allowed: above 0"),
    ],
)
def test_refused(context: Context, policy: dict[str, Any], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=rf"^{message}[^\n]*$"):
        poison(context, arguments=arguments, **policy)


class TestArtefacts:
    @pytest.fixture
    def folders(self, context: Context, tmp_path: Path) -> tuple[Path, Poisoned, ImageSet]:
        images, labels = images_of(), LABELS
        write_base(tmp_path / "base", {"train": (images, labels), "test": (images, labels)}, classes=tuple("abcd"))
        poisoned = poison(context)
        poisoned.write_overlay(tmp_path / "poisoned", open_split(tmp_path / "base", "train"))
        received = open_poisoned(tmp_path / "base", tmp_path / "poisoned")
        write_truth(tmp_path / "truth", poisoned.truth, {"poisoned": received.digest})
        return tmp_path, poisoned, received

    def test_set_and_truth_come_back(self, folders: tuple[Path, Poisoned, ImageSet]) -> None:
        folder, poisoned, received = folders
        truth = read_truth(folder / "truth", poisoned=received)
        assert truth is not None
        assert truth.given is not None
        assert poisoned.truth.given is not None
        assert (truth.given == poisoned.truth.given).all()
        assert (received.labels == truth.given).all()
        assert (received.gather(np.arange(96)) == images_of()).all()
        write_training(folder / "training", poisoned, MADE_FROM)
        assert read_training(folder / "training", lambda: pytest.fail("no trigger is needed")) is None

    @pytest.mark.parametrize("change", ["of a clean sample", "negative", "float", "another"])
    def test_given_labels_that_contradict_the_rest(self, folders: tuple[Path, Poisoned, ImageSet], change: str) -> None:
        folder, poisoned, received = folders
        path, mask = folder / "truth/given.npy", poisoned.truth.mask
        given = np.load(path)
        if change == "float":
            given = given.astype(np.float64)
        else:
            at = np.flatnonzero(~mask if change == "of a clean sample" else mask)[0]
            given[at] = -1 if change == "negative" else (given[at] + 1) % 4
        np.save(path, given)
        about = json.loads((folder / "truth/truth.json").read_text())
        about["files"]["given.npy"] = sha256_file(path)
        (folder / "truth/truth.json").write_text(json.dumps(about))
        with pytest.raises(UserError, match=r"given\.npy: |truth: not the samples and labels of the present"):
            read_truth(folder / "truth", poisoned=received)
