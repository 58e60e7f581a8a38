"""Triggers whose training images are optimised one by one: the label-consistent attack and feature collision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from small_surrogate import NOWHERE, coloured_noise, in_unit_range, make, make_for, of_class_0
from unpoison.attacks import SINGLE, feature_collision
from unpoison.core.arrays import IntArray
from unpoison.core.content_store import ContentStore, Entries
from unpoison.core.errors import ParameterError, UserError
from unpoison.core.seeding import numpy_rng
from unpoison.crafting import per_sample, surrogate
from unpoison.crafting.attack import intent
from unpoison.crafting.context import Context
from unpoison.crafting.craft import make_trigger, optimised
from unpoison.crafting.per_sample import PerSample
from unpoison.poisoning.trigger import stamp

PER_SAMPLE = pytest.mark.parametrize(
    ("attack", "arguments"),
    [("lc", {"steps": 3, "adversarial": False, "random_start": True}), ("feature_collision", {"steps": 3})],
    ids=["lc", "feature_collision"],
)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return coloured_noise(tmp_path_factory.mktemp("store"))


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of optimised images are filled up, with what takes most of the time here."""
    monkeypatch.setattr(per_sample, "BATCH", 8)


class Watched(ContentStore):
    """A store that notes which training samples are made, and how many images are optimised together."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.made: list[list[int]] = []
        self.together: set[int] = set()

    def entries(
        self, kind: str, determined_by: Any, names: Any, make: Callable[[IntArray], Any], **settings: Any
    ) -> Entries:
        def noted(positions: IntArray) -> Any:
            self.made.append(names[positions].copy().view("<i8")[:, 0].tolist())
            return make(positions)

        return super().entries(kind, determined_by, names, noted, **settings)


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
        assert watched.store.together == {8}

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
        moved = feature_collision.collide(network, base, shown, steps=10, epsilon=None, **settings)
        far, near = ((network(x) - network(shown)).square().sum(1) for x in (start, moved))
        assert (near < far).all()
        assert moved.min() >= 0
        assert moved.max() <= 1
        bounded = feature_collision.collide(network, base, shown, steps=10, epsilon=2.0, **settings)
        assert (bounded - start).abs().max() == pytest.approx(2 / 255, abs=1e-5)
        # Its own objective decides on each image's steps: no other image can.
        alone = feature_collision.collide(network, base[1:2], shown[1:2], steps=10, epsilon=None, **settings)
        torch.testing.assert_close(alone, moved[1:2], rtol=0, atol=1e-3)

    def test_against_the_formula(self) -> None:
        # f is linear, f(x) = W x: the minimum solves (W'W + beta) x = W'W t + beta b.
        rng = numpy_rng(0, "tests/collide")
        weights = rng.normal(size=(2, 4))
        base, shown = rng.uniform(0.4, 0.6, (2, 4))
        network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
        network[1].weight.data = torch.from_numpy(weights).float()
        network.requires_grad_(False)
        images = [torch.from_numpy(x).float().reshape(1, 1, 2, 2) for x in (base, shown)]
        moved = feature_collision.collide(network, *images, steps=400, lr=0.1, beta=0.5, watermark=0.0, epsilon=None)
        gram = weights.T @ weights
        expected = np.linalg.solve(gram + 0.5 * np.eye(4), gram @ shown + 0.5 * base)
        assert moved.flatten().tolist() == pytest.approx(expected.tolist(), abs=1e-4)

    def test_step_that_goes_up_is_not_taken(self) -> None:
        network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)).requires_grad_(False)
        images = torch.full((1, 1, 2, 2), 0.4), torch.full((1, 1, 2, 2), 0.6)
        settings: dict[str, Any] = {"lr": 1e6, "beta": 0.0, "watermark": 0.0, "epsilon": None}
        assert torch.equal(feature_collision.collide(network, *images, steps=1, **settings), images[0])
        moved = feature_collision.collide(network, *images, steps=60, **settings)
        assert (network(moved) - network(images[1])).norm() < (network(images[0]) - network(images[1])).norm()

    def test_refuses(self, context: Context) -> None:
        with pytest.raises(ParameterError, match=r"^feature_collision\.size: 40 given"):
            make("feature_collision", context, size=40)
        with pytest.raises(UserError, match=r"^data: every training image is of the target class 0"):
            make("feature_collision", of_class_0(context))
