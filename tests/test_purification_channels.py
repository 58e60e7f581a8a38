"""Purifiers that prune channels of batch norm: pairs by tracing, each method's formula by hand, networks of all kinds."""

from __future__ import annotations

from copy import deepcopy
from math import log
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unpoison import models
from unpoison.core.errors import ParameterError, UserError
from unpoison.data.imageset import ImageSet
from unpoison.models.classifier import Backbone, Classifier, GlobalAverage
from unpoison.purification import PURIFIERS, anp, bnp, clp, rnp
from unpoison.purification.batches import Batches
from unpoison.purification.channels import Masks, Pair, outliers, pairs
from unpoison.training.recipe import Recipe

METHODS: dict[str, dict[str, Any]] = {
    "clp": {"u": 0.5},
    "bnp": {"u": 0.5},
    "anp": {"iterations": 1, "batch_size": 4, "lr": 20.0, "threshold": 0.99},
    "rnp": {"epochs": 1, "mask_epochs": 1, "batch_size": 4, "mask_lr": 100.0, "threshold": 0.99},
}


def images_of(n: int, side: int, channels: int = 3, seed: int = 0) -> ImageSet:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (n, side, side, channels), dtype=np.uint8)
    return ImageSet(images, np.arange(n) % 3, tuple("abc"), digest="d")


def classifier(body: nn.Module, features: int, *, channels: int = 3, side: int = 4) -> Classifier:
    """A small network of three classes on images that are not normalised."""
    description = {
        "name": "small",
        "mean": [0.0] * channels,
        "std": [1.0] * channels,
        "channels": channels,
        "image_size": [side, side],
    }
    return Classifier(Backbone(body, GlobalAverage()), nn.Linear(features, 3), description)


def small(seed: int = 0) -> Classifier:
    """Convolution, batch norm, ReLU, average, head: what the tests below compute once more by hand."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = classifier(nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5), nn.ReLU()), 5)
        for parameter in network.backbone.body[1].parameters():
            parameter.data.uniform_(0.5, 1.5)
    return network


def entropy_by_hand(network: Classifier, data: ImageSet, weights: Tensor, biases: Tensor) -> Tensor:
    """Cross entropy of `small` in training mode, with batch norm's weights and biases times factors, from formulas."""
    convolution, norm = network.backbone.body[0], network.backbone.body[1]
    x = torch.einsum("oi,nihw->nohw", convolution.weight[:, :, 0, 0], data.tensor() / 255)
    # A batch's mean takes the convolution's bias away again.
    x = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), unbiased=False, keepdim=True) + norm.eps).sqrt()
    x = x * (norm.weight * weights).view(1, -1, 1, 1) + (norm.bias * biases).view(1, -1, 1, 1)
    logits = x.relu().mean((2, 3)) @ network.head.weight.T + network.head.bias
    return F.cross_entropy(logits, torch.from_numpy(data.labels))


# --- which convolution feeds which batch norm


class Shortcut(nn.Module):
    """A block whose modules stand in another order than they are run in, as in many a ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.shortcut_conv = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.shortcut_norm, self.norm1 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm1(self.conv1(x)) + self.shortcut_norm(self.shortcut_conv(x))
        return out


class Reused(nn.Module):
    """A batch norm that two convolutions feed, and one that has its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.shared, self.own = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.own(self.c(self.shared(self.b(self.shared(self.a(x))))))
        return out


def test_pairs_follow_the_tensors() -> None:
    block = Shortcut()
    found = pairs(classifier(block, 4), "clp")
    assert found == [Pair(block.conv1, block.norm1), Pair(block.shortcut_conv, block.shortcut_norm)]
    reused = Reused()
    assert pairs(classifier(reused, 3), "clp") == [Pair(reused.c, reused.own)]


@pytest.mark.parametrize("between", [nn.ReLU(inplace=True), nn.ReLU()])
def test_what_stands_between_leaves_a_batch_norm_out(between: nn.Module) -> None:
    network = classifier(nn.Sequential(nn.Conv2d(3, 4, 1), between, nn.BatchNorm2d(4)), 4)
    with pytest.raises(
        UserError, match=r"^clp: small given, which has no batch norm right behind a convolution; allowed"
    ):
        clp.purify(network, images_of(3, 4))
    assert network.training


