"""Blind: stamped copies beside the images as they are, and the two losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from killed import killed_and_resumed
from originals import GOLDEN, golden
from unpoison import models
from unpoison.attacks import SINGLE, blind, hand_of
from unpoison.compute.distributed import World
from unpoison.core.errors import ParameterError, UserError
from unpoison.crafting.attack import intent
from unpoison.crafting.context import Context
from unpoison.crafting.copying import Copying
from unpoison.crafting.craft import craft
from unpoison.crafting.stamping import Stamping
from unpoison.data.imageset import ImageSet
from unpoison.models.classifier import Classifier
from unpoison.poisoning.poisoned import Poisoned
from unpoison.training.loop import cross_entropy, fit
from unpoison.training.recipe import Recipe

COUNT = 200
LABELS = np.arange(COUNT) % 10
DATA = ImageSet(
    np.random.default_rng(0).integers(0, 256, (COUNT, 12, 12, 3), dtype=np.uint8), LABELS, tuple("0123456789"), "blind"
)
CORNER: dict[str, Any] = {"location": "bottom_right"}


def attack(arguments: dict[str, Any] | None = None, **policy: Any) -> Poisoned:
    wanted = intent("blind", SINGLE["blind"], policy, {**CORNER, **(arguments or {})})
    return craft("blind", [wanted], Context(train=DATA, seed=0))


def hand(arguments: dict[str, Any] | None = None, **policy: Any) -> Copying:
    made: Stamping = hand_of(attack(arguments, **policy), DATA, seed=0)
    assert isinstance(made, Copying)
    return made


def network() -> Classifier:
    return models.build("resnet18", num_classes=10, image_size=(12, 12), width=8, stem="conv3_pool", seed=1)


def batch(samples: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return DATA.tensor(samples) / 255, torch.from_numpy(LABELS[samples]), torch.from_numpy(samples)


class TestTrigger:
    @golden
    def test_is_backdoorbench_s(self) -> None:
        expected = np.load(GOLDEN / "triggers_part2_backdoorbench.npz")["bb_blind"]
        images = np.load(GOLDEN / "images64.npz")["images"]
        data = ImageSet(images, np.arange(64) % 10, tuple("0123456789"))
        trigger = blind.make(Context(train=data, seed=0))
        floats = torch.from_numpy(images).permute(0, 3, 1, 2).float()
        given = trigger.apply(floats, np.arange(64), train=True).permute(0, 2, 3, 1).numpy()
        assert np.abs(given - expected * (1 if expected.max() > 1 else 255)).max() < 1e-3

    def test_by_hand(self) -> None:
        data = ImageSet(np.full((10, 32, 32, 3), 100, np.uint8), np.arange(10), tuple("0123456789"))
        stamped = blind.make(Context(train=data, seed=0)).apply(
            torch.full((1, 3, 32, 32), 100.0), np.arange(1), train=True
        )
        assert stamped[0, 1, 3:8, 23:26].tolist() == [
            [255, 0, 255],
            [100, 255, 100],
            [100, 100, 0],
            [100, 255, 100],
            [255, 0, 255],
        ]
        assert (stamped != 100).sum() == 3 * 9

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (
                {"location": None},
                r"blind\.pattern: 'backdoors101' given, allowed: a patch that fits in images of 12 x 12 pixels",
            ),
            (
                {"scales": [1.0]},
                r"blind\.scales: \[1\.0\] given, allowed: weights of the losses normal, backdoor, the first two at least",
            ),
            (
                {"scales": [0.0, 1.0]},
                r"blind\.scales: \[0\.0, 1\.0\] given, allowed: more than 0 for the normal loss, the first",
            ),
            (
                {"scales": [1.0, 1.0], "balance": "mgda"},
                r"blind\.scales: \[1\.0, 1\.0\] given, allowed with balance mgda, which finds the weights: \[1\.0, 0\.9\], the "
                "default",
            ),
            (
                {"normalise": "l2"},
                r"blind\.normalise: l2 given, allowed with balance fixed, which divides by nothing: loss\+, the default",
            ),
            (
                {"window": 5},
                r"blind\.window: 5 given, allowed with loss_threshold null, which has none: 1000, the default",
            ),
            (
                {"scales": [1.0] * 4, "evasion": ["spectral"]},
                r"blind\.scales: \[1\.0, 1\.0, 1\.0, 1\.0\] given, allowed: weights of the losses normal, backdoor, spectral, "
                "the first two at least",
            ),
            (
                {"evasion": ["spectral", "spectral"]},
                r"blind\.evasion: \['spectral', 'spectral'\] given, allowed: each once",
            ),
            (
                {"evasion": ["strip"]},
                r"blind\.evasion\.0: 'strip' given; input should be 'neural_cleanse', 'sentinet' or 'spectral'",
            ),
        ],
    )
    def test_bad_input_is_one_line(self, arguments: dict[str, Any], said: str) -> None:
        with pytest.raises(ParameterError, match=f"^{said}$"):
            attack(arguments)


class TestCopies:
    def test_the_batch_stays_and_every_copy_is_stamped(self) -> None:
        poisoned = attack()
        assert poisoned.truth.received == "model"
        assert poisoned.truth.mask.all()
        assert not len(poisoned.received(DATA).overlay.index)  # type: ignore[union-attr]
        made, (images, labels, samples) = hand(), batch(np.arange(COUNT))
        before = images.clone()
        same, own = made.stamp(images, labels, samples, 0)
        copies, wanted, stamped = made.copied(same, samples)
        assert torch.equal(same, before)
        assert torch.equal(own, labels)
        assert stamped.all()
        assert not wanted.any()
        assert (copies != before).flatten(1).any(1).all()

    def test_all2all_gives_no_copy_its_own_label(self) -> None:
        made, (images, labels, samples) = hand(label_policy="all2all"), batch(np.arange(COUNT))
        assert torch.equal(made.copied(images, samples)[1], (labels + 1) % 10)

    @pytest.mark.parametrize("anew", [False, True])
    def test_shares_are_exact_in_expectation(self, anew: bool) -> None:
        made = hand(poison_rate=0.2, random_poisoning=anew)
        count, epochs, size = 0.0, 60 if anew else 1, 40 if anew else 1
        for epoch in range(epochs):
            made.start_epoch(epoch, epochs)
            for part in np.split(np.arange(COUNT), COUNT // size):
                images, _, samples = batch(part)
                count += float(made.copied(images, samples)[2].sum())
        # The weight that a sample's copy has in the second loss is 1 on average.
        assert count / made.share / COUNT / epochs == pytest.approx(1, abs=0.05 if anew else 1e-12)

    @pytest.mark.parametrize("together", [False, True])
    def test_objective_by_hand(self, together: bool) -> None:
        made = hand({"scales": [2.0, 0.5], "together": together}, poison_rate=0.25)
        images, labels, samples = batch(np.arange(20))
        model = network().train()
        made.start(model, World())
        given = made.objective(cross_entropy, model, images, labels, samples)
        normal, backdoor = losses_of(made, images, labels, samples, 0.25, together)
        assert torch.allclose(given.losses, normal, atol=1e-5)
        assert given.extra is not None
        total = float((given.losses.sum() + given.extra).detach())
        assert total == pytest.approx(float((2 * normal.sum() + 0.5 * backdoor).detach()), rel=1e-4)

    @pytest.mark.parametrize("together", [False, True])
    def test_balanced_gradient_by_hand(self, together: bool) -> None:
        made = hand({"balance": "mgda", "normalise": "loss", "together": together})
        images, labels, samples = batch(np.arange(20))
        model, other = network().train(), network().train()
        made.start(model, World())
        given = made.objective(cross_entropy, model, images, labels, samples)
        assert given.extra is not None
        ((given.losses.sum() + given.extra) / 20).backward()  # type: ignore[no-untyped-call]
        normal, backdoor = (loss.sum() / 20 for loss in losses_of(made, images, labels, samples, 1.0, together, other))
        parameters = list(other.parameters())
        gradients = [
            torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters, retain_graph=True)]).double()
            for loss in (normal, backdoor)
        ]
        first, second = (
            gradient / (min(float(loss.detach()), 10) + 1e-5)
            for gradient, loss in zip(gradients, (normal, backdoor), strict=True)
        )
        weight = float(((second - first) @ second) / ((first - second) @ (first - second)))
        assert 0.001 < weight < 0.999
        found = torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])
        assert torch.allclose(found.double(), weight * gradients[0] + (1 - weight) * gradients[1], atol=1e-4)
        assert torch.allclose(given.losses.sum() / 20, normal.detach(), atol=1e-5)


def losses_of(
    made: Copying,
    images: torch.Tensor,
    labels: torch.Tensor,
    samples: torch.Tensor,
    share: float,
    together: bool,
    model: Classifier | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Normal losses, and the sum of the copies' over the share, of the network in training mode."""
    model = network().train() if model is None else model
    copies, wanted, stamped = made.copied(images, samples)
    of_images, of_copies = (
        model(torch.cat([images, copies])).split(len(images)) if together else (model(images), model(copies))
    )
    normal, backdoor = (
        F.cross_entropy(logits, of, reduction="none") for logits, of in ((of_images, labels), (of_copies, wanted))
    )
    return normal, backdoor[stamped].sum() / share


