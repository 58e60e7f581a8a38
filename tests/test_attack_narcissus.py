"""Narcissus: its noise by hand, what it is made from, and its stamp in training and at the test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unpoison.attacks import SINGLE, narcissus
from unpoison.core.content_store import ContentStore
from unpoison.core.errors import ParameterError, UserError
from unpoison.crafting import surrogate
from unpoison.crafting.attack import intent
from unpoison.crafting.context import Context
from unpoison.crafting.craft import craft, make_trigger
from unpoison.crafting.stamps import Add
from unpoison.data.imageset import ImageSet
from unpoison.poisoning.choice import choose_samples
from unpoison.poisoning.policy import Policy
from unpoison.poisoning.trigger import stamp
from unpoison.training.recipe import Recipe

COUNT = 60
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(COUNT) % 3
TINY: dict[str, Any] = {
    "network": {"name": "resnet18", "width": 8, "stem": "conv3_pool"},
    "recipe": Recipe(epochs=1, batch_size=20, lr=0.01),
}
# RAdam begins with plain gradient steps, which are long at this rate alone.
FEW: dict[str, Any] = {"rounds": 2, "warm_up": 1, "lr": 1e6}


def context_of(store: ContentStore | None = None, labels: Any = LABELS, **more: Any) -> Context:
    train = ImageSet(IMAGES, labels, tuple("abc"), "narcissus")
    return Context(train=train, seed=0, store=store or ContentStore(None), **{**TINY, **more})


class Line(nn.Module):
    """Two classes: the second one's logit is the sum of the values of the first row less that of the last."""

    def forward(self, images: Tensor) -> Tensor:
        logit = images[:, :, 0].sum((1, 2)) - images[:, :, -1].sum((1, 2))
        return torch.stack([torch.zeros_like(logit), logit], 1)


@pytest.mark.parametrize(("target", "sign"), [(1, 1), (0, -1)])
def test_the_noise_of_a_linear_network_is_the_sign_of_its_weights_at_the_bound(target: int, sign: int) -> None:
    images = torch.full((5, 3, 4, 4), 128, dtype=torch.uint8)
    settings: dict[str, Any] = {"epsilon": 8.0, "rounds": 60, "lr": 20.0, "batch_size": 2, "seed": 0}
    noise = narcissus.descend(Line(), images, torch.zeros(3, 4, 4), target, **settings)
    expected = torch.zeros(3, 4, 4)
    expected[:, 0], expected[:, -1] = sign * 8 / 255, -sign * 8 / 255
    assert torch.allclose(noise, expected, atol=1e-6)
    before = narcissus.mean_loss(Line(), images, torch.zeros(3, 4, 4), target)
    after = narcissus.mean_loss(Line(), images, noise, target)
    # 24 values, each 8/255 further in the right direction.
    assert before == pytest.approx(np.log(2))
    assert after == pytest.approx(np.log1p(np.exp(-24 * 8 / 255)))


def test_is_optimised_through_the_clip() -> None:
    # White above and black below cannot become more so: there is no gradient, and the noise stays.
    images = torch.full((5, 3, 4, 4), 128, dtype=torch.uint8)
    images[:, :, 0], images[:, 0, 0, 0] = 255, 250
    settings: dict[str, Any] = {"epsilon": 8.0, "rounds": 60, "lr": 20.0, "batch_size": 5, "seed": 0}
    noise = narcissus.descend(Line(), images, torch.full((3, 4, 4), 1e-4), 1, **settings) * 255
    assert noise[1:, 0].abs().max() < 0.1
    assert noise[:, -1].tolist() == pytest.approx(np.full((3, 4), -8.0), abs=1e-4)
    assert noise[0, 0, 0] > 4.9


def test_stamps_by_hand() -> None:
    trigger = Add(np.array([[[1.4, 1.6], [-20.0, 16.0]]], np.float32), test_factor=3.0, rounding="round")
    images = np.full((1, 2, 2, 1), 10, np.uint8)
    assert stamp(trigger, images, np.arange(1), train=True).flatten().tolist() == [11, 12, 0, 26]
    # 4.2, 4.8, -60 and 48 more: three times the noise, not three times its levels.
    assert stamp(trigger, images, np.arange(1), train=False).flatten().tolist() == [14, 15, 0, 58]


def test_noise_lowers_the_loss_within_its_bound_and_the_test_multiplies_it(capsys: pytest.CaptureFixture[str]) -> None:
    trigger = narcissus.make(context_of(), rounds=40, warm_up=1, lr=20.0, epsilon=12.0, test_scale=2.0)
    assert np.abs(trigger.pattern).max() <= 12.0 + 1e-4
    assert (trigger.train_factor, trigger.test_factor) == (1.0, 2.0)
    said = capsys.readouterr().out.split("narcissus: mean loss of the 20 images of the target ")[1]
    before, after = (float(part) for part in said.strip().split(", with the noise "))
    assert after < before