def test_pooling_keeps_channels_apart() -> None:
    body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.BatchNorm2d(4))
    assert pairs(classifier(body, 4), "clp") == [Pair(body[0], body[3])]  # type: ignore[arg-type]
    written = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.BatchNorm2d(4))
    with pytest.raises(UserError):
        pairs(classifier(written, 4), "clp")


# Convolutions with a batch norm of their own, batch norms: what feeds the others is a sum or a concatenation.
NETWORKS = {
    "resnet18": (20, 20),
    "vgg19_bn": (16, 16),
    "preactresnet18": (9, 17),
    "densenet121": (62, 120),
    "compact": (6, 6),
    "timm:mobilenetv3_small_050": (34, 34),
}


def built(name: str, side: int) -> Classifier:
    arguments = {} if ":" in name else {"growth": 8} if name == "densenet121" else {"width": 8}
    model = models.build(name, num_classes=3, image_size=side, **arguments).eval()
    generator = torch.Generator().manual_seed(0)
    # Statistics and weights as of a trained network: those of an untrained one are the same for all channels.
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight.data, module.running_var):
                values.copy_(torch.rand(values.shape, generator=generator) + 0.5)
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str) -> None:
    side = 32 if name == "vgg19_bn" else 16
    model, reserve = built(name, side), images_of(4, side)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    found = pairs(model, "clp")
    assert (len(found), len(norms)) == NETWORKS[name]
    assert all(pair.convolution.out_channels == len(pair.norm.weight) for pair in found)
    for method, arguments in METHODS.items():
        purified = PURIFIERS[method].purify(model, reserve, **arguments)
        after = purified.state_dict()
        changed = {key for key, value in state.items() if not torch.equal(value, after[key])}
        assert changed, method
        owners = {key.rpartition(".")[0] for key in changed}
        assert all(isinstance(purified.get_submodule(owner), nn.BatchNorm2d) for owner in owners), method
        # A channel is pruned or as it was.
        assert all(bool(((after[key] == value) | (after[key] == 0)).all()) for key, value in state.items()), method
        assert all(parameter.requires_grad for parameter in purified.parameters())
        assert not purified.training
    kept = model.state_dict()
    assert all(torch.equal(value, kept[key]) for key, value in state.items())


@pytest.mark.parametrize("name", ["timm:test_convnext", "timm:test_vit"])
def test_a_network_without_batch_norm_is_refused(name: str) -> None:
    model = models.build(name, num_classes=3, image_size=160)
    for method in METHODS:
        with pytest.raises(UserError) as refused:
            PURIFIERS[method].purify(model, images_of(3, 160))
        assert str(refused.value).startswith(f"{method}: {name} given, which has no batch norm; allowed: ")
        assert "\n" not in str(refused.value)


def test_an_ascent_that_diverges_ends_with_one_line() -> None:
    with pytest.raises(ParameterError, match=r"^lr: 1e\+30 given, with which rnp diverged: "):
        rnp.purify(small(), images_of(6, 4), lr=1e30, accuracy=0.0)


# --- which channels stand out


def test_no_value_of_ten_is_three_deviations_above_the_mean() -> None:
    # Of n values one stands out most when the others are equal: by (n - 1) / sqrt(n) deviations, 2.846 of 10, 3.015 of 11.
    assert outliers(torch.eye(11)[4], 3.0).nonzero().tolist() == [[4]]
    assert not outliers(torch.eye(10)[4], 3.0).any()
    assert not outliers(torch.ones(1), 0.0).any()


# --- clp