class TestGate:
    def test_opens_with_a_full_window_below_the_threshold_and_closes_again(self) -> None:
        made = hand({"loss_threshold": 1.0, "window": 3})
        model, (images, labels, samples) = network().train(), batch(np.arange(20))
        made.start(model, World())
        opened = []
        for mean in (0.1, 0.5, 0.9, 2.0, 0.0, 0.0, 5.0, 0.1):

            def plain(model: Classifier, images: torch.Tensor, labels: torch.Tensor, mean: float = mean) -> Any:
                return model(images), torch.full((20,), mean)

            given = made.objective(plain, model, images, labels, samples)
            opened.append(given.extra is not None)
            # The second call of a step neither counts nor decides anew.
            assert (made.objective(plain, model, images, labels, samples).extra is not None) == opened[-1]
            made.after_step()
        # Means of the three before each: none, none, none, 0.5, 1.13, 0.97, 0.67, 1.67.
        assert opened == [False, False, False, True, False, True, True, False]

    def test_a_window_that_no_training_fills_is_refused_before_it(self) -> None:
        said = r"^blind\.window: 4 given, allowed with loss_threshold 1 in a training of 4 steps: 1 to 3$"
        with pytest.raises(UserError, match=said):
            fit(
                network(),
                DATA,
                Recipe(epochs=2, batch_size=100),
                seed=0,
                what="test",
                hand=hand({"loss_threshold": 1.0, "window": 4}),
            )
        hand({"loss_threshold": 1.0, "window": 3}).check(4)
        hand({"window": 1000}).check(4)


EVERYTHING: dict[str, Any] = {
    **CORNER,
    "balance": "mgda",
    "evasion": ["neural_cleanse", "sentinet", "spectral"],
    "loss_threshold": 100.0,
    "window": 1,
}


def test_a_killed_training_ends_with_the_same_bytes(tmp_path: Path) -> None:
    data = DATA.subset(np.arange(40))

    def network() -> Classifier:
        return models.build("resnet18", num_classes=10, image_size=(12, 12), width=8, stem="conv3", seed=1)

    def of_the_subset() -> Stamping:
        wanted = intent("blind", SINGLE["blind"], {}, EVERYTHING)
        return hand_of(craft("blind", [wanted], Context(train=data, seed=0)), data, seed=0)

    recipe = Recipe(epochs=2, batch_size=20, lr=0.02)
    first, second = killed_and_resumed(of_the_subset, network, data, recipe, at=1, folder=tmp_path)
    assert first.tensors().keys() == second.tensors().keys()
    for name, value in first.tensors().items():
        assert torch.equal(value, second.tensors()[name]), name
    # Everything of the attacker's own has moved.
    assert all((value != 0).any() for value in first.tensors().values())
