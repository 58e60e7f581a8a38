"""Contrastive training: the loss by hand, the views, and that the head is left as it was."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from contract import weights_of
from small_networks import strided
from unpoison.data.imageset import ImageSet
from unpoison.robust.dst import mixed
from unpoison.training.contrastive import contrastive_loss, train_features
from unpoison.training.recipe import Recipe
from unpoison.training.views import _cropped, _jittered, view

# Two images at right angles, each of its views the other's copy: of three other views one has cosine 1 and two have 0.
ONE = torch.tensor([[2.0, 0.0], [0.0, 0.5]])
NONE, ALL = torch.zeros(2, 2, dtype=torch.bool), torch.ones(2, 2, dtype=torch.bool)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_views_of_an_image_are_close(temperature: float) -> None:
    # Minus log of e^(1/T) / (e^(1/T) + 2).
    expected = math.log(math.exp(1 / temperature) + 2) - 1 / temperature
    assert contrastive_loss(ONE, ONE, NONE, temperature=temperature).tolist() == pytest.approx([expected] * 2, abs=1e-6)


def test_images_of_a_label_are_close() -> None:
    total = math.log(math.e + 2)
    # Of three likes one has cosine 1, so the mean log share is 1/3 - log(e + 2).
    assert contrastive_loss(ONE, ONE, ALL, temperature=1.0).tolist() == pytest.approx([total - 1 / 3] * 2, abs=1e-6)
    # Rows alone: the first image counts the second as its like, and not the other way round.
    rows = torch.tensor([[True, True], [False, False]])
    losses = contrastive_loss(ONE, ONE, rows, temperature=1.0).tolist()
    assert losses == pytest.approx([total - 1 / 3, total - 1], abs=1e-6)


def test_mixed_loss_by_hand() -> None:
    losses = torch.tensor([1.0, 2.0, 3.0, 4.0])
    believed = torch.tensor([True, True, True, False])
    assert mixed(losses, believed, 0.5).mean().item() == pytest.approx(2 - 0.5 * 4)
    assert mixed(losses, torch.ones(4, dtype=torch.bool), 0.5).mean().item() == pytest.approx(2.5)
    assert mixed(losses, torch.zeros(4, dtype=torch.bool), 0.5).mean().item() == pytest.approx(-1.25)


def test_a_view_of_the_whole_image_in_its_colours_is_the_image() -> None:
    images = torch.rand(3, 3, 12, 10, generator=torch.Generator().manual_seed(0))
    whole = torch.tensor([[1.0, 0.5, 0.5, 0.5]]).expand(3, -1)
    assert torch.allclose(_cropped(images, whole, 0.2), images, atol=1e-5)
    assert torch.allclose(_jittered(images, torch.ones(3, 3), torch.zeros(3)), images, atol=1e-5)
    # A third of a turn, of a primary colour: red becomes what is nearest to green or blue.
    red = torch.tensor([0.5, 0.25, 0.25])[None, :, None, None].expand(1, 3, 2, 2)
    turned = _jittered(red, torch.ones(1, 3), torch.tensor([1 / 3]))
    assert turned[0, :, 0, 0].argmax() != 0
    luminance = torch.tensor([0.299, 0.587, 0.114])
    assert (turned[0, :, 0, 0] @ luminance).item() == pytest.approx((red[0, :, 0, 0] @ luminance).item(), abs=1e-3)
    # A box of a fifth of the area in the middle of a ramp is as steep a ramp of fewer values.
    ramp = torch.linspace(0, 1, 20).expand(1, 1, 20, 20)
    box = _cropped(ramp, torch.tensor([[0.0, 0.5, 0.5, 0.5]]), 0.2)
    assert box.amax() - box.amin() == pytest.approx(0.2**0.5, abs=0.03)


def test_mixed_precision_does_not_reach_losses_and_colours() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second, images = (torch.rand(16, *shape, generator=generator) for shape in ((8,), (8,), (3, 4, 4)))
    none, factors, turn = torch.zeros(16, 16, dtype=torch.bool), torch.ones(16, 3), torch.full((16,), 0.03)
    expected = contrastive_loss(first, second, none, temperature=0.1), _jittered(images, factors, turn)
    with torch.autocast("cpu", torch.bfloat16):
        found = contrastive_loss(first, second, none, temperature=0.1), _jittered(images, factors, turn)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)


@pytest.mark.parametrize("channels", [1, 3])
def test_views(channels: int) -> None:
    images = torch.rand(64, channels, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(3)
    one, other = view(images), view(images)
    torch.manual_seed(3)
    assert torch.equal(view(images), one)
    assert one.shape == images.shape
    assert 0 <= one.amin() <= one.amax() <= 1
    assert (one != other).flatten(1).any(1).all()
    assert (one != images).flatten(1).any(1).all()
    if channels == 3:
        grey = (one[:, :1] == one).flatten(1).all(1)
        assert 2 <= grey.sum() <= 30  # a fifth of them
    assert one.is_contiguous(memory_format=torch.channels_last)


def test_features_are_trained_and_the_head_is_not(splits: dict[str, ImageSet]) -> None:
    data = splits["train"].subset(np.arange(64))

    def trained(seed: int) -> tuple[bytes, torch.Tensor]:
        model = strided((16, 32), seed=1)
        train_features(
            model, data, Recipe(epochs=2, batch_size=32, lr=0.05), seed=seed, what="contrast", temperature=0.5
        )
        return weights_of(model), model.head.weight.detach().clone()

    state = torch.random.get_rng_state()
    runs = [trained(seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert runs[0][0] == runs[1][0] != runs[2][0]
    assert torch.equal(runs[0][1], strided((16, 32), seed=1).head.weight)
    assert runs[0][0] != weights_of(strided((16, 32), seed=1))