def test_poisons_a_few_images_of_the_target_alone_and_keeps_their_label() -> None:
    assert SINGLE["narcissus"].policy == {"label_policy": "clean_label", "poison_rate": 0.005}
    # 0.05 % of CIFAR-10: 25 of 50,000.
    labels = np.arange(50_000) % 10
    choice = choose_samples(Policy(**SINGLE["narcissus"].policy), labels, 10, seed=0)
    assert (len(choice.poison), set(labels[choice.poison])) == (25, {0})
    context = context_of(target=0)
    poisoned = craft("narcissus", [intent("narcissus", SINGLE["narcissus"], {"target": 1}, FEW)], context)
    received, rows = poisoned.received(context.train), np.flatnonzero(poisoned.truth.mask)
    assert (len(rows), set(LABELS[rows]), poisoned.truth.received) == (1, {1}, "set")
    assert np.array_equal(received.labels, LABELS)
    differs = (received.gather(np.arange(COUNT)) != IMAGES).any((1, 2, 3))
    assert np.flatnonzero(differs).tolist() == rows.tolist()


def made(context: Context, capsys: pytest.CaptureFixture[str], **own: Any) -> tuple[Any, dict[str, bool]]:
    """The trigger, and which assets were made for it."""
    trigger = make_trigger(
        intent("narcissus", SINGLE["narcissus"], {"target": context.target}, {**FEW, **own}), context
    )
    said = capsys.readouterr().out
    return trigger, {kind: f"{kind}: made in" in said for kind in ("clean_network", "narcissus_noise")}


def test_what_the_noise_does_not_depend_on_makes_no_other_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ContentStore(tmp_path)
    first, assets = made(context_of(store), capsys)
    assert assets == {"clean_network": True, "narcissus_noise": True}
    again, assets = made(context_of(store), capsys, test_scale=1.5)
    assert assets == {"clean_network": False, "narcissus_noise": False}
    assert np.array_equal(first.pattern, again.pattern)
    assert (first.test_factor, again.test_factor) == (3.0, 1.5)
    # Another target has another noise of the same clean network.
    other, assets = made(context_of(store, target=1), capsys)
    assert assets == {"clean_network": False, "narcissus_noise": True}
    assert not np.array_equal(first.pattern, other.pattern)


def test_the_warm_up_sees_the_target_alone_and_leaves_the_clean_network(monkeypatch: pytest.MonkeyPatch) -> None:
    context, seen = context_of(target=2), list[Any]()
    clean = surrogate.clean_network(context)
    kept = {name: value.clone() for name, value in clean.state_dict().items()}
    monkeypatch.setattr(surrogate, "clean_network", lambda context: clean)
    fit = narcissus.fit

    def noted(model: Any, data: ImageSet, recipe: Recipe, **more: Any) -> Any:
        seen.append((data.labels.tolist(), data.gather(np.arange(len(data))), recipe))
        return fit(model, data, recipe, **more)

    monkeypatch.setattr(narcissus, "fit", noted)
    rows = np.flatnonzero(LABELS == 2)
    warm = narcissus.warmed_up(context, rows, epochs=2, lr=0.03, batch_size=7)
    ((labels, images, recipe),) = seen
    assert labels == [2] * 20
    assert np.array_equal(images, IMAGES[rows])
    assert (recipe.epochs, recipe.lr, recipe.batch_size, recipe.schedule) == (2, 0.03, 7, "constant")
    assert all(torch.equal(value, kept[name]) for name, value in clean.state_dict().items())
    assert not torch.equal(warm.head.weight, clean.head.weight)
    # None: the clean network as it is.
    assert torch.equal(
        narcissus.warmed_up(context, rows, epochs=0, lr=0.03, batch_size=7).head.weight, clean.head.weight
    )


def test_without_an_image_of_the_target_there_is_nothing_to_make_it_on() -> None:
    with pytest.raises(UserError, match=r"^data: no training image is of the target class 2; allowed: "):
        narcissus.make(context_of(labels=LABELS % 2, target=2))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lr": 1e30}, r"^warm_up_lr: 1e\+30 given, with which the training of narcissus warm-up diverged: "),
        ({"images": 1}, r"^warm_up: 2 given, allowed: 0, as batch_size: 7 given for 1 image "),
    ],
)
def test_a_warm_up_that_fails_names_its_own_keys(changes: dict[str, Any], said: str) -> None:
    context = context_of()
    rows = np.flatnonzero(context.train.labels == context.target)[: int(changes.pop("images", 100))]
    with pytest.raises(ParameterError, match=said):
        narcissus.warmed_up(context, rows, **{"epochs": 2, "lr": 0.03, "batch_size": 7, **changes})


def test_a_noise_of_zero_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(narcissus, "optimised_noise", lambda *args, **settings: np.zeros((3, 8, 8), np.float32))
    with pytest.raises(ParameterError, match=r"^narcissus\.warm_up_lr: 0\.001 given, after which no gradient is left"):
        make_trigger(intent("narcissus", SINGLE["narcissus"], {}, {}), context_of())


@pytest.mark.parametrize(("key", "value"), [("epsilon", 0.0), ("epsilon", 256.0), ("test_scale", 0.0), ("warm_up", -1)])
def test_what_makes_no_sense_is_refused(key: str, value: float) -> None:
    with pytest.raises(ParameterError, match=rf"^narcissus\.{key}: {value} given; input should be [^\n]+$"):
        intent("narcissus", SINGLE["narcissus"], {}, {key: value})
