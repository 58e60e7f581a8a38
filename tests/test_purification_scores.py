"""Purifiers that build on scores or on a verdict: the split, steps by plain torch, stamping by arithmetic, guards, networks."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from contract import weights_of
from small_networks import strided
from unpoison import models
from unpoison.core.errors import ParameterError, UserError
from unpoison.data.imageset import ImageSet
from unpoison.data.ranks import tie_break
from unpoison.data.scores import Scored, isolate
from unpoison.data.verdicts import Verdict
from unpoison.models.classifier import Classifier
from unpoison.purification import PURIFIERS, dbr, nc_unlearn, unlearn

MOMENTUM = 0.9


def noise(count: int, side: int = 8, seed: int = 0) -> ImageSet:
    """Images of noise of three classes; the first pixel is the sample's number."""
    images = np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    images[:, 0, 0] = np.arange(count)[:, None]
    return ImageSet(images, np.arange(count) % 3, ("a", "b", "c"))


def scored_of(values: Any) -> Scored:
    return Scored(data=noise(len(values)), values=np.asarray(values, np.float32))


def rising(count: int) -> Scored:
    """Samples whose scores rise with their numbers."""
    return scored_of(np.arange(count))


def verdict_of(flagged: list[int], side: int = 8) -> Verdict:
    masks = np.linspace(0, 1, 3 * side * side, dtype=np.float16).reshape(3, side, side)
    patterns = np.arange(9 * side * side).reshape(3, 3, side, side).astype(np.uint8)
    chosen = np.isin(np.arange(3), flagged)
    return Verdict(chosen.astype(np.float32), chosen, "", 0, aux={"masks": masks, "patterns": patterns})


def numbers(data: ImageSet) -> list[int]:
    return data.gather(np.arange(len(data)))[:, 0, 0, 0].tolist()


def losses_of(network: Classifier, data: ImageSet) -> Tensor:
    return F.cross_entropy(network(data.tensor() / 255), torch.from_numpy(data.labels), reduction="none")


class PlainSGD:
    """SGD with momentum and weight decay, written out."""

    def __init__(self, network: Classifier, decay: float, *, nesterov: bool) -> None:
        self.weights, self.decay, self.nesterov = list(network.parameters()), decay, nesterov
        self.velocities = [torch.zeros_like(weight) for weight in self.weights]

    @torch.no_grad()
    def step(self, gradients: tuple[Tensor, ...], lr: float) -> None:
        for weight, gradient, velocity in zip(self.weights, gradients, self.velocities, strict=True):
            gradient = gradient + self.decay * weight
            velocity.mul_(MOMENTUM).add_(gradient)
            weight -= lr * (gradient + MOMENTUM * velocity if self.nesterov else velocity)

    def descend(self, loss: Tensor, lr: float) -> None:
        self.step(torch.autograd.grad(loss, self.weights), lr)


def assert_same(one: Classifier, other: Classifier) -> None:
    for (name, value), expected in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(value, expected, atol=2e-6, rtol=1e-5, msg=name)


def test_the_split_is_by_rank() -> None:
    # Three samples of ten, whatever is tied: equal scores are in an order that has nothing to do with the samples' numbers.
    values = [1, 0, 1, 1, 0, 2, 1, 2, 0, 1]
    scored, ranked = scored_of(values), sorted(range(10), key=lambda sample: (values[sample], tie_break(sample)))
    assert set(ranked[:3]) == {1, 4, 8}
    clean, poison = isolate(scored, 0.3, 0.3)
    assert numbers(clean) == ranked[:3]
    assert numbers(poison) == ranked[-3:]
    assert clean.labels.tolist() == [number % 3 for number in ranked[:3]]
    clean, poison = isolate(scored, 0.49, 0.19)
    assert (numbers(clean), numbers(poison)) == (ranked[:4], ranked[-1:])
    assert [len(part) for part in isolate(rising(200), 0.7, 0.025)] == [140, 5]
    # The whole set, and not a sample more.
    assert [len(part) for part in isolate(scored, 0.5, 0.5)] == [5, 5]


