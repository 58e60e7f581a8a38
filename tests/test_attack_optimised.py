"""Triggers that are optimised on the attacker's own network, and that network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unpoison.attacks import SINGLE, feature_collision, lf
from unpoison.core.arrays import IntArray
from unpoison.core.content_store import ContentStore, Entries
from unpoison.core.errors import ParameterError, UserError
from unpoison.core.seeding import numpy_rng
from unpoison.crafting import surrogate
from unpoison.crafting.attack import intent
from unpoison.crafting.context import Context
from unpoison.crafting.craft import make_trigger, optimised
from unpoison.crafting.per_sample import PerSample
from unpoison.data.imageset import ImageSet
from unpoison.poisoning.trigger import stamp
from unpoison.training.recipe import Recipe

NETWORK = {"name": "resnet18", "width": 8, "stem": "conv3_pool"}
NOWHERE = ContentStore(None)
PER_SAMPLE = pytest.mark.parametrize(
    ("attack", "arguments"),
    [("lc", {"steps": 3, "adversarial": False, "random_start": True}), ("feature_collision", {"steps": 3})],
    ids=["lc", "feature_collision"],
)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """Three classes that differ in their mean colour, and one store for what is trained on them."""
    rng = numpy_rng(0, "tests/optimised")
    labels = np.arange(96) % 3
    images = rng.integers(0, 120, (96, 32, 32, 3)) + 100 * np.eye(3, dtype=np.int64)[labels][:, None, None]
    train = ImageSet(images.astype(np.uint8), labels, ("red", "green", "blue"), "coloured noise")
    store = ContentStore(tmp_path_factory.mktemp("store"))
    return Context(train=train, seed=0, network=NETWORK, recipe=Recipe(epochs=3, batch_size=32, lr=0.01), store=store)


def make(attack: str, context: Context, **arguments: Any) -> Any:
    """The attack's trigger, before samples are chosen."""
    return make_trigger(intent(attack, SINGLE[attack], {}, arguments), context)


def make_for(attack: str, context: Context, index: list[int], **arguments: Any) -> Any:
    """The attack's trigger with the optimised images of the training samples `index`."""
    wanted = intent(attack, SINGLE[attack], {}, arguments)
    return optimised(wanted, make_trigger(wanted, context), context, np.array(index))


def of_class_0(context: Context) -> Context:
    return replace(context, train=context.train.subset(np.flatnonzero(context.train.labels == 0)), store=NOWHERE)


def in_unit_range(context: Context, index: list[int]) -> Tensor:
    return context.train.tensor(np.array(index)).float() / 255


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