def test_clps_bounds_by_arithmetic() -> None:
    convolution, norm = nn.Conv2d(2, 2, (1, 2)), nn.BatchNorm2d(2, eps=1.0)
    # Largest singular values: 4 of a diagonal matrix, 2 of one of ones. Factors: |-2| / sqrt(3 + 1), 3 / sqrt(0 + 1).
    convolution.weight.data = torch.tensor([[[[3.0, 0]], [[0, 4]]], [[[1, 1]], [[1, 1]]]])
    norm.weight.data, norm.running_var = torch.tensor([-2.0, 3.0]), torch.tensor([3.0, 0.0])
    assert clp.bounds(Pair(convolution, norm)).tolist() == pytest.approx([4, 6])
    # Depthwise: a channel's matrix is one row, its largest singular value that row's length.
    depthwise = nn.Conv2d(2, 2, (1, 3), groups=2)
    depthwise.weight.data = torch.tensor([[[[1.0, 2, 2]]], [[[0, 0, 5]]]])
    assert clp.bounds(Pair(depthwise, norm)).tolist() == pytest.approx([3, 15])


def test_clps_bounds_of_real_shapes() -> None:
    for shape in ((6, 20, 3, 3), (6, 4, 3, 3), (6, 5, 1, 1)):
        convolution, norm = nn.Conv2d(shape[1], shape[0], shape[2:]), nn.BatchNorm2d(6, eps=0.0)
        expected = torch.linalg.svdvals(convolution.weight.detach().double().flatten(2))[:, 0]
        assert torch.allclose(clp.bounds(Pair(convolution, norm)), expected, rtol=1e-9)


def test_clp_prunes_weight_and_bias_and_needs_no_image() -> None:
    network = classifier(nn.Sequential(nn.Conv2d(3, 12, 1), nn.BatchNorm2d(12)), 12)
    network.backbone.body[1].weight.data[7] = 50.0
    network.backbone.body[1].bias.data.fill_(1.0)
    norm = clp.purify(network, images_of(3, 4).subset(np.arange(0))).backbone.body[1]
    expected = torch.ones(12)
    expected[7] = 0
    assert torch.equal(norm.weight, expected)
    assert torch.equal(norm.bias, expected)


# --- bnp


def test_bnps_divergence_by_arithmetic() -> None:
    network = classifier(
        nn.Sequential(nn.BatchNorm2d(2, eps=0.0), nn.BatchNorm2d(2, eps=0.0)), 2, channels=2, side=2
    ).eval()
    first = network.backbone.body[0]
    first.running_mean.copy_(torch.tensor([0.0, 0.5]))
    first.running_var.copy_(torch.tensor([1.0, 0.25]))
    # Half of the images are black and half white, so each pixel has mean 1/2 and variance 1/4; in two batches, which alone
    # have neither.
    pixels = np.zeros((400, 2, 2, 2), np.uint8)
    pixels[200:] = 255
    found = bnp.divergences(network, [*network.backbone.body], ImageSet(pixels, np.zeros(400, np.int64), tuple("abc")))
    # Against N(0, 1): log(1 / (1/2)) + (1/4 + 1/4) / 2 - 1/2. Against N(1/2, 1/4): nothing.
    assert found[0].tolist() == pytest.approx([log(2) - 0.25, 0], abs=1e-7)
    # The second layer sees the first one's output: x, and 2 x - 1 of mean 0 and variance 1.
    assert found[1].tolist() == pytest.approx([log(2) - 0.25, 0], abs=1e-7)


def test_a_channel_that_is_dead_does_not_hide_another() -> None:
    network = classifier(nn.Sequential(nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16)), 16).eval()
    convolution, norm = network.backbone.body
    convolution.weight.data[:], convolution.bias.data[:] = 0.1, 0.0
    norm.running_mean.fill_(0.15)
    norm.running_var.fill_(0.01)
    # Without input, and saved as such; and one whose images lie three deviations off.
    convolution.weight.data[2] = norm.running_mean[2] = norm.running_var[2] = 0.0
    norm.running_mean[9] = 0.45
    weight = bnp.purify(network, images_of(30, 4)).backbone.body[1].weight
    assert (weight == 0).nonzero().tolist() == [[9]]


# --- anp