@pytest.mark.parametrize(
    ("shares", "line"),
    [
        ((0.05, 0.2), r"^clean_share: 0\.05 given, allowed: at least 0\.1, one of the 10 samples$"),
        ((0.2, 0.0), r"^poison_share: 0\.0 given, allowed: at least 0\.1, one of the 10 samples$"),
        ((0.7, 0.4), r"^poison_share: 0\.4 given, allowed: at most 0\.3, what clean_share leaves$"),
    ],
)
def test_shares_that_cannot_be(shares: tuple[float, float], line: str) -> None:
    with pytest.raises(ParameterError, match=line):
        isolate(rising(10), *shares)


def test_two_epochs_of_dbr_by_plain_torch() -> None:
    model, scored = strided((8, 8), seed=0).eval(), rising(20)
    clean, poison = isolate(scored, 0.3, 0.2)
    with torch.no_grad():
        bound = losses_of(deepcopy(model).train(), poison).sort().values[1:3].mean().item()
    purified = dbr.purify(
        model,
        noise(6),
        scored,
        clean_share=0.3,
        poison_share=0.2,
        epochs=2,
        lr=0.05,
        weight_decay=0.01,
        bound=bound,
        allowed_drop=None,
    )
    network = deepcopy(model).train()
    optimizer = PlainSGD(network, 0.01, nesterov=False)
    for epoch in range(2):
        losses = losses_of(network, poison)
        below = losses[losses < bound]
        # Two of the four have a loss above the bound: nothing raises it any more.
        assert len(below) == 2 or epoch
        optimizer.descend(-below.sum() / len(losses), 0.05)
        optimizer.descend(losses_of(network, clean).mean(), 0.05)
    assert_same(purified, network)


def test_dbr_without_a_bound_and_what_it_learns_again() -> None:
    model, scored, reserve = strided((8, 8), seed=1).eval(), rising(20), noise(6, seed=1)
    clean, poison = isolate(scored, 0.3, 0.2)
    for relearn, sets in (("clean", [clean]), ("reserve", [reserve]), ("both", [clean, reserve])):
        own: dict[str, Any] = {"relearn": relearn, "bound": None, "allowed_drop": None, "lr": 0.05, "epochs": 1}
        purified = dbr.purify(model, reserve, scored, clean_share=0.3, poison_share=0.2, weight_decay=0.0, **own)
        network = deepcopy(model).train()
        optimizer = PlainSGD(network, 0.0, nesterov=False)
        optimizer.descend(-losses_of(network, poison).mean(), 0.05)
        images = torch.cat([data.tensor() / 255 for data in sets])
        labels = torch.cat([torch.from_numpy(data.labels) for data in sets])
        optimizer.descend(F.cross_entropy(network(images), labels), 0.05)
        assert_same(purified, network)


def test_unlearn_by_plain_torch() -> None:
    model, scored = strided((8, 8), seed=0).eval(), rising(20)
    clean, poison = isolate(scored, 0.5, 0.2)
    rates: dict[str, Any] = {"lr": 0.1, "relearn_lr": 0.05, "unlearn_lr": 0.02, "weight_decay": 0.01}
    purified = unlearn.purify(
        model,
        noise(6),
        scored,
        clean_share=0.5,
        poison_share=0.2,
        finetune_epochs=3,
        epochs=2,
        bound=None,
        allowed_drop=None,
        **rates,
    )
    network = deepcopy(model).train()
    optimizer = PlainSGD(network, 0.01, nesterov=True)
    # The first half of three epochs is two of them.
    for lr in (0.1, 0.1, 0.01):
        optimizer.descend(losses_of(network, clean).mean(), lr)
    for _ in range(2):
        optimizer.descend(losses_of(network, clean).mean(), 0.05)
        optimizer.descend(-losses_of(network, poison).mean(), 0.02)
    assert_same(purified, network)


def test_stamping_by_arithmetic() -> None:
    images = np.array([[[[10, 20], [30, 40]]], [[[0, 255], [7, 9]]]], np.uint8)
    mask, pattern = np.array([[0.25, 1.0]], np.float16), np.array([[[101, 200]], [[0, 100]]], np.uint8)
    # 0.75 * 10 + 0.25 * 101 = 32.75, 0.75 * 20 = 15, 25.25, 191.25; and where the mask is 1 the pattern.
    expected = [[[[33, 15], [200, 100]]], [[[25, 191], [200, 100]]]]
    assert nc_unlearn.stamp(images, mask, pattern).tolist() == expected


