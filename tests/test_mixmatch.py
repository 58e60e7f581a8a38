"""MixMatch: its loss by hand, which samples a step sees, and what a step minimises."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from small_networks import strided
from unpoison import models
from unpoison.compute.distributed import World
from unpoison.data.imageset import ImageSet
from unpoison.training.loop import cross_entropy, fit
from unpoison.training.mixmatch import MixMatch, mixed_with, semi_supervised_loss, sharpened
from unpoison.training.recipe import Recipe

RECIPE = Recipe(epochs=2, batch_size=4, lr=0.01, optimizer="adam", weight_decay=0.0, augment=("flip",))


def test_sharpened_by_hand() -> None:
    shares = torch.tensor([[0.8, 0.2], [0.5, 0.5]])
    expected = torch.tensor([[0.64 / 0.68, 0.04 / 0.68], [0.5, 0.5]])
    assert torch.allclose(sharpened(shares, 0.5), expected)
    assert torch.allclose(sharpened(shares, 1.0), shares)


def test_mixed_by_hand() -> None:
    values = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert mixed_with(values, torch.tensor([1, 0]), 0.75).tolist() == [[0.75, 0.5], [0.25, 1.5]]


def test_loss_by_hand() -> None:
    # Shares of 3/4 and 1/4, and of a half each.
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    targets = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    entropies, squares = semi_supervised_loss(logits, targets, 1)
    assert entropies.tolist() == pytest.approx([-(math.log(3 / 4) + math.log(1 / 4)) / 2])
    assert squares.tolist() == pytest.approx([0.25])


def hand_of(data: ImageSet, believed: np.ndarray, asked: list[Any] | None = None, **settings: Any) -> MixMatch:
    def mask(epoch: int, model: models.Classifier) -> np.ndarray:
        assert not model.training
        if asked is not None:
            asked.append(epoch)
        return believed

    given = {"steps": 3, "temperature": 0.5, "alpha": 0.75, "weight": 15.0, **settings}
    return MixMatch(data, RECIPE, mask, **given)


def test_a_step_sees_believed_images_and_as_many_others(splits: dict[str, ImageSet]) -> None:
    data, believed, asked = splits["train"].subset(np.arange(20)), np.arange(20) % 4 == 0, list[Any]()
    hand = hand_of(data, believed, asked)
    model = strided((8, 8, 8, 8), seed=1)
    history = fit(model, data, RECIPE, seed=0, what="mixmatch", hand=hand)
    assert asked == [0, 1]
    # Twelve places for five samples: all of them were there, and no other.
    assert (np.isfinite(history.losses) == believed).all()
    assert (hand.used, len(hand.others)) == (12, 12)
    assert set(hand.others.tolist()) <= set(np.flatnonzero(~believed))
    assert sorted(np.bincount(hand.order(0, 20, torch.Generator()).numpy(), minlength=20)[::4]) == [2, 2, 2, 3, 3]


def test_what_a_step_minimises(splits: dict[str, ImageSet]) -> None:
    data, believed = splits["train"].subset(np.arange(8)), np.arange(8) < 4
    # Of shares out of Beta(1e-3, 1e-3) the greater is 1 here: nothing is mixed, and no view is drawn without augmentation.
    hand = hand_of(data, believed, alpha=1e-3, weight=6.0, steps=1)
    hand.recipe = Recipe(batch_size=4)
    model = strided((8, 8, 8, 8), seed=1)
    images, labels = data.tensor() / 255, torch.from_numpy(data.labels)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hand.start(model, World())
        hand.start_epoch(1, 3)
        assert model.training
        model.eval()
        found = hand.objective(cross_entropy, model, images[:4], labels[:4], torch.arange(4))
        others = images[hand.others]
    with torch.no_grad():
        expected = F.cross_entropy(model(images[:4]), labels[:4], reduction="none")
        shares = model(others).softmax(1)
    assert torch.allclose(found.losses, expected, atol=1e-5)
    # A third of the way, a third of the weight.
    squares = (shares - shares**2 / (shares**2).sum(1, keepdim=True)).square().mean()
    assert found.extra is not None
    assert found.extra.item() == pytest.approx(2.0 * squares.item() * 4, rel=1e-4)
