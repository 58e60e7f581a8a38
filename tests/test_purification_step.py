"""Steps of ft_sam, d3, lmr and tsbd by hand, and the guards of ascent."""

from __future__ import annotations

from copy import deepcopy

import torch

from planted import Planted
from unpoison.purification.ascent import Watch, accuracy_on, bounded
from unpoison.purification.batches import on_device


def test_beyond_its_bound_a_loss_has_no_gradient() -> None:
    losses = torch.tensor([1.0, 3.0], requires_grad=True)
    assert bounded(losses, None) is losses
    bounded(losses, 2.0).sum().backward()
    assert losses.grad is not None
    assert losses.grad.tolist() == [1, 0]


def test_a_watch_tells_of_the_loss_of_accuracy_and_restores(planted: Planted) -> None:
    model = on_device(deepcopy(planted.model), "test").train()
    watch, never = Watch(model, planted.reserve, 0.1), Watch(model, planted.reserve, None)
    assert watch.start == accuracy_on(planted.model, planted.reserve) > 0.8
    assert not watch.collapsed(model)
    assert model.training
    with torch.no_grad():
        model.head.weight.neg_()
    assert watch.collapsed(model)
    assert not never.collapsed(model)
    watch.restore(model)
    assert torch.equal(model.head.weight, planted.model.head.weight)