def test_anps_push_and_the_masks_gradient() -> None:
    network, data, eps = small(), images_of(6, 4), 0.4
    images, labels = data.tensor() / 255, torch.from_numpy(data.labels)
    masks = Masks(deepcopy(network), "anp")
    masks.values.data.copy_(torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2]))
    start = torch.tensor([[0.3, -0.3, 0, 0.1, -0.1], [0, 0.2, -0.2, 0.4, -0.4]])
    push = anp.worst_push(masks, images, labels, start.clone(), eps=eps, steps=1)
    before = masks.values.detach().clone()
    by_hand = start.clone().requires_grad_()
    entropy_by_hand(network, data, before + by_hand[0], 1 + by_hand[1]).backward()
    assert torch.equal(push, (start + eps * by_hand.grad.sign()).clamp(-eps, eps))
    # The gradient of both terms, on one graph and with other formulas.
    anp.differentiate(masks, images, labels, push, alpha=0.2)
    leaf, ones = before.clone().requires_grad_(), torch.ones(5)
    clean, pushed = (
        entropy_by_hand(network, data, leaf, ones),
        entropy_by_hand(network, data, leaf + push[0], 1 + push[1]),
    )
    (0.2 * clean + 0.8 * pushed).backward()
    assert torch.allclose(masks.values.grad, leaf.grad, atol=1e-6)
    assert leaf.grad.abs().min() > 1e-4
    assert torch.equal(masks.values, before)


def test_anps_steps_keep_the_push_in_bounds() -> None:
    network, data = small(), images_of(6, 4)
    masks, start = Masks(network, "anp"), torch.zeros(2, 5)
    images, labels = data.tensor() / 255, torch.from_numpy(data.labels)
    once = anp.worst_push(masks, images, labels, start.clone(), eps=0.3, steps=1)
    assert torch.allclose(once.abs(), torch.full((2, 5), 0.3))
    thrice = anp.worst_push(masks, images, labels, start.clone(), eps=0.3, steps=3)
    assert thrice.abs().max() <= 0.3 + 1e-6
    plain, pushed = (entropy_by_hand(network, data, 1 + push[0], 1 + push[1]) for push in (torch.zeros(2, 5), thrice))
    assert pushed > plain


# --- rnp


def test_rnps_mask_step() -> None:
    network, data = small(), images_of(6, 4)
    masks = Masks(deepcopy(network), "rnp")
    batches = Batches(data, 6, seed=0, purpose="test")
    leaf = torch.ones(5, requires_grad=True)
    entropy_by_hand(network, data, leaf, torch.ones(5)).backward()
    # Far enough that a mask goes below 1, and above it another one is clipped.
    rnp.relearn(masks, batches, Recipe(epochs=1, lr=4.0, weight_decay=0.0), 0.2)
    expected = (1 - 4.0 * 0.2 * leaf.grad).clamp(0, 1)
    assert torch.allclose(masks.values, expected, atol=1e-6)
    assert 0 < (expected < 1).sum() < 5


def test_rnps_ascent_goes_up_and_stops() -> None:
    network, data = small(), images_of(6, 4)
    batches, recipe = (
        Batches(data, 6, seed=0, purpose="test"),
        Recipe(epochs=5, lr=0.1, weight_decay=0.01, schedule="constant"),
    )
    # An accuracy of 1 or less is reached after one epoch, of one step here: up the gradient, and down the penalty.
    stepped = deepcopy(network)
    rnp.unlearn(stepped, batches, recipe, 1.0)
    entropy_by_hand(network, data, torch.ones(5), torch.ones(5)).backward()
    head = network.head.weight
    assert torch.allclose(stepped.head.weight, head + 0.1 * head.grad - 0.1 * 0.01 * head, atol=1e-6)
    further = deepcopy(network)
    rnp.unlearn(further, batches, recipe, 0.0)
    losses = [entropy_by_hand(model, data, torch.ones(5), torch.ones(5)) for model in (network, stepped, further)]
    assert losses[0] < losses[1] < losses[2]


def test_a_low_mask_takes_the_weight_and_leaves_the_bias() -> None:
    network = small()
    masks = Masks(deepcopy(network), "rnp")
    masks.values.data.copy_(torch.tensor([0.0, 0.3, 0.31, 1.0, 0.1]))
    weight, bias = (parameter.clone() for parameter in network.backbone.body[1].parameters())
    masks.prune(network, 0.3)
    norm = network.backbone.body[1]
    assert torch.equal(norm.weight, weight * torch.tensor([0.0, 0, 1, 1, 0]))
    assert torch.equal(norm.bias, bias)