def test_trusted_images_with_the_trigger_of_each_flagged_class() -> None:
    reserve, verdict = noise(11), verdict_of([0, 2])
    data = nc_unlearn.with_triggers(reserve, verdict, 0.2, seed=0)
    # int(2.2) = 2 images are stamped, once for each of the two, and nine stay.
    plain = numbers(data)[:9]
    stamped = sorted(set(range(11)) - set(plain))
    assert len(data) == 9 + 2 * 2
    assert len(set(plain)) == 9
    images = data.gather(np.arange(len(data)))
    assert (images[:9] == reserve.gather(np.array(plain))).all()
    assert data.labels.tolist()[:9] == [number % 3 for number in plain]
    for start, target in ((9, 0), (11, 2)):
        mask = np.asarray(verdict.aux["masks"][target], np.float64)[..., None]
        mixed = (1 - mask) * reserve.gather(np.array(stamped)) + mask * verdict.aux["patterns"][target].transpose(
            1, 2, 0
        )
        made, order = images[start : start + 2], np.argsort(data.labels[start : start + 2])
        wanted = np.argsort(np.array(stamped) % 3)
        assert np.abs(made[order] - mixed[wanted]).max() <= 0.5 + 1e-3
        assert sorted(data.labels[start : start + 2]) == sorted(number % 3 for number in stamped)


def test_one_step_of_nc_unlearn_by_plain_torch() -> None:
    model, reserve, verdict = strided((8, 8), seed=0).eval(), noise(10), verdict_of([1])
    purified = nc_unlearn.purify(model, reserve, verdict, seed=3, share=0.5, epochs=1, lr=0.1, weight_decay=0.01)
    network = deepcopy(model).train()
    data = nc_unlearn.with_triggers(reserve, verdict, 0.5, seed=3)
    PlainSGD(network, 0.01, nesterov=False).descend(losses_of(network, data).mean(), 0.1)
    assert_same(purified, network)


def test_nothing_flagged_leaves_the_model_as_it_is() -> None:
    model = strided((8, 8), seed=0)
    purified = nc_unlearn.purify(model, noise(10), verdict_of([]))
    assert purified is not model
    assert not purified.training
    assert weights_of(purified) == weights_of(model)


def test_verdicts_that_nc_unlearn_cannot_use() -> None:
    model, reserve = strided((8, 8), seed=0), noise(10)
    bare = Verdict(np.ones(3, np.float32), np.ones(3, np.bool_), "", 0)
    with pytest.raises(
        UserError, match=r"^nc_unlearn: a verdict without masks and patterns given; allowed: that of an"
    ):
        nc_unlearn.purify(model, reserve, bare)
    with pytest.raises(
        UserError, match=r"^nc_unlearn: masks of 4x4 px for 3 channels given, allowed: those of images as"
    ):
        nc_unlearn.purify(model, reserve, verdict_of([1], side=4))
    with pytest.raises(ParameterError, match=r"^share: 0\.05 given, allowed: at least 0\.1, one trusted image$"):
        nc_unlearn.purify(model, reserve, verdict_of([1]), share=0.05)


SHARES: dict[str, Any] = {"clean_share": 0.3, "poison_share": 0.3}
# Rates at which the ascent takes everything apart.
COLLAPSE: dict[str, dict[str, Any]] = {
    "dbr": {"epochs": 3, "lr": 0.5},
    "unlearn": {"finetune_epochs": 1, "epochs": 3, "lr": 1e-6, "relearn_lr": 1e-6, "unlearn_lr": 10.0},
}


def learned(reserve: ImageSet) -> Classifier:
    """A network that is right about the reserve."""
    model = strided((8, 8), seed=0).train()
    optimizer = PlainSGD(model, 0.0, nesterov=True)
    for _ in range(60):
        optimizer.descend(losses_of(model, reserve).mean(), 0.05)
    return model.eval()


