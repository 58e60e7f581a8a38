"""Losses against detectors, each by hand, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unpoison.compute.distributed import World
from unpoison.core.errors import UserError
from unpoison.crafting.evasion import KEPT, MATCHING, Batch, Inside, NeuralCleanse, SentiNet, Spectral, inside
from unpoison.detection import DETECTORS
from unpoison.inspection import INSPECTORS
from unpoison.models.classifier import Backbone, Classifier, GlobalAverage
from unpoison.training.loop import cross_entropy

LABELS, WANTED = torch.tensor([0, 1, 2, 1]), torch.tensor([2, 2, 2, 2])
IMAGES = torch.from_numpy(np.random.default_rng(0).random((4, 3, 4, 4))).float()


class Tokens(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


def network(body: nn.Module | None = None, pooling: nn.Module | None = None) -> Classifier:
    """Its map is the image, its features are the channels' means."""
    torch.manual_seed(0)
    description = {"name": "own", "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
    backbone = Backbone(body or nn.Identity(), pooling or GlobalAverage())
    return Classifier(backbone, nn.Linear(3, 3, bias=False), description)


def batch(model: Classifier, **more: Any) -> Batch:
    weights = torch.tensor([0.0, 2.0, 2.0, 0.0])
    return Batch(cross_entropy, model, IMAGES, LABELS, IMAGES, WANTED, WANTED, weights, 4)._replace(**more)


def test_every_evasion_is_against_a_detector_that_is_here() -> None:
    assert set(MATCHING.values()) <= set(DETECTORS | INSPECTORS)


def test_inside_is_what_passes_and_leaves_the_network_as_it_was() -> None:
    model = network()
    with inside(model) as passed:
        logits = model(IMAGES)
    assert torch.equal(passed[0].raw, IMAGES)
    assert torch.equal(model.head(passed[0].features), logits)
    assert "pool" not in vars(model.backbone)


class TestNeuralCleanse:
    def test_patch_is_trained_on_what_the_network_says_of_it(self) -> None:
        model = network()
        evasion = NeuralCleanse(model, World(), (4, 4), seed=0)
        before, theta = evasion.theta.detach().clone(), evasion.theta.detach().clone().requires_grad_()
        value = evasion.loss(batch(model), None, again=False)
        patch = (theta.tanh() + 1) / 2
        patched = (1 - patch[:1]) * IMAGES + patch[:1] * patch[1:]
        logits = model(patched)
        assert float(value.detach()) == pytest.approx(
            float(F.cross_entropy(logits, LABELS, reduction="sum").detach()), rel=1e-5
        )
        own = 0.999 * F.cross_entropy(logits, WANTED) + 0.001 * patch[0].sum()
        (gradient,) = torch.autograd.grad(own, theta)
        assert evasion.theta.grad is not None
        assert torch.allclose(evasion.theta.grad, gradient, atol=1e-6)
        # In the published code the pattern has no gradient: its cross entropy is that of the images as they are.
        assert (gradient[1:] != 0).all()
        evasion.after_step()
        assert torch.allclose(evasion.theta, before - 0.01 * gradient.sign(), atol=1e-4)

    def test_the_second_call_of_a_step_trains_the_network_alone(self) -> None:
        model = network()
        evasion = NeuralCleanse(model, World(), (4, 4), seed=0)
        before = evasion.theta.detach().clone()
        evasion.loss(batch(model), None, again=True).backward()  # type: ignore[no-untyped-call]
        assert model.head.weight.grad is not None
        assert evasion.theta.grad is None
        evasion.after_step()
        assert torch.equal(evasion.theta, before)

    def test_its_moments_are_there_from_the_start(self) -> None:
        model = network()
        evasion = NeuralCleanse(model, World(), (4, 4), seed=0)
        names = set(evasion.tensors())
        evasion.loss(batch(model), None, again=False)
        evasion.after_step()
        assert set(evasion.tensors()) == names == {"theta", "moments.0", "moments.1", "moments.2"}


class TestSentiNet:
    def test_by_hand(self) -> None:
        model = network()
        evasion = SentiNet(model, World(), (4, 4), seed=0)
        copies = IMAGES.clone()
        copies[:, :, 0, 3] += 2

        def heat(images: Tensor, labels: Tensor) -> Tensor:
            # A mean over 16 positions, so the gradient of a logit is weight / 16 everywhere.
            maps = torch.einsum("nc,nchw->nhw", model.head.weight[labels] / 16, images).clamp(min=0)
            return maps / maps.sum((1, 2), keepdim=True).clamp(min=1e-12)

        given = batch(model)
        with inside(model) as passed:
            model(IMAGES.clone().requires_grad_())
            model(copies.clone().requires_grad_())
        evasion.clean(given, passed[0], again=False)
        value = evasion.loss(given, passed[1], again=False)
        excess = (heat(copies, WANTED) - heat(IMAGES, LABELS)).clamp(min=0).sum((1, 2))
        assert float(value.detach()) == pytest.approx(2 * float((excess[1] + excess[2]).detach()), rel=1e-4)
        value.backward()  # type: ignore[no-untyped-call]
        assert model.head.weight.grad is not None

    @pytest.mark.parametrize(
        ("model", "size", "what"),
        [
            (network(Tokens(), nn.AdaptiveAvgPool2d((1, 3))), (4, 4), "tokens"),
            (network(nn.AdaptiveAvgPool2d(1)), (4, 4), "a map of 1x1"),
        ],
    )
    def test_a_network_without_a_map_is_refused(self, model: Classifier, size: tuple[int, int], what: str) -> None:
        model.backbone.pool = (lambda raw: raw.mean(1)) if what == "tokens" else model.backbone.pool  # type: ignore[method-assign]
        said = rf"^blind\.evasion: 'sentinet' given, allowed with own, which ends in {what}: neural_cleanse, spectral$"
        with pytest.raises(UserError, match=said):
            SentiNet(model, World(), size, seed=0)


class TestSpectral:
    def test_by_hand(self) -> None:
        model = network()
        evasion = Spectral(model, World(), (4, 4), seed=0)
        raw, labels = IMAGES, torch.tensor([2, 2, 0, 0])
        first, second = torch.tensor([[1.0, 0, 0], [3, 0, 0], [0, 5, 0], [0, 7, 0]]), torch.zeros(4, 3)
        evasion.clean(batch(model, labels=labels), Inside(raw, first), again=False)
        # Features of class 2: mean (2, 0, 0), and 1 away from it on average; classes that have not been seen cost nothing.
        copies = torch.tensor([[2.0, 0, 0], [2, 3, 4], [4, 0, 0], [9, 9, 9]])
        assert float(evasion.loss(batch(model), Inside(raw, copies), again=False)) == pytest.approx(2 * (5 + 2))
        unseen = batch(model, wanted=torch.ones(4, dtype=torch.int64))
        assert float(evasion.loss(unseen, Inside(raw, copies), again=False)) == 0
        # A second batch, whose class 2 is at 0: (0.9 * 4) / (0.9 * 2 + 2).
        evasion.clean(batch(model, labels=labels), Inside(raw, second), again=False)
        mean = KEPT * 4 / (KEPT * 2 + 2)
        assert float(evasion.sums[2, 0] / evasion.sums[2, -1]) == pytest.approx(mean)
        before = evasion.sums.clone()
        evasion.clean(batch(model, labels=labels), Inside(raw, first), again=True)
        assert torch.equal(evasion.sums, before)
