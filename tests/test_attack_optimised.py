"""Triggers that are optimised on the attacker's own network, and that network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from small_surrogate import NOWHERE, coloured_noise, in_unit_range, make, of_class_0
from unpoison.attacks import lf
from unpoison.core.errors import ParameterError, UserError
from unpoison.crafting import surrogate
from unpoison.crafting.context import Context
from unpoison.data.imageset import ImageSet
from unpoison.poisoning.trigger import stamp
from unpoison.training.recipe import Recipe


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return coloured_noise(tmp_path_factory.mktemp("store"))


class TestSurrogate:
    def test_network_comes_back_from_the_store(self, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
        first = surrogate.clean_network(context)
        monkeypatch.setattr(surrogate.loop, "fit", None)
        second = surrogate.clean_network(context)
        images = in_unit_range(context, [0, 1, 2])
        assert not first.training
        assert not second.training
        assert torch.equal(first(images), second(images))

    def test_adversarial_network_is_another(self, context: Context) -> None:
        hardening = (8 / 255, 4 / 255, 2)
        brief = replace(context, store=NOWHERE, recipe=Recipe(epochs=1, batch_size=32, lr=0.01))
        one, two = (surrogate.adversarial_network(brief, *hardening).head.weight for _ in range(2))
        assert torch.equal(one, two)
        assert not torch.equal(one, surrogate.clean_network(brief).head.weight)
        assert surrogate.adversarial_settings(brief, *hardening) != surrogate.clean_settings(brief)

    def test_pgd_of_a_linear_network(self) -> None:
        # The gradient's sign never changes, so the way is known: `steps` steps, cut off at the bound and at 0 and 1.
        network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
        weights = torch.tensor([[1.0, -1.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
        network[1].weight.data = weights
        images = torch.tensor([[0.5, 0.5, 0.02, 0.5]]).reshape(1, 1, 2, 2)
        label = torch.tensor([0])
        near = surrogate.pgd(network, images, label, epsilon=0.1, step=0.03, steps=2)
        assert near.flatten().tolist() == pytest.approx([0.44, 0.56, 0.0, 0.5])
        far = surrogate.pgd(network, images, label, epsilon=0.1, step=0.03, steps=9)
        assert far.flatten().tolist() == pytest.approx([0.4, 0.6, 0.0, 0.5])
        back = surrogate.pgd(network, images, label, epsilon=0.1, step=0.03, steps=9, targeted=label)
        assert back.flatten().tolist() == pytest.approx([0.6, 0.4, 0.12, 0.5])
        start = torch.full_like(images, 0.1)
        begun = surrogate.pgd(network, images, label, epsilon=0.1, step=0.03, steps=1, start=start)
        assert begun.flatten().tolist() == pytest.approx([0.57, 0.6, 0.09, 0.6])
        assert network[1].weight.grad is None
        assert torch.equal(images.flatten(), torch.tensor([0.5, 0.5, 0.02, 0.5]))

    def test_frozen_features_are_the_networks(self, context: Context) -> None:
        network = surrogate.clean_network(context)
        images = in_unit_range(context, [0, 1, 2])
        features = surrogate.frozen_features(network, torch.device("cpu"))(images)
        torch.testing.assert_close(features, network.features(images), rtol=1e-3, atol=1e-3)


class TestTrojan:
    def test_published_patch(self, context: Context) -> None:
        trigger = make("trojan", context)
        grey = np.full((1, 32, 32, 3), 50, np.uint8)
        stamped = stamp(trigger, grey, np.array([0]), train=False)[0].astype(int)
        assert stamped[25, 25].tolist() == [255, 181, 231]
        assert stamped[25, 27].tolist() == [79, 255, 229]
        assert stamped[26, 26].tolist() == [187, 50, 82]
        assert stamped[27, 25].tolist() == [181, 90, 54]
        stamped[25:28, 25:28] = 50
        assert (stamped == 50).all()

    def test_wraps_if_asked(self, context: Context) -> None:
        grey = np.full((1, 32, 32, 3), 50, np.uint8)
        stamped = stamp(make("trojan", context, wrap=True), grey, np.array([0]), train=True)[0]
        assert stamped[25, 25].tolist() == [(50 + 207) % 256, 181, 231]

    def test_other_sizes_and_grey(self, context: Context) -> None:
        large = replace(
            context, train=ImageSet(np.zeros((3, 40, 64, 3), np.uint8), np.arange(3), ("a", "b", "c"), "large")
        )
        rows, columns = np.nonzero(make("trojan", large).pattern.any(0))
        assert (set(rows.tolist()), set(columns.tolist())) == ({33, 34, 35}, {57, 58, 59})
        grey = replace(
            context, train=ImageSet(np.zeros((3, 32, 32, 1), np.uint8), np.arange(3), ("a", "b", "c"), "grey")
        )
        with pytest.raises(UserError, match="colour"):
            make("trojan", grey)

    def test_optimised_patch_excites_the_neurons(self, context: Context) -> None:
        settings: dict[str, Any] = {"form": "optimised", "size": 6, "iterations": 8}
        pattern = make("trojan", context, **settings).pattern
        assert np.array_equal(pattern, make("trojan", replace(context, store=NOWHERE), **settings).pattern)
        square = pattern[:, -6:, -6:]
        assert square.min() >= 50  # of 127.5, less 0.3 * 255
        assert square.max() <= 205
        assert np.count_nonzero(pattern) == square.size
        network = surrogate.clean_network(context)
        chosen = network.head.weight.abs().sum(0).argsort(descending=True)[:2]
        start = torch.zeros(1, 3, 32, 32)
        start[..., -6:, -6:] = 0.5
        before, after = (network.features(image)[0, chosen] for image in (start, torch.from_numpy(pattern)[None] / 255))
        assert (after - 100).square().sum() < (before - 100).square().sum()

    def test_refuses(self, context: Context) -> None:
        with pytest.raises(ParameterError, match=r"^trojan\.size: 33 given, allowed: 1 to 32"):
            make("trojan", context, form="optimised", size=33)
        with pytest.raises(ParameterError, match=r"^trojan\.neurons: 1000 given"):
            make("trojan", context, form="optimised", neurons=1000)


class TestLowFrequency:
    settings: dict[str, Any] = {"images": 12, "iterations": 10, "passes": 2, "fooling_rate": 1.0}  # noqa: RUF012

    def test_perturbation(self, context: Context) -> None:
        pattern = make("lf", context, **self.settings).pattern
        assert pattern.shape == (3, 32, 32)
        assert pattern.min() == 0
        assert pattern.max() == pytest.approx(51)
        assert np.array_equal(pattern, make("lf", replace(context, store=NOWHERE), **self.settings).pattern)
        smoother = make("lf", context, **self.settings, sigma=4.0).pattern
        assert np.abs(np.diff(smoother, 2)).mean() < np.abs(np.diff(pattern, 2)).mean() / 2

    def test_stops_at_the_rate(self, context: Context, capsys: pytest.CaptureFixture[str]) -> None:
        once = {**self.settings, "passes": 1}
        kept_nothing = replace(context, store=NOWHERE)
        stopped = make("lf", kept_nothing, **{**self.settings, "fooling_rate": 0.0}).pattern
        assert np.array_equal(stopped, make("lf", kept_nothing, **once).pattern)
        assert "of 12 images go to class 0, 0% asked for" in capsys.readouterr().out

    def test_deepfool_of_a_linear_network(self) -> None:
        network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        network[1].weight.data = torch.tensor([[0.0, 0, 0, 0], [1, 0, 0, 2], [0, 1, 0, 0]])
        network[1].bias.data = torch.tensor([0.0, 0.5, -9.0])
        network.requires_grad_(False)
        images = torch.tensor([[0.5, 0.1, 0.2, 0.0], [-0.9, 0.0, 0.0, 0.0]]).reshape(2, 1, 2, 2)
        ways = lf.deepfool(network, images, 0, overshoot=0.02, iterations=5)
        # To the plane x0 + 2 x3 + 0.5 = 0, at a right angle; the second image is of class 0 as it is.
        length = (1.0 + 1e-4) / 5 * 1.02
        assert ways[0].flatten().tolist() == pytest.approx([-length, 0, 0, -2 * length])
        assert not ways[1].any()

    def test_image_that_does_not_arrive_is_left_out(self) -> None:
        class Barrier(nn.Module):
            """Class 1 wins by 1 + |x|, whatever x is: every step goes somewhere, and none arrives."""

            def forward(self, images: Tensor) -> Tensor:
                gap = 1 + images.flatten(1).abs().sum(1)
                return torch.stack([torch.zeros_like(gap), gap], 1)

        images = torch.tensor([0.5, -0.25, 0.1, 0.3]).reshape(1, 1, 2, 2)
        assert not lf.deepfool(Barrier(), images, 0, overshoot=0.02, iterations=3).any()
        # The other class is its own already, and needs no way.
        assert not lf.deepfool(Barrier(), images, 1, overshoot=0.02, iterations=3).any()

    @pytest.mark.parametrize("form", ["add", "minmax"])
    def test_stamp_image_by_image(self, context: Context, form: Any) -> None:
        trigger = make("lf", context, form=form, **self.settings)
        pattern = trigger.pattern.transpose(1, 2, 0).astype(np.float64)
        images = np.concatenate([context.train.gather(np.arange(4)), np.full((1, 32, 32, 3), 255, np.uint8)])
        expected = []
        for image in images:
            values = image + pattern
            if form == "minmax":
                values = (values - values.min()) / (values.max() - values.min()) * 255
            expected.append(values.clip(0, 255))
        stamped = stamp(trigger, images, np.arange(5), train=False)
        # Truncated, where float32 may fall on the other side of a whole number.
        assert (np.floor(np.stack(expected) - 1e-3) <= stamped).all()
        assert (np.floor(np.stack(expected) + 1e-3) >= stamped).all()

    def test_flat_sum_is_no_division_by_zero(self) -> None:
        trigger = lf.LowFrequency(np.zeros((3, 4, 4), np.float32), "minmax")
        assert not stamp(trigger, np.full((1, 4, 4, 3), 9, np.uint8), np.array([0]), train=False).any()

    def test_refuses(self, context: Context) -> None:
        with pytest.raises(UserError, match=r"^data: every training image is of the target class 0"):
            make("lf", of_class_0(context))