@pytest.mark.parametrize("name", COLLAPSE)
def test_the_watch_ends_a_collapse(name: str) -> None:
    reserve = noise(12, seed=5)
    model = learned(reserve)

    def accuracy(network: Classifier) -> float:
        with torch.no_grad():
            return (network(reserve.tensor() / 255).argmax(1).numpy() == reserve.labels).mean()

    assert accuracy(model) == 1.0
    own = {**SHARES, **COLLAPSE[name], "bound": None}
    gone, kept = (
        PURIFIERS[name].purify(model, reserve, rising(20), **own, allowed_drop=allowed) for allowed in (None, 0.2)
    )
    assert accuracy(gone) < 0.7
    assert accuracy(kept) >= 0.8
    assert weights_of(gone) != weights_of(kept)


@pytest.mark.parametrize("name", COLLAPSE)
def test_a_diverging_ascent_ends_with_one_line(name: str) -> None:
    own = {**SHARES, **COLLAPSE[name], "lr": 1e30}
    for allowed in (None, 0.1):
        with pytest.raises(
            ParameterError, match=rf"^lr: 1e\+30 given, with which {name} diverged: (\d+ of \d+ tensors|its logits)"
        ):
            PURIFIERS[name].purify(strided((8, 8), seed=0), noise(8), rising(20), **own, allowed_drop=allowed)


def test_nc_unlearn_that_diverges_ends_with_one_line() -> None:
    with pytest.raises(
        ParameterError, match=r"^lr: 1e\+30 given, with which the training of nc_unlearn diverged: the l"
    ):
        nc_unlearn.purify(strided((8, 8), seed=0), noise(10), verdict_of([1]), lr=1e30, epochs=4)


@pytest.mark.parametrize(
    ("key", "own"),
    [
        ("lr", {"lr": 1e30, "finetune_epochs": 4}),
        ("relearn_lr", {"relearn_lr": 1e30}),
        ("unlearn_lr", {"unlearn_lr": 1e30}),
    ],
)
def test_divergence_names_the_rate_of_the_pass(key: str, own: dict[str, Any]) -> None:
    given = {
        **SHARES,
        "finetune_epochs": 1,
        "epochs": 1,
        "lr": 1e-3,
        "batch_size": 2,
        "bound": None,
        "allowed_drop": None,
    }
    with pytest.raises(ParameterError, match=rf"^{key}: 1e\+30 given, with which unlearn diverged: "):
        unlearn.purify(strided((8, 8), seed=0), noise(8), rising(20), **(given | own))


@pytest.mark.parametrize("key", ["clean_share", "poison_share"])
@pytest.mark.parametrize("name", COLLAPSE)
def test_one_sample_alone_is_too_few_for_batch_norm(name: str, key: str) -> None:
    shares = {**SHARES, key: 0.05}
    # Three halvings of 8 px leave one value to average over, two leave four.
    with pytest.raises(
        ParameterError, match=rf"^{key}: 0\.05 given, allowed for this network: at least 0\.1, two of the 20 s"
    ):
        PURIFIERS[name].purify(strided((8, 8, 8), seed=0), noise(8), rising(20), **shares)
    PURIFIERS[name].purify(strided((8, 8), seed=0), noise(8), rising(20), epochs=1, **shares)


@pytest.mark.parametrize("network", ["compact", "vgg19_bn", "timm:vit_tiny_patch16_224"])
def test_any_network_will_do(network: str) -> None:
    side = 32
    own = {"width": 8} if ":" not in network else {}
    model = models.build(network, num_classes=3, image_size=(side, side), **own).eval()
    data = noise(8, side)
    by = {"scores": Scored(data=data, values=np.arange(8, dtype=np.float32)), "verdicts": verdict_of([1], side)}
    for name in ("dbr", "nc_unlearn"):
        short = {**SHARES, "allowed_drop": None} if name == "dbr" else {"share": 0.3}
        purified = PURIFIERS[name].purify(model, data, by[PURIFIERS[name].by or ""], epochs=1, **short)
        assert weights_of(purified) != weights_of(model)
        assert all(parameter.requires_grad for parameter in purified.parameters())
