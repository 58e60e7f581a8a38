"""I-BAU and SAU: the hypergradient and the shared loss by hand, a step of each beside plain autograd, on networks of all kinds."""

from __future__ import annotations

import math
from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call

from small_networks import strided
from unpoison import models
from unpoison.data.imageset import ImageSet
from unpoison.models import Classifier
from unpoison.purification import i_bau, sau

CLASSES = tuple("0123456789")


def images_of(count: int, side: int) -> ImageSet:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, side, side, 3), np.uint8)
    return ImageSet(images, rng.integers(0, 10, count), CLASSES)


def moves(before: Classifier, after: Classifier) -> dict[str, Tensor]:
    """What a step has taken from each weight, by name."""
    stepped = dict(after.named_parameters())
    return {name: (p - stepped[name]).detach() for name, p in before.named_parameters()}


def assert_first_step_of_adam(moved: dict[str, Tensor], gradients: dict[str, Tensor], lr: float) -> None:
    """Adam's first step has the length lr wherever a gradient is far from its epsilon of 1e-8."""
    for name, gradient in gradients.items():
        clear = gradient.abs() > 1e-5
        assert clear.any()
        assert torch.allclose(moved[name][clear], lr * gradient[clear].sign(), rtol=0.01)


@pytest.mark.parametrize(("iterations", "expected"), [(1, 4.75), (2, 5.125), (3, 5.3125), (60, 5.5)])
def test_the_hypergradient_of_a_parabola(iterations: int, expected: float) -> None:
    # inner = d^2 - 3 w d is least at d* = 1.5 w; its map with rate 1/4 is d - (2 d - 3 w) / 4, with slopes 1/2 and 3/4.
    # outer = (d - 1/2)^2 / 2 + 2 w^2 has slopes 1 and 4 at w = 1, d* = 1.5. So v = 1, 1.5, 1.75, … 2, and with 4 + 3/4 v the
    # limit is that of d/dw outer(1.5 w, w) = 1.5 (1.5 w - 1/2) + 4 w = 5.5.
    w = torch.ones((), dtype=torch.float64, requires_grad=True)
    (found,) = i_bau.hypergradient(
        lambda d, weights: (d - 0.5) ** 2 / 2 + 2 * weights[0] ** 2,
        lambda d, weights: d**2 - 3 * weights[0] * d,
        torch.tensor(1.5, dtype=torch.float64),
        [w],
        iterations=iterations,
        map_lr=0.25,
    )
    assert found is not None
    assert found.item() == pytest.approx(expected, rel=1e-9)
    assert w.grad is None


def test_the_hypergradient_of_weights_that_one_loss_or_none_depends_on() -> None:
    a, b, c = (torch.ones((), requires_grad=True) for _ in range(3))
    found = i_bau.hypergradient(
        lambda d, _: d * a, lambda d, _: d**2 - b * d, torch.tensor(0.5), [a, b, c], iterations=1, map_lr=0.1
    )
    # v = 1 is the outer slope by d, and that of d - 0.1 (2 d - b) by b is 0.1.
    assert found[2] is None
    assert [gradient.item() for gradient in found[:2] if gradient is not None] == pytest.approx([0.5, 0.1])


def test_one_step_of_i_bau_is_that_of_dense_jacobians() -> None:
    network, reserve = strided((8, 8), seed=1).eval(), images_of(6, 4)
    images, labels = reserve.tensor() / 255, torch.from_numpy(reserve.labels)
    # All images in one batch, and all carry the perturbation: their order does not matter.
    purified = i_bau.purify(
        network,
        reserve,
        rounds=1,
        batch_size=6,
        lr=1e-3,
        share=1.0,
        inner_lr=2.0,
        penalty=0.01,
        iterations=3,
        map_lr=0.5,
    )

    def inner(delta: Tensor, head: Tensor, wanted: Tensor = labels) -> Tensor:
        logits = functional_call(network, {"head.weight": head}, (images + delta.view(1, 3, 4, 4),))
        return 0.01 * (delta**2).sum() - F.cross_entropy(logits, wanted)

    def outer(delta: Tensor, head: Tensor) -> Tensor:
        return 0.01 * (delta**2).sum() - inner(delta, head)

    head, zero = network.head.weight.detach(), torch.zeros(48)
    predicted = network(images).argmax(1)
    delta = -2.0 * jacobian(lambda d: inner(d, head, predicted), zero)
    assert delta.abs().max() > 0.01
    by_delta, by_head = jacobian(outer, (delta, head))
    (curvature, mixed), _ = hessian(inner, (delta, head))
    along = torch.eye(48) - 0.5 * curvature
    v = by_delta @ (torch.eye(48) + along + along @ along)
    gradient = by_head - 0.5 * torch.tensordot(v, mixed, 1)
    assert (gradient - by_head).norm() > 0.01 * by_head.norm()
    assert_first_step_of_adam(moves(network, purified), {"head.weight": gradient}, 1e-3)


