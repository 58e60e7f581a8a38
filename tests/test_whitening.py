"""Whitening filters: what they do to patches, by a covariance worked out here, and that training keeps them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from unpoison import models
from unpoison.compute.device import to_float
from unpoison.core.errors import ParameterError
from unpoison.data.imageset import ImageSet
from unpoison.training.loop import fit
from unpoison.training.recipe import Recipe
from unpoison.training.whitening import whiten, whitening_filters


def test_outputs_are_uncorrelated_and_of_variance_one() -> None:
    generator = torch.Generator().manual_seed(0)
    # Four values that depend on each other, with variances from 0.01 to 9.
    patches = torch.randn(4000, 4, generator=generator) * torch.tensor([3.0, 1.0, 0.5, 0.1])
    patches = patches @ torch.linalg.qr(torch.randn(4, 4, generator=generator))[0]
    filters = whitening_filters(patches, 8)
    outputs = patches @ filters.T
    covariance = outputs.T @ outputs / len(outputs)
    # 0.01 / (0.01 + 0.0005) for the weakest direction, by the constant that is added to eigenvalues.
    assert torch.allclose(covariance[:4, :4].diagonal(), torch.tensor([1, 1, 1, 1 / 1.05]), atol=0.01)
    assert (covariance[:4, :4] - covariance[:4, :4].diagonal().diag()).abs().max() < 1e-3
    assert torch.equal(filters[4:], -filters[:4])
    # The strongest direction first: the smallest filter.
    assert filters[:4].norm(dim=1).argsort().tolist() == [0, 1, 2, 3]


def test_fewer_and_more_filters_than_directions() -> None:
    patches = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    every = whitening_filters(patches, 8)
    assert torch.equal(whitening_filters(patches, 4), every[[0, 1, 4, 5]])
    more = whitening_filters(patches, 11)
    assert torch.equal(more[:8], every)
    assert (more[8:] == 0).all()


def test_the_first_convolution_whitens_and_is_not_trained(splits: dict[str, ImageSet]) -> None:
    data = splits["public"].subset(np.arange(40))
    model = models.build("compact", num_classes=10, image_size=(32, 32), width=8)
    filters = whiten(model, data).weight.detach().clone()
    images = (to_float(data.tensor(np.arange(40)), torch.device("cpu")) - 0.5) / 0.25
    outputs = F.conv2d(images, filters[:12], stride=2).transpose(0, 1).flatten(1)
    covariance = outputs @ outputs.T / outputs.shape[1]
    assert (covariance - covariance.diagonal().diag()).abs().max() < 1e-3
    assert covariance.diagonal()[:4] == pytest.approx(1.0, abs=0.02)
    untrained = [parameter.clone() for parameter in model.parameters()]
    fit(model, data, Recipe(epochs=1, batch_size=20, whiten=True), seed=0, what="test")
    first, bias, *others = model.parameters()
    assert torch.equal(first, filters)
    assert (bias == 0).all()
    assert first.requires_grad
    assert (first.grad, bias.grad) == (None, None)
    assert not any(torch.equal(one, other) for one, other in zip(others, untrained[2:], strict=True))


def test_a_network_without_such_a_convolution(splits: dict[str, ImageSet]) -> None:
    model = models.build("timm:test_vit", num_classes=10, image_size=(32, 32))
    with pytest.raises(ParameterError, match=r"^whiten: true given, allowed: for networks that begin with"):
        fit(model, splits["public"], Recipe(epochs=1, whiten=True), seed=0, what="test")
