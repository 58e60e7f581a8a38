"""Inversion by decoupling benign features, and the two purifiers on it: values by hand, and networks of every kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from contract import weights_of
from small_networks import strided
from unpoison import models
from unpoison.core.errors import ParameterError, UserError
from unpoison.data.imageset import ImageSet
from unpoison.models.classifier import Backbone, Classifier
from unpoison.purification import PURIFIERS, bti_dbf, inversion, pam
from unpoison.purification.batches import Batches
from unpoison.purification.inversion import Inversion, Settings, UNet, mask_loss, raw_of

QUICK: dict[str, Any] = {
    "rounds": 1,
    "pretrain_epochs": 1,
    "mask_epochs": 1,
    "generator_epochs": 1,
    "epochs": 1,
    "batch_size": 10,
    "width": 1,
}
SETTINGS = Settings(
    **QUICK, inverted=0.2, mask_lr=0.01, generator_lr=0.001, image_bound=0.3, feature_bound=3.0, augment=()
)


def noise(count: int, side: int = 8, channels: int = 3) -> ImageSet:
    """Random images of ten classes."""
    images = np.random.default_rng(0).integers(0, 256, (count, side, side, channels), dtype=np.uint8)
    return ImageSet(images, np.arange(count) % 10, tuple("0123456789"))


def inverting(model: Classifier, data: ImageSet) -> Inversion:
    batches = Batches(data, 10, seed=0, purpose="test")
    return Inversion(model, batches, SETTINGS, seed=0, what="test")


def linear(mean: float = 0.0, std: float = 1.0) -> Classifier:
    """Two pixels of one channel, whose normalised values are raw output and features alike, to two classes."""
    description = {"name": "linear", "mean": [mean], "std": [std]}
    head = nn.Linear(2, 2)
    head.weight.data = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    head.bias.data = torch.tensor([0.25, 0.0])
    return Classifier(Backbone(nn.Identity(), nn.Flatten()), head, description)


def test_the_masks_gradient_is_that_of_the_formula() -> None:
    network, raw = linear(), torch.tensor([[[[0.7, -0.4]]]])
    theta = torch.tensor([[[[0.3, -0.8]]]], requires_grad=True)
    mask_loss(network, theta, raw, torch.tensor([1])).backward()
    # d/dm_j of CE(h(m z), y) is z_j (p - e_y) . W_j, and 1 - m_j has the opposite sign, as has the loss's second term.
    weight, bias = np.array([[1.0, -2.0], [0.5, 3.0]]), np.array([0.25, 0.0])
    z, tanh = np.array([0.7, -0.4]), np.tanh([0.3, -0.8])
    by_mask = np.zeros(2)
    for part in (tanh / 2 + 0.5, 0.5 - tanh / 2):
        odds = np.exp(weight @ (part * z) + bias)
        by_mask += z * ((odds / odds.sum() - [0, 1]) @ weight)
    assert theta.grad is not None
    np.testing.assert_allclose(theta.grad[0, 0, 0], by_mask * (1 - tanh**2) / 2, rtol=1e-5)


def test_the_mask_is_found_by_steps_of_adam() -> None:
    # One step of Adam is the rate, against the gradient's sign.
    model, data = strided([8], seed=0), noise(10)
    found = inverting(model, data)
    mask = found.mask_of(inversion.fixed(model))
    again = inverting(model, data)
    theta = torch.randn(1, 8, 4, 4, generator=again.random).requires_grad_()
    raw = raw_of(model.train(), data.tensor() / 255).detach()
    mask_loss(model, theta, raw, torch.from_numpy(data.labels)).backward()
    expected = torch.tanh(theta - 0.01 * theta.grad.sign()) / 2 + 0.5
    assert torch.allclose(mask, expected, atol=1e-4)


def test_the_losses_of_the_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    # In normalised values, (x - 0.5) / 0.25: x is (-2, 2), G(x) is (-1, 2), so the images' and the features' distance is 1/2.
    model, images, made = linear(0.5, 0.25), torch.tensor([[[[0.0, 1.0]]]]), torch.tensor([[[[0.25, 1.0]]]])
    found = inverting(model, noise(10, channels=1))
    monkeypatch.setattr(found.generator, "forward", lambda given: made)
    mask = torch.tensor([[[[0.75, 0.5]]]])
    # Benign 0.75^2 / 2, outside the mask 0.25^2 / 2.
    found.settings = Settings(**{**vars(SETTINGS), "image_bound": 0.6})
    assert found.inversion_loss(model, mask, images).item() == pytest.approx(0.01 * 0.28125 - 0.03125)
    found.target = torch.tensor(1)
    entropy = F.cross_entropy(torch.tensor([[-1 - 4 + 0.25, -0.5 + 6]]), torch.tensor([1])).item()
    assert found.inversion_loss(model, mask, images).item() == pytest.approx(0.01 * 0.28125 - 0.03125 + entropy)
    # Too far from the images, and too far from their benign features: the images' distance.
    found.target = None
    for bounds in ({"image_bound": 0.4}, {"image_bound": 0.6, "feature_bound": 0.2}):
        found.settings = Settings(**{**vars(SETTINGS), **bounds})
        assert found.inversion_loss(model, mask, images).item() == pytest.approx(0.5)
    # Pre-training: probabilities of x as logits, those of G(x) as targets; the distance weighs 100 above 0.1.
    given, wanted = (torch.tensor(logits).softmax(0) for logits in ([-5.75, 5.0], [-4.75, 5.5]))
    predictions = -(wanted * given.log_softmax(0)).sum().item()
    assert found.pretraining_loss(model, images).item() == pytest.approx(predictions + 0.5 + 100 * 0.5, rel=1e-5)
    monkeypatch.setattr(inversion, "NEAR", 0.6)
    assert found.pretraining_loss(model, images).item() == pytest.approx(predictions + 0.5 + 0.01 * 0.5, rel=1e-5)


@pytest.mark.parametrize(("count", "changed"), [(1, 1), (4, 1), (5, 2), (10, 3), (128, 26)])
def test_how_many_images_of_a_batch_are_inverted(count: int, changed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found, images = inverting(strided([8], seed=0), noise(10)), torch.rand(count, 3, 8, 8)
    monkeypatch.setattr(found.generator, "forward", lambda given: given + 2)
    (chosen,) = found.choose([count])
    mixed = found.mix(images, chosen)
    moved = mixed - images
    assert (moved[:, 0, 0, 0] > 1).sum() == changed
    assert ((moved == 0).flatten(1).all(1)).sum() == count - changed


def test_the_target_is_what_most_inverted_images_are_taken_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = strided([8], seed=0), noise(10)
    model.head.bias.data[7] = 100
    found = inverting(model, data)
    found.invert(model)
    assert found.target == 7


def test_the_gradient_of_pam_is_taken_on_the_way_back() -> None:
    # f(w) = w^4 / 4 in each of two weights, w0 = (0, 0), w = (3, 4): at a distance of 5, and rho = 0.5 leads to 0.9 w.
    weights = [nn.Parameter(torch.tensor([3.0])), nn.Parameter(torch.tensor([4.0]))]
    with pam.towards([torch.zeros(1), torch.zeros(1)], weights, 0.5):
        assert [weight.item() for weight in weights] == pytest.approx([2.7, 3.6])
        sum((weight**4 / 4).sum() for weight in weights).backward()
    assert [weight.item() for weight in weights] == [3.0, 4.0]
    assert [weight.grad.item() for weight in weights] == pytest.approx([2.7**3, 3.6**3])
    # At the backdoored weights themselves there is no way, and nothing is not finite.
    with pam.towards([torch.tensor([3.0]), torch.tensor([4.0])], weights, 0.5):
        assert [weight.item() for weight in weights] == [3.0, 4.0]


def handed(monkeypatch: pytest.MonkeyPatch, module: Any, data: ImageSet, changes: list[torch.Tensor]) -> None:
    """Unlearning with all images in every step, changed by given amounts, instead of with what inversion makes."""
    images, labels = data.tensor() / 255, torch.from_numpy(data.labels)

    def batches(model: Classifier, *_: Any, **__: Any) -> Any:
        model.train()
        for change in changes:
            yield images, images + change, labels

    monkeypatch.setattr(module, "unlearning_batches", batches)


def test_steps_of_pam_are_those_of_plain_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = strided([8], seed=0, norm=None), noise(10)
    changes = [torch.full((3, 8, 8), value) for value in (0.1, 0.2)]
    handed(monkeypatch, pam, data, changes)
    stepped = pam.purify(model, data, **QUICK, lr=0.1, momentum=0.5, rho=0.3)
    images, labels = data.tensor() / 255, torch.from_numpy(data.labels)
    names, start = [name for name, _ in model.named_parameters()], [p.detach() for p in model.parameters()]

    def gradient(at: list[torch.Tensor], change: torch.Tensor) -> list[torch.Tensor]:
        at = [weight.detach().requires_grad_() for weight in at]
        logits = torch.func.functional_call(model, dict(zip(names, at, strict=True)), (images + change,))
        return list(torch.autograd.grad(F.cross_entropy(logits, labels), at))

    # The first step is at the backdoored weights, the second 0.3 of the way's unit vector behind the first's end.
    first = gradient(start, changes[0])
    now = [weight - 0.1 * g for weight, g in zip(start, first, strict=True)]
    length = torch.cat([(a - b).flatten() for a, b in zip(start, now, strict=True)]).norm()
    moved = [b + 0.3 * (a - b) / length for a, b in zip(start, now, strict=True)]
    second = gradient(moved, changes[1])
    expected = [w - 0.1 * (0.5 * one + two) for w, one, two in zip(now, first, second, strict=True)]
    for weight, value in zip(stepped.parameters(), expected, strict=True):
        assert torch.allclose(weight, value, atol=1e-6)


def test_a_step_of_bti_dbf_is_that_of_its_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data, change = strided([8], seed=0, norm=None), noise(10), torch.full((3, 8, 8), 0.3)
    handed(monkeypatch, bti_dbf, data, [change])
    stepped = bti_dbf.purify(model, data, **QUICK, lr=0.01)
    images = (data.tensor() / 255 - 0.5) / 0.25
    raw, of_mixed = model.backbone.body(images), model.backbone.body(images + change / 0.25)
    logits = model.head(of_mixed.mean((2, 3)))
    loss = F.cross_entropy(logits, torch.from_numpy(data.labels)) + ((raw - of_mixed) ** 2).mean()
    before = list(model.parameters())
    for weight, after, gradient in zip(before, stepped.parameters(), torch.autograd.grad(loss, before), strict=True):
        # Adam's first step, g / (|g| + 1e-8).
        assert torch.allclose(after, weight - 0.01 * gradient / (gradient.abs() + 1e-8), atol=1e-5)


@pytest.mark.parametrize("shape", [(28, 28), (32, 32), (33, 47), (9, 64), (8, 8), (2, 2)])
def test_the_unet_keeps_every_shape(shape: tuple[int, int]) -> None:
    network = UNet(1, 2, min(shape))
    assert network(torch.rand(2, 1, *shape)).shape == (2, 1, *shape)


def test_the_published_unet_has_as_many_weights() -> None:
    def block(given: int, out: int) -> int:
        return 9 * (given * out + out * out) + 2 * out + 4 * out

    down = sum(block(*pair) for pair in [(3, 32), (32, 64), (64, 128), (128, 256), (256, 512)])
    up = sum(9 * wide * wide + wide + block(wide + wide // 2, wide // 2) for wide in (512, 256, 128, 64))
    assert sum(weight.numel() for weight in UNet(3, 32, 32).parameters()) == down + up + 32 * 3 + 3


NETWORKS: list[tuple[str, str, int, dict[str, Any]]] = [
    ("pam", "vgg19_bn", 32, {"width": 8}),
    ("bti_dbf", "compact", 28, {"width": 8}),
    ("pam", "timm:convnext_atto", 32, {}),
    ("bti_dbf", "timm:vit_tiny_patch16_224", 32, {}),
]


@pytest.mark.parametrize(("method", "name", "side", "arguments"), NETWORKS, ids=[name for _, name, *_ in NETWORKS])
def test_networks_of_every_kind(method: str, name: str, side: int, arguments: dict[str, Any]) -> None:
    model = models.build(name, num_classes=10, image_size=side, **arguments)
    purified = PURIFIERS[method].purify(model, noise(4, side), **QUICK)
    assert not purified.training
    assert weights_of(purified) != weights_of(model)


@pytest.mark.parametrize("name", ["bti_dbf", "pam"])
def test_what_diverges_ends_with_one_line(name: str) -> None:
    model, data, purify = strided([8], seed=0), noise(10), PURIFIERS[name].purify
    with pytest.raises(ParameterError, match=rf"^lr: 1e\+30 given, with which {name} diverged: "):
        purify(model, data, **QUICK, lr=1e30)
    with pytest.raises(
        ParameterError, match=rf"^generator_lr: 1e\+30 given, with which the generator of {name} diverged"
    ):
        purify(model, data, **QUICK | {"pretrain_epochs": 3}, generator_lr=1e30)
    model.head.weight.data[0, 0] = torch.nan
    with pytest.raises(UserError, match=rf"^{name}: 1 of \d+ tensors of the network are not finite"):
        purify(model, data, **QUICK)