def test_the_share_of_a_batch_that_carries_the_perturbation() -> None:
    images, seen = torch.zeros(250, 3, 2, 2), []

    class Recorder(torch.nn.Module):
        def forward(self, given: Tensor) -> Tensor:
            seen.append(int(given.flatten(1).any(1).sum()))
            return given.flatten(1)[:, :2]

    for share, count in [(0.01, 250), (0.01, 32), (0.0, 32), (1.0, 32)]:
        labels = torch.zeros(count, dtype=torch.int64)
        i_bau.outer_loss(Recorder(), images[:count], labels, torch.ones(3, 2, 2), share)  # type: ignore[arg-type]
    assert seen == [2, 1, 0, 32]


def test_the_shared_loss_by_hand() -> None:
    probabilities = torch.tensor([[0.25, 0.75, 0.0], [0.6, 0.2, 0.2], [0.9995, 0.0005, 0.0], [0.0, 0.0, 1.0]])
    logits = (probabilities + 1e-30).log().requires_grad_()
    wrong, fooled = torch.tensor([0, 0, 1, 2]), torch.tensor([True, False, True, True])
    loss = sau.shared_loss(logits, wrong, fooled)
    # Not fooled: nothing. p = 0.0005: that of 0.001, without a slope. p = 1: the bound.
    assert loss.item() == pytest.approx(-(math.log(0.75) + math.log(0.999) + math.log(1e-6)) / 4, rel=1e-4)
    (slope,) = torch.autograd.grad(loss, logits)
    # d -log(1 - p) / dz = p for the class itself and -p q / (1 - p) for one of probability q.
    assert slope[0].tolist() == pytest.approx([0.25 / 4, -0.25 / 4, 0.0], abs=1e-5)
    assert not slope[1:3].any()


def test_the_attacks_loss_by_hand() -> None:
    ours, theirs = (
        torch.tensor([[0.8, 0.2], [0.2, 0.8], [0.6, 0.4]]),
        torch.tensor([[0.2, 0.8], [0.2, 0.8], [0.6, 0.4]]),
    )
    loss = sau.attack_loss(
        ours.log(), theirs.log(), *(torch.zeros(3, dtype=torch.int64) for _ in range(3)), beta_1=0.1, beta_2=2.0
    )
    # First: only theirs has changed its mind. Second: both have, and agree, which is all that is wanted. Third: none has.
    divergence = 0.8 * math.log(0.8) + 0.2 * math.log(0.2) - math.log(0.5)
    expected = 2 * divergence + 0.05 * math.log(0.8) + 0.05 * 2 * math.log(0.6)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_one_step_of_sau_is_that_of_its_loss() -> None:
    network, reserve = strided((8, 8), seed=2, norm=None).eval(), images_of(8, 8)
    # Logits far enough apart that the perturbed images are not all of one class.
    network.head.weight.data.mul_(20)
    images, labels = reserve.tensor() / 255, torch.from_numpy(reserve.labels)
    purified = sau.purify(
        network,
        reserve,
        epochs=1,
        batch_size=8,
        lr=1e-3,
        bound=0.4,
        step=0.5,
        steps=1,
        lambda_1=0.5,
        lambda_2=0.2,
        lambda_3=3.0,
    )
    # Before the first step both networks are the same one, so they do not diverge.
    delta = torch.full_like(images, 0.4, requires_grad=True)
    logits = network(images + delta)
    kept = logits.argmax(1) == network(images).argmax(1)
    (-0.01 * F.cross_entropy(logits, labels, reduction="none")[kept].sum()).backward()
    assert delta.grad is not None
    moved = (delta.detach() - 0.5 * delta.grad.sign()).clamp(-0.4, 0.4)
    network.zero_grad()
    logits, before = network(images + moved), network(images)
    wrong = logits.argmax(1)
    fooled = (wrong != labels) & (wrong != before.argmax(1))
    assert fooled.any()
    assert not fooled.all()
    unlearned = -(1 - logits.softmax(1)[torch.arange(8), wrong])[fooled].log().sum() / 8
    loss = 0.5 * F.cross_entropy(before, labels) + 0.2 * F.cross_entropy(logits, labels) + 3 * unlearned
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    names = [name for name, _ in network.named_parameters()]
    assert_first_step_of_adam(moves(network, purified), dict(zip(names, gradients, strict=True)), 1e-3)


@pytest.mark.parametrize("name", ["compact", "timm:test_convnext", "timm:test_vit", "torchvision:mobilenet_v3_small"])
def test_on_a_network_of_any_kind(name: str) -> None:
    network, reserve = models.build(name, num_classes=10, image_size=32), images_of(2, 32)
    given = deepcopy(network.state_dict())
    # Attention and the hard sigmoid have no second derivative as torch computes them by default: i_bau needs one.
    for purified in (
        i_bau.purify(network, reserve, rounds=1, iterations=2),
        sau.purify(network, reserve, epochs=1, steps=1),
    ):
        assert any(not torch.equal(value, given[key]) for key, value in purified.state_dict().items())
        assert all(p.requires_grad and p.grad is None for p in purified.parameters())
    assert all(torch.equal(value, given[key]) for key, value in network.state_dict().items())
