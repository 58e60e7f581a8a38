"""Steps of ft_sam, d3, lmr and tsbd by hand, and the guards of ascent."""

from __future__ import annotations

import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from planted import Planted
from small_networks import strided
from unpoison import models
from unpoison.compute.inference import logits_of
from unpoison.core.errors import ParameterError
from unpoison.data.imageset import ImageSet
from unpoison.models import Classifier
from unpoison.purification import PURIFIERS, d3, ft_sam, lmr, tsbd
from unpoison.purification.ascent import Watch, accuracy_on
from unpoison.purification.batches import Batches, on_device
from unpoison.purification.clean_unlearning import chance_of, unlearned
from unpoison.training import plan
from unpoison.training.bounds import bounded
from unpoison.training.sam import at_the_worst_weights


def images_of(n: int, side: int = 8) -> ImageSet:
    rng = np.random.default_rng(0)
    return ImageSet(
        rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8), np.arange(n) % 10, tuple("abcdefghij"), digest="drawn"
    )


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


class Tiny(nn.Module):
    """w . x, and a weight that nothing reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([3.0, -1.0, 0.5]))
        self.unused = nn.Parameter(torch.ones(1))


def test_the_worst_weights_of_adaptive_sam_by_hand() -> None:
    tiny = Tiny()
    tiny.w.grad = torch.tensor([1.0, 2.0, -4.0])
    with at_the_worst_weights(tiny, [tiny.w, tiny.unused], 2.0, adaptive=True):
        # |w| g = (3, 2, -2) has the norm sqrt(17), and w^2 g = (9, 2, -1).
        far = 2 / math.sqrt(17)
        assert tiny.w.tolist() == pytest.approx([3 + 9 * far, -1 + 2 * far, 0.5 - far], abs=1e-6)
        assert tiny.unused.item() == 1
    assert tiny.w.tolist() == [3.0, -1.0, 0.5]


def test_one_step_of_ft_sam() -> None:
    model, data = strided([8], seed=0), images_of(8)
    stepped = ft_sam.purify(model, data, epochs=1, batch_size=8, lr=0.1, weight_decay=0.01, rho=0.5)
    network = deepcopy(model).train()
    images, labels = data.tensor() / 255, torch.from_numpy(data.labels)

    def gradients() -> list[torch.Tensor]:
        # Smoothed as published: 0.9 for the label, 0.1 / 9 for each other class.
        wanted = torch.full((8, 10), 0.1 / 9).scatter(1, labels[:, None], 0.9)
        loss = -(wanted * network(images).log_softmax(1)).sum(1).mean()
        return list(torch.autograd.grad(loss, list(network.parameters())))

    at, before = gradients(), [p.detach().clone() for p in network.parameters()]
    length = math.sqrt(sum((w.abs() * g).square().sum().item() for w, g in zip(before, at, strict=True)))
    with torch.no_grad():
        for parameter, w, g in zip(network.parameters(), before, at, strict=True):
            parameter.copy_(w + 0.5 * w * w * g / length)
    for found, w, g in zip(stepped.parameters(), before, gradients(), strict=True):
        assert torch.allclose(found, w - 0.1 * (g + 0.01 * w), atol=1e-6)


@pytest.mark.parametrize(("weight", "scale"), [(10.0, 1 / 11), (0.5, 1.0)])
def test_one_step_of_d3(weight: float, scale: float) -> None:
    model, data = strided([8], seed=0), images_of(8)
    arguments = {"epochs": 1, "batch_size": 8, "lr": 0.1, "weight": weight, "epsilon": 2.3, "start": "opposite"}
    stepped = d3.purify(model, data, **arguments)
    network, original = deepcopy(model).train(), model.head.weight.detach()
    with torch.no_grad():
        network.head.weight.neg_()
    entropy = F.cross_entropy(network(data.tensor() / 255), torch.from_numpy(data.labels), reduction="none")
    # The bound lies among the losses: some samples count and some do not.
    assert 0 < (entropy > 2.3).sum() < 8
    distance = (network.head.weight - original).square().sum().sqrt()
    (scale * (weight * (entropy - 2.3).clamp(min=0).mean() - distance)).backward()
    moved = network.head.weight.detach() - 0.1 * network.head.weight.grad
    expected = moved * (original.norm() / moved.norm())
    assert torch.allclose(stepped.head.weight, expected, atol=1e-6)
    first, gradient = network.backbone.body[0].weight, network.backbone.body[0].weight.grad
    assert torch.allclose(stepped.backbone.body[0].weight, first - 0.1 * gradient, atol=1e-6)


def test_heads_that_d3_starts_from() -> None:
    original = nn.Linear(3, 2)
    for start, factor in (("opposite", -1), ("zero", 0), ("original", 1)):
        head = deepcopy(original)
        d3._start(head, start, 0)
        assert torch.equal(head.weight, factor * original.weight)
    one, again, other = (deepcopy(original) for _ in range(3))
    for head, seed in ((one, 1), (again, 1), (other, 2)):
        d3._start(head, "random", seed)
        assert torch.allclose(head.weight.norm(), original.weight.norm())
        assert torch.equal(head.bias, original.bias)
    assert torch.equal(one.weight, again.weight)
    assert not torch.equal(one.weight, other.weight)


def test_the_loss_of_lmr_by_hand() -> None:
    logits = torch.tensor([[1.0, 3.0, 0.0], [2.0, 0.5, 5.0], [4.0, 1.0, 0.0]])
    found = lmr.repulsion(logits, torch.tensor([1, 1, 0]), 0, alpha=2.0, margin=3.0, beta=0.25, own_margin=0.5)
    # Class 0 is pushed. It is 2 behind, 1 too little; its own class leads by 2, which is enough.
    first = math.log(1 + math.exp(-2) + math.exp(-3)) + 2 * 1
    # It is 3 behind; but class 2 leads class 1 by 4.5, which is 5 too much.
    second = math.log(1 + math.exp(1.5) + math.exp(4.5)) + 0.25 * 5
    # A sample of class 0 itself, well ahead: nothing.
    assert found.tolist() == pytest.approx([first, second, 0], rel=1e-6)
    weak = lmr.repulsion(-logits[2:], torch.tensor([0]), 0, alpha=2.0, margin=3.0, beta=0.25, own_margin=0.5)
    assert weak.tolist() == pytest.approx([0.25 * (4 + 0.5)])


def test_the_class_that_lmr_pushes_has_the_highest_mean_log_probability() -> None:
    # Class 1 is predicted twice of three times, but all but ruled out once.
    logits = torch.tensor([[0.0, 1.0, -9.0], [0.0, 1.0, -9.0], [0.0, -9.0, -9.0]])
    assert lmr.backdoor_class(logits) == 0


def test_lmr_cuts_inputs_of_the_head_off(planted: Planted) -> None:
    reserve = planted.reserve.subset(np.arange(32))
    purified = lmr.purify(planted.model, reserve, target=0, batch_size=32, epochs=1, recovery_epochs=2, channels=0.25)
    # A quarter of 64, for all classes, and so they stay through the steps of recovery.
    assert (purified.head.weight == 0).all(0).sum() == 16
    assert (purified.head.weight == 0).sum() == 160
    with pytest.raises(ParameterError, match=r"^target: 10 given, allowed: 0 to 9, or null$"):
        lmr.purify(planted.model, reserve, target=10)


def test_lmr_pushes_the_class_that_unlearning_finds(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    reserve = planted.reserve.subset(np.arange(32))
    short = {"batch_size": 32, "epochs": 1, "recovery_epochs": 1, "unlearn_epochs": 1}
    monkeypatch.setattr(lmr, "backdoor_class", lambda logits: 4)
    pushed = lmr.purify(planted.model, reserve, **short)
    raised, lowered = (logits_of(model, reserve)[:, 4].mean() for model in (planted.model, pushed))
    assert lowered < raised


def test_what_tsbd_ranks_and_zeroes_by_hand() -> None:
    first, second = torch.ones(3, 2), torch.ones(2, 2, 1, 1)
    after = [
        first + torch.tensor([[0.1, -0.2], [0.5, 0.4], [0.0, 0.0]]),
        second + torch.tensor([[-0.9, 0.1], [0.2, 0.15]]).view(2, 2, 1, 1),
    ]
    # The neurons have changed by 0.3, 0.9, 0 and 1.0, 0.35. The first two of five hold 0.5, 0.4, 0.9 and 0.1, of which the
    # three largest go.
    tsbd.zero_most_changed([first, second], after, neurons=0.5, weights=0.8)
    assert first.tolist() == [[1, 1], [0, 0], [1, 1]]
    assert second.flatten().tolist() == [0, 1, 1, 1]
    for shares in ((0.1, 1.0), (1.0, 0.01)):
        tsbd.zero_most_changed([first, second], after, *shares)
    assert (first.sum() + second.sum()).item() == 7


def test_one_step_of_tsbd() -> None:
    model, data = strided([8], seed=0), images_of(8)
    stepped = tsbd.purify(
        model, data, neurons=0.0, unlearn_epochs=1, epochs=1, batch_size=8, lr=0.1, radius=0.5, alpha=0.3
    )
    network = deepcopy(model).train()

    def gradients() -> list[torch.Tensor]:
        loss = F.cross_entropy(network(data.tensor() / 255), torch.from_numpy(data.labels))
        return list(torch.autograd.grad(loss, list(network.parameters())))

    at, before = gradients(), [p.detach().clone() for p in network.parameters()]
    with torch.no_grad():
        for parameter, g in zip(network.parameters(), at, strict=True):
            parameter.add_(0.5 * g / g.norm())
    for found, w, here, there in zip(stepped.parameters(), before, at, gradients(), strict=True):
        assert torch.allclose(found, w - 0.1 * (0.7 * here + 0.3 * there), atol=1e-6)


def test_unlearning_is_ascent_until_chance_or_the_bound() -> None:
    model, data = strided([8], seed=0), images_of(8)

    def after(size: int = 8, **arguments: float | None) -> Classifier:
        batches = Batches(data, size, seed=0, purpose="test")
        given = {"epochs": 1, "lr": 0.1, "momentum": 0.9, "bound": None} | arguments
        return unlearned(model, batches, data, what="test", **given)

    network = deepcopy(model).train()
    F.cross_entropy(network(data.tensor() / 255), torch.from_numpy(data.labels)).backward()
    assert torch.allclose(after().head.weight, model.head.weight + 0.1 * network.head.weight.grad, atol=1e-6)
    # Below every loss: no step is taken, and no second epoch.
    assert torch.equal(after(bound=0.1, epochs=9).head.weight, model.head.weight)
    with pytest.raises(ParameterError, match=r"^unlearn_lr: 1e\+38 given, with which the ascent of test diverged: "):
        after(4, lr=1e38)
    assert chance_of(data, 10) == 1 / 8
    assert chance_of(images_of(20), 10) == 1 / 10


# Loops of their own in training mode that are handed the reserve.
@pytest.mark.parametrize("name", ["ft_sam", "anp", "rnp", "bti_dbf", "pam", "lmr", "tsbd"])
@pytest.mark.parametrize(("count", "size"), [(1, 16), (4, 1)])
def test_a_batch_of_one_ends_with_one_line(name: str, count: int, size: int) -> None:
    # Three halvings of 8 px leave one value to average over.
    model, given = strided([8, 8, 8], seed=0), "1 image" if count == 1 else "images"
    line = rf"^batch_size: {size} given for {given} of 8x8 px, allowed for this network: at least 2"
    with pytest.raises(ParameterError, match=line):
        PURIFIERS[name].purify(model, images_of(count), batch_size=size)


def test_batches_are_the_same_from_memory_and_from_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    data = images_of(7)
    in_memory = Batches(data, 3, seed=1, purpose="test", augment=["crop", "flip"])
    # A second copy of a set that is in the host's memory would be of no use.
    assert in_memory.plan.resident is not None
    if in_memory.device.type == "cpu":
        assert in_memory.plan.resident.data_ptr() == data.base.ctypes.data  # type: ignore[union-attr]
    monkeypatch.setattr(plan, "_memory", lambda device: 0)
    from_disk = Batches(data, 3, seed=1, purpose="test", augment=["crop", "flip"])
    assert from_disk.plan.resident is None
    # A last batch of one joins the one before.
    assert in_memory.sizes == [3, 4]
    assert len(in_memory) == 2
    for epoch in range(2):
        pairs = list(zip(in_memory.epoch(epoch), from_disk.epoch(epoch), strict=True))
        assert all(torch.equal(*values) for pair in pairs for values in zip(*pair, strict=True))
        assert sorted(torch.cat([labels for (_, labels), _ in pairs]).tolist()) == list(range(7))


# What each is to do in little time, on networks with and without batch norm and convolutions.
SHORT = {
    "ft_sam": {"epochs": 1},
    "d3": {"epochs": 1},
    "lmr": {"unlearn_epochs": 1, "epochs": 1, "recovery_epochs": 1},
    "tsbd": {"unlearn_epochs": 1, "epochs": 1, "layers": "all"},
}
NETWORKS = {
    "vgg19_bn": {"width": 8},
    "timm:test_convnext": {},
    "timm:test_vit": {},
}


@pytest.mark.parametrize("network", NETWORKS)
def test_on_other_networks(network: str) -> None:
    data = images_of(4, 32)
    model = models.build(network, num_classes=10, image_size=32, **NETWORKS[network]).eval()
    for name, arguments in SHORT.items():
        purified = PURIFIERS[name].purify(model, data, batch_size=4, **arguments)
        assert not torch.equal(purified.head.weight, model.head.weight)
        assert all(value.isfinite().all() for value in purified.state_dict().values())


def test_tsbd_wants_all_layers_of_a_network_without_convolution(planted: Planted) -> None:
    model = deepcopy(planted.model)
    model.backbone.body, model.backbone.pooling = (
        nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 8)),
        nn.ReLU(),
    )
    model.head = nn.Linear(8, 10)
    reserve = planted.reserve.subset(np.arange(24))
    with pytest.raises(ParameterError, match=r"^layers: conv given, allowed for .*, without convolution: all$"):
        tsbd.purify(model, reserve)
    tsbd.purify(model, reserve, layers="all", unlearn_epochs=1, epochs=1)