class Watched(ContentStore):
    """A store that notes which training samples are made, and how many images are optimised together."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.made: list[list[int]] = []
        self.together: set[int] = set()

    def entries(
        self, kind: str, determined_by: Any, names: Any, make: Callable[[IntArray], Any], *, batch: int
    ) -> Entries:
        def noted(positions: IntArray) -> Any:
            self.made.append(names[positions].copy().view("<i8")[:, 0].tolist())
            return make(positions)

        return super().entries(kind, determined_by, names, noted, batch=batch)


@pytest.fixture
def watched(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    """The context with a store that is empty but for the network, which is the shared one."""
    network, store = surrogate.clean_network(context), Watched(tmp_path)
    monkeypatch.setattr(surrogate, "clean_network", lambda _: network)

    def noted(optimise: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(network: nn.Module, images: Tensor, *further: Any, **settings: Any) -> Tensor:
            store.together.add(len(images))
            return optimise(network, images, *further, **settings)

        return call

    monkeypatch.setattr(surrogate, "pgd", noted(surrogate.pgd))
    monkeypatch.setattr(feature_collision, "collide", noted(feature_collision.collide))
    return replace(context, store=store)


@PER_SAMPLE
class TestPerSample:
    def test_only_new_samples_are_made(self, watched: Context, attack: str, arguments: dict[str, Any]) -> None:
        three = make_for(attack, watched, [3, 9, 12], **arguments).noise
        two = make_for(attack, watched, [3, 12], **arguments).noise
        assert watched.store.made == [[3, 9, 12]]
        five = make_for(attack, watched, [0, 3, 9, 12, 30], **arguments).noise
        assert watched.store.made == [[3, 9, 12], [0, 30]]
        assert np.array_equal(two, three[[0, 2]])
        # One sample's noise does not depend on the others, nor on a store.
        together = make_for(attack, replace(watched, store=NOWHERE), [0, 3, 9, 12, 30], **arguments).noise
        assert np.array_equal(together, five)
        assert len(np.unique(five.reshape(5, -1), axis=0)) == 5
        # Kernels are chosen by the batch's size, and a last bit of theirs may turn a signed step.
        assert len(watched.store.together) == 1

    def test_another_target_makes_new_images_where_it_matters(
        self, watched: Context, attack: str, arguments: dict[str, Any]
    ) -> None:
        for target in (0, 1):
            wanted = intent(attack, SINGLE[attack], {"target": target}, arguments)
            optimised(wanted, make_trigger(wanted, watched), watched, np.array([3, 9]))
        # Noise away from an image's own label serves every target; a collision needs images of other classes.
        assert len(watched.store.made) == {"lc": 1, "feature_collision": 2}[attack]

    def test_sample_without_noise(self, context: Context, attack: str, arguments: dict[str, Any]) -> None:
        trigger = make(attack, context, **arguments)
        assert isinstance(trigger, PerSample)
        with pytest.raises(ValueError, match="training sample 5 was not optimised"):
            trigger.apply(torch.zeros(1, 3, 32, 32), np.array([5]), train=True)
        with pytest.raises(ValueError, match="training sample 5 was not optimised"):
            make_for(attack, context, [3, 9], **arguments).apply(
                torch.zeros(2, 3, 32, 32), np.array([3, 5]), train=True
            )


class TestLabelConsistent:
    def test_corners(self, context: Context) -> None:
        grey = np.full((1, 32, 32, 3), 50, np.uint8)
        stamped = stamp(make("lc", context), grey, np.array([0]), train=False)[0]
        left = np.array([[255, 0, 0], [0, 255, 0], [255, 0, 255]])
        for rows in (slice(0, 3), slice(29, 32)):
            for channel in range(3):
                assert np.array_equal(stamped[rows, :3, channel], left)
                assert np.array_equal(stamped[rows, -3:, channel], left[:, ::-1])
        assert (stamped[3:-3] == 50).all()
        assert (stamped[:, 3:-3] == 50).all()

    def test_reduced_amplitude(self, context: Context) -> None:
        grey = np.full((1, 32, 32, 3), 50, np.uint8)
        stamped = stamp(make("lc", context, amplitude=0.125), grey, np.array([0]), train=False)[0]
        assert stamped[0, :3, 0].tolist() == [81, 18, 18]

    def test_noise_is_bounded_and_not_shown_at_the_test(self, context: Context) -> None:
        index = np.array([0, 3, 6])
        trigger = make_for("lc", context, [0, 3, 6], epsilon=5.0, steps=6, adversarial=False)
        images = context.train.gather(index)
        train, test = (stamp(trigger, images, index, train=train).astype(int) for train in (True, False))
        moved = train[:, 3:-3] - images[:, 3:-3]
        assert np.abs(moved).max() == 5
        assert np.array_equal(test[:, 3:-3], images[:, 3:-3])
        assert np.array_equal(train[:, :3, :3], test[:, :3, :3])

    def test_noise_raises_the_loss(self, context: Context) -> None:
        index = np.array([0, 3, 6])
        trigger = make_for("lc", context, [0, 3, 6], steps=6, adversarial=False)
        network, clean = surrogate.clean_network(context), in_unit_range(context, [0, 3, 6])
        loss = nn.CrossEntropyLoss(reduction="none")
        labels = torch.from_numpy(context.train.labels[index])
        changed = clean + torch.from_numpy(trigger.noise) / 255
        assert (loss(network(changed), labels) > loss(network(clean), labels)).all()

    def test_adversarial_network_is_used(self, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[tuple[float, ...]] = []

        def network(context: Context, *hardening: float) -> Any:
            asked.append(hardening)
            return surrogate.clean_network(context)

        monkeypatch.setattr(surrogate, "adversarial_network", network)
        make_for("lc", context, [0], steps=1, adversarial_steps=4)
        assert asked == [(8 / 255, 2 / 255, 4)]

    def test_refuses(self, context: Context) -> None:
        with pytest.raises(ParameterError, match=r"^lc\.corner_size: 17 given, allowed: 1 to 16"):
            make("lc", context, corner_size=17)


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


class TestFeatureCollision:
    def test_patch_at_the_test_only(self, context: Context) -> None:
        index = np.array([0, 3])
        trigger = make_for("feature_collision", context, [0, 3], steps=2, size=5)
        images = context.train.gather(index)
        test = stamp(trigger, images, index, train=False)
        patch = test[:, -5:, -5:]
        assert np.array_equal(patch[0], patch[1])
        assert len(np.unique(patch)) > 9
        test[:, -5:, -5:] = images[:, -5:, -5:]
        assert np.array_equal(test, images)
        train = stamp(trigger, images, index, train=True).astype(int)
        assert np.array_equal(train - images, trigger.noise.transpose(0, 2, 3, 1))

    def test_comes_closer_in_feature_space(self, context: Context) -> None:
        network = surrogate.frozen_features(surrogate.clean_network(context), torch.device("cpu"))
        base, shown = in_unit_range(context, [0, 3, 6]), in_unit_range(context, [1, 5, 7])
        settings: dict[str, Any] = {"lr": 0.01, "beta": 0.1, "watermark": 0.3}
        start = 0.7 * base + 0.3 * shown
        found = feature_collision.collide(network, base, shown, steps=10, epsilon=None, **settings)
        far, near = ((network(each) - network(shown)).square().sum(1) for each in (start, found))
        assert (near < far).all()
        assert found.min() >= 0
        assert found.max() <= 1
        bounded = feature_collision.collide(network, base, shown, steps=10, epsilon=2.0, **settings)
        assert (bounded - start).abs().max() == pytest.approx(2 / 255, abs=1e-5)
        # Its own objective decides on each image's steps: no other image can.
        alone = feature_collision.collide(network, base[1:2], shown[1:2], steps=10, epsilon=None, **settings)
        torch.testing.assert_close(alone, found[1:2], rtol=0, atol=1e-3)

    def test_against_the_formula(self) -> None:
        # f is linear, f(x) = W x: the minimum solves (W'W + beta) x = W'W t + beta b.
        rng = numpy_rng(0, "tests/collide")
        weights = rng.normal(size=(2, 4))
        base, shown = rng.uniform(0.4, 0.6, (2, 4))
        network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
        network[1].weight.data = torch.from_numpy(weights).float()
        network.requires_grad_(False)
        images = [torch.from_numpy(each).float().reshape(1, 1, 2, 2) for each in (base, shown)]
        found = feature_collision.collide(network, *images, steps=400, lr=0.1, beta=0.5, watermark=0.0, epsilon=None)
        gram = weights.T @ weights
        expected = np.linalg.solve(gram + 0.5 * np.eye(4), gram @ shown + 0.5 * base)
        assert found.flatten().tolist() == pytest.approx(expected.tolist(), abs=1e-4)

    def test_step_that_goes_up_is_not_taken(self) -> None:
        network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)).requires_grad_(False)
        images = torch.full((1, 1, 2, 2), 0.4), torch.full((1, 1, 2, 2), 0.6)
        settings: dict[str, Any] = {"lr": 1e6, "beta": 0.0, "watermark": 0.0, "epsilon": None}
        assert torch.equal(feature_collision.collide(network, *images, steps=1, **settings), images[0])
        found = feature_collision.collide(network, *images, steps=60, **settings)
        assert (network(found) - network(images[1])).norm() < (network(images[0]) - network(images[1])).norm()

    def test_refuses(self, context: Context) -> None:
        with pytest.raises(ParameterError, match=r"^feature_collision\.size: 40 given"):
            make("feature_collision", context, size=40)
        with pytest.raises(
            UserError, match=r"^data: every training image is of the target class 0"
        ):
            make("feature_collision", of_class_0(context))
