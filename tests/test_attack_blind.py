"""Blind: stamped copies beside the images as they are, and the two losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from unpoison import models
from unpoison.attacks import SINGLE, blind, hand_of
from unpoison.core.errors import ParameterError
from unpoison.crafting.attack import intent
from unpoison.crafting.context import Context
from unpoison.crafting.copying import Copying
from unpoison.crafting.craft import craft
from unpoison.crafting.stamping import Stamping
from unpoison.data.imageset import ImageSet
from unpoison.models.classifier import Classifier
from unpoison.poisoning.poisoned import Poisoned
from unpoison.training.loop import cross_entropy

GOLDEN = Path(__file__).resolve().parent.parent.parent / "shared" / "golden"
golden = pytest.mark.skipif(not GOLDEN.exists(), reason="what the originals' own code gave is not part of the project")
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
                r"blind\.scales: \[1\.0\] given, allowed: two weights, of the normal loss and of the backdoor's",
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

    def test_objective_by_hand(self) -> None:
        made, (images, labels, samples) = hand({"scales": [2.0, 0.5]}, poison_rate=0.25), batch(np.arange(20))
        given = made.objective(cross_entropy, network().train(), images, labels, samples)
        model = network().train()
        normal = F.cross_entropy(model(images), labels, reduction="none")
        copies, wanted, stamped = made.copied(images, samples)
        backdoor = F.cross_entropy(model(copies), wanted, reduction="none")[stamped].sum() / 0.25
        assert torch.allclose(given.losses, normal, atol=1e-5)
        assert given.extra is not None
        total = float((given.losses.sum() + given.extra).detach())
        assert total == pytest.approx(float((2 * normal.sum() + 0.5 * backdoor).detach()), rel=1e-4)
