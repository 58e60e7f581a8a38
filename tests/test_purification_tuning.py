"""The tuning family beside a plain loop of its own, step by step; Fine-Pruning and NAD by hand; where stages end."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from math import cos, pi
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks import nothing_drawn
from originals import GOLDEN, golden
from planted import Planted
from small_networks import strided
from unpoison import models
from unpoison.compute.inference import features_of, logits_of
from unpoison.core.errors import ParameterError, UserError
from unpoison.core.seeding import torch_rng
from unpoison.data.imageset import ImageSet
from unpoison.models.classifier import Classifier
from unpoison.purification import PURIFIERS, fp, fst, ft, lp, nad, tuning
from unpoison.purification.maps import LAST, recorded, stages_of
from unpoison.training.recipe import Recipe, rates

MODES = ("ft", "lp", "fe_tuning", "ft_init", "fst")
# The network of an earlier default run and images, beside the checkout where somebody has put them.


def loss_of(model: Classifier, data: ImageSet) -> float:
    return F.cross_entropy(logits_of(model, data), torch.from_numpy(data.labels)).item()


def values_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


# The modes of FST's published code


def steps_of(
    model: Classifier,
    data: ImageSet,
    mode: str,
    *,
    seed: int,
    epochs: int,
    size: int,
    lr: float,
    alpha: float,
    eps: float,
) -> list[dict[str, Tensor]]:
    """The network after each step of a mode, in plain torch, as the published code defines it.

    All modes have the cosine per epoch, momentum 0.9 without weight decay, batch norm in training mode, and the head's weight
    scaled to its first norm after each step. Of smoothing eps the K - 1 other classes get eps / (K - 1) each. Where there is
    smoothing the published code leaves FST's term out, which is not followed here.
    """
    network = deepcopy(model).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    first = network.head.weight.detach().clone()
    if mode in ("fe_tuning", "ft_init", "fst"):
        generator, side = torch_rng(seed, f"{mode}/head"), 1 / network.head.in_features**0.5
        with torch.no_grad():
            for values in (network.head.weight, network.head.bias):
                values.copy_(-side + 2 * side * torch.rand(values.shape, generator=generator))
    named = dict(network.named_parameters())
    wanted = {name for name in named if mode not in ("lp", "fe_tuning") or name.startswith("head.") == (mode == "lp")}
    velocity = {name: torch.zeros_like(named[name]) for name in wanted}
    order, after = torch_rng(seed, f"fit/{mode}"), []
    images, labels = data.tensor().float() / 255, torch.from_numpy(data.labels)
    for epoch in range(epochs):
        rate = lr / 2 * (1 + cos(pi * epoch / epochs))
        for batch in torch.randperm(len(data), generator=order).split(size):
            logs = network(images[batch].contiguous(memory_format=torch.channels_last)).log_softmax(1)
            target = torch.full_like(logs, eps / (logs.shape[1] - 1))
            target[torch.arange(len(batch)), labels[batch]] = 1 - eps
            loss = -(target * logs).sum(1).mean()
            if mode == "fst":
                loss = loss + alpha * (network.head.weight * first).sum()
            gradients = torch.autograd.grad(loss, [named[name] for name in sorted(wanted)])
            with torch.no_grad():
                for name, gradient in zip(sorted(wanted), gradients, strict=True):
                    velocity[name] = 0.9 * velocity[name] + gradient
                    named[name] -= rate * velocity[name]
                network.head.weight *= first.norm() / network.head.weight.norm()
            after.append(values_of(network))
    return after


def our_steps(
    patch: pytest.MonkeyPatch, model: Classifier, data: ImageSet, mode: str, **arguments: Any
) -> list[dict[str, Tensor]]:
    """The network after each step of ours."""
    after: list[dict[str, Tensor]] = []
    fit = tuning.fit

    def recording(*given: Any, after_step: Callable[[Classifier], None] | None, **named: Any) -> Any:
        def note(network: Classifier) -> None:
            if after_step is not None:
                after_step(network)
            after.append(values_of(network))

        return fit(*given, after_step=note, **named)

    patch.setattr(tuning, "fit", recording)
    PURIFIERS[mode].purify(model, data, **arguments)
    return after


def farthest(ours: list[dict[str, Tensor]], plain: list[dict[str, Tensor]]) -> float:
    """The largest difference after any step, relative to the largest value of its tensor."""
    assert [values.keys() for values in ours] == [values.keys() for values in plain]
    return max(
        ((mine[name] - theirs[name]).abs().max() / theirs[name].abs().max().clamp(min=1e-30)).item()
        for mine, theirs in zip(ours, plain, strict=True)
        for name in theirs
    )


@pytest.mark.parametrize("eps", [0.0, 0.3])
@pytest.mark.parametrize("mode", MODES)
def test_every_step_is_that_of_the_published_mode(
    mode: str, eps: float, planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(monkeypatch, planted.model, planted.reserve.subset(np.arange(12)), mode, eps)


@pytest.mark.parametrize("mode", MODES)
@golden
def test_every_step_is_that_of_the_published_mode_on_a_default_victim(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with np.load(GOLDEN / "images300.npz") as file:
        classes = tuple(map(str, range(10)))
        some = ImageSet(file["images"][::25], file["true_labels"][::25].astype(np.int64), classes)
    compare(monkeypatch, models.load(GOLDEN / "model"), some, mode, 0.0)


def compare(patch: pytest.MonkeyPatch, model: Classifier, data: ImageSet, mode: str, eps: float) -> None:
    size = len(data) // 3
    given: dict[str, Any] = {"seed": 4, "epochs": 2, "lr": 0.02} | ({"alpha": 0.4} if mode == "fst" else {})
    ours = our_steps(
        patch,
        model,
        data,
        mode,
        batch_size=size,
        schedule_per="epoch",
        keep_head_norm=True,
        label_smoothing=eps,
        **given,
    )
    plain = steps_of(model, data, mode, size=size, eps=eps, **{"alpha": 0.0} | given)
    assert len(plain) == 6
    assert farthest(ours, plain) <= 1e-6


def test_what_each_mode_leaves_as_it_was(planted: Planted) -> None:
    reserve, before = planted.reserve.subset(np.arange(24)), values_of(planted.model)
    given: dict[str, Any] = {"epochs": 1, "batch_size": 12, "lr": 0.02}
    probed, still = (
        values_of(lp.purify(planted.model, reserve, update_statistics=moves, **given)) for moves in (True, False)
    )
    changed = {name for name in before if not torch.equal(before[name], probed[name])}
    assert {name for name in changed if "running" not in name and "tracked" not in name} == {"head.weight", "head.bias"}
    assert any("running_mean" in name for name in changed)
    assert {name for name in before if not torch.equal(before[name], still[name])} == {"head.weight", "head.bias"}
    # The head that is drawn stays, up to the old one's norm.
    body = values_of(PURIFIERS["fe_tuning"].purify(planted.model, reserve, seed=6, **given))
    drawn = deepcopy(planted.model.head)
    tuning._draw_anew(drawn, torch_rng(6, "fe_tuning/head"))
    scaled = drawn.weight / drawn.weight.norm() * before["head.weight"].norm()
    assert torch.allclose(body["head.weight"], scaled, rtol=1e-5)
    assert torch.equal(body["head.bias"], drawn.bias)
    assert not torch.equal(body["backbone.body.0.weight"], before["backbone.body.0.weight"])


def test_what_was_to_be_trained_still_is(planted: Planted) -> None:
    for name in MODES:
        tuned = PURIFIERS[name].purify(planted.model, planted.reserve.subset(np.arange(8)), epochs=1)
        assert all(parameter.requires_grad for parameter in tuned.parameters())


@pytest.mark.parametrize("name", ["ft", "ft_sam"])
def test_smoothing_beyond_equal_shares_is_refused(name: str, planted: Planted) -> None:
    with pytest.raises(ParameterError, match=r"^label_smoothing: 0\.95 given, allowed for 10 classes: 0 to 0\.9,"):
        PURIFIERS[name].purify(planted.model, planted.reserve, label_smoothing=0.95)


def test_fine_tuning_learns_the_reserve(planted: Planted) -> None:
    reserve = planted.reserve.subset(np.arange(96))
    tuned = ft.purify(planted.model, reserve, epochs=2, batch_size=32)
    assert loss_of(tuned, reserve) < 0.9 * loss_of(planted.model, reserve)


def test_fst_keeps_the_heads_norm_and_turns_it_away(planted: Planted) -> None:
    original, reserve = planted.model.head.weight, planted.reserve.subset(np.arange(96))
    gentle, strong = (
        fst.purify(planted.model, reserve, epochs=2, batch_size=32, alpha=alpha).head.weight for alpha in (0, 1)
    )
    for weight in (gentle, strong):
        assert torch.allclose(weight.norm(), original.norm(), rtol=1e-4)
    assert (strong * original).sum() < (gentle * original).sum()


def test_one_step_of_fst_is_that_of_its_loss(planted: Planted) -> None:
    reserve = planted.reserve.subset(np.arange(32))
    stepped = fst.purify(planted.model, reserve, seed=3, epochs=1, batch_size=32, lr=0.05, alpha=0.5)
    network, original = deepcopy(planted.model).train(), planted.model.head.weight.detach()
    tuning._draw_anew(network.head, torch_rng(3, "fst/head"))
    entropy = F.cross_entropy(network(reserve.tensor() / 255), torch.from_numpy(reserve.labels))
    (entropy + 0.5 * (network.head.weight * original).sum()).backward()
    head = network.head.weight
    expected = head.detach() - 0.05 * head.grad
    expected *= original.norm() / expected.norm()
    assert torch.allclose(stepped.head.weight, expected, atol=1e-5)
    assert torch.allclose(stepped.head.bias, network.head.bias - 0.05 * network.head.bias.grad, atol=1e-5)


@pytest.mark.parametrize("name", MODES)
def test_the_published_schedule_moves_once_per_epoch(
    name: str, planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Recipe] = []
    monkeypatch.setattr(tuning, "fit", lambda model, data, recipe, **_: given.append(recipe))
    PURIFIERS[name].purify(planted.model, planted.reserve, epochs=4, schedule_per="epoch", augment=["crop", "flip"])
    PURIFIERS[name].purify(planted.model, planted.reserve, epochs=4)
    published, default = given
    assert published.augment == ("crop", "flip")
    # A cosine of four epochs: 1, (1 + cos 45°) / 2, 1/2, (1 - cos 45°) / 2 of the rate, constant over an epoch's three steps.
    steps = [0.01, 0.00853553, 0.005, 0.00146447]
    assert [rate.lr for rate in rates(published, 3)] == pytest.approx(np.repeat(steps, 3), rel=1e-5)
    assert len({rate.lr for rate in rates(default, 3)}) == 12


# Not `lp`, whose features stay as they are: no rate that is allowed makes its logits infinite.
@pytest.mark.parametrize("name", ["ft", "fe_tuning", "ft_init", "fst", "fp", "nad"])
def test_a_purifier_that_diverges_ends_with_one_line(name: str, planted: Planted) -> None:
    reserve = planted.reserve.subset(np.arange(32))
    with pytest.raises(
        ParameterError, match=rf"^lr: 1e\+30 given, with which the training of {name}(, teacher)? diverged: "
    ):
        PURIFIERS[name].purify(planted.model, reserve, lr=1e30, epochs=4, batch_size=16)


def test_a_term_that_overflows_is_divergence(planted: Planted) -> None:
    reserve = planted.reserve.subset(np.arange(32))
    with pytest.raises(ParameterError, match=r"diverged: .*; allowed: a lower one, and other weights of the loss"):
        fst.purify(planted.model, reserve, epochs=1, alpha=1e38)
    silent = deepcopy(planted.model)
    silent.head.weight.data.zero_()
    silent.head.weight.data[0, 0] = torch.nan
    with pytest.raises(UserError, match=r"^fst: 1 of \d+ tensors of the network are not finite \(head\.weight\)"):
        fst.purify(silent, reserve, epochs=1)


# Fine-Pruning


def test_fine_pruning_stops_before_the_accuracy_falls_too_far() -> None:
    # Two classes, with logits x0 + x2 and x1 + x3 + 1/2, and four images that all are right.
    features = np.array([[0, 0, 5, 0], [0, 0, 0, 5], [2, 0, 0, 1], [0, 2, 1, 0]], np.float32)
    weight, labels = np.array([[1, 0, 1, 0], [0, 1, 0, 1]], np.float32), np.array([0, 1, 0, 1])
    logits = features @ weight.T + np.array([0, 0.5], np.float32)
    # Without feature 0 the third is lost, without 0 and 1 the fourth too; without 2 the fourth is right again and the first lost.
    for budget, count in {0.2: 0, 0.25: 1, 0.4: 1, 0.5: 3, 1.0: 3}.items():
        assert fp.how_many(features, logits, labels, weight, np.arange(4), step=1, budget=budget) == count
    assert fp.how_many(features, logits, labels, weight, np.arange(4), step=2, budget=0.4) == 0
    # The other way round: without 3 the second stays, by its class's half; without 2 the first is lost.
    assert fp.how_many(features, logits, labels, weight, np.arange(4)[::-1], step=1, budget=0.2) == 1


def test_fine_pruning_takes_the_least_active_features_and_keeps_them_out(planted: Planted) -> None:
    reserve = planted.reserve.subset(np.arange(60))
    # With the whole budget the most active feature alone is left, whichever image was held out.
    pruned = fp.purify(planted.model, reserve, step=3 / 64, accuracy_budget=1.0, held_out=0.01, epochs=1, batch_size=20)
    gone = (pruned.head.weight == 0).all(0)
    features = np.asarray(features_of(planted.model, reserve).penultimate)
    most = {int(np.delete(features, one, 0).mean(0).argmax()) for one in range(60)}
    assert set((~gone).nonzero().flatten().tolist()) == most
    assert len(most) == 1
    assert not torch.equal(pruned.backbone.body[0].weight, planted.model.backbone.body[0].weight)  # type: ignore[operator, index]
    with pytest.raises(ParameterError, match=r"^held_out: 0\.2 given for 1 trusted images, allowed: 2 or more"):
        fp.purify(planted.model, reserve.subset(np.arange(1)))


# Neural Attention Distillation


def test_attention_and_its_distance_by_hand() -> None:
    # Sums of squares over two channels: 3^2 + 0 = 9, 0 + 4, 4 + 4, 0 + 0; their norm is sqrt(81 + 16 + 64).
    maps = torch.tensor([[[[3.0, 0], [-2, 0]], [[0, -2], [2, 0]]]])
    expected = torch.tensor([[9.0, 4, 8, 0]]) / 161**0.5
    assert torch.allclose(nad.attention(maps, 2), expected, atol=1e-6)
    assert torch.allclose(nad.attention(7 * maps, 2), expected, atol=1e-6)
    # Of one position alone, by the squared distance over four positions.
    other = torch.tensor([[[[0.0, 0], [0, 1]]]])
    assert nad.distance(maps, other, 2).item() == pytest.approx((81 + 16 + 64) / 161 / 4 + 1 / 4, rel=1e-5)


def test_one_step_of_nad_is_that_of_its_loss() -> None:
    model = strided((8, 8, 16), seed=0).eval()
    rng = np.random.default_rng(0)
    reserve = ImageSet(
        rng.integers(256, size=(12, 16, 16, 3), dtype=np.uint8), rng.integers(10, size=12), tuple("abcdefghij")
    )
    given: dict[str, Any] = {"batch_size": 12, "lr": 0.05, "weight_decay": 0.0}
    stepped = nad.purify(model, reserve, teacher_epochs=2, epochs=1, weights=[30.0, 70.0], **given)
    # A weight of nothing leaves the cross entropy, of which the teacher's two steps consist.
    teacher = nad.purify(model, reserve, teacher_epochs=1, epochs=2, weights=[0.0], **given)
    student, images = deepcopy(model).train(), reserve.tensor() / 255

    def maps_of(network: Classifier) -> list[Tensor]:
        body = network.backbone.body
        early = body[:6]((images - 0.5) / 0.25)  # type: ignore[index]
        return [early, body[6:](early)]  # type: ignore[index]

    maps, wanted = maps_of(student), [value.detach() for value in maps_of(teacher)]
    loss = F.cross_entropy(student.head(maps[1].mean((2, 3))), torch.from_numpy(reserve.labels))
    for weight, mine, its in zip((30.0, 70.0), maps, wanted, strict=True):
        looks = [F.normalize(value.square().sum(1).flatten(1)) for value in (mine, its)]
        loss = loss + weight * F.mse_loss(*looks)
    loss.backward()
    for expected, found in zip(student.parameters(), stepped.parameters(), strict=True):
        assert expected.grad is not None
        assert torch.allclose(found, expected - 0.05 * expected.grad, atol=2e-5)


STAGES = [
    ("resnet18", {"width": 8}, 32, {"6": 16, "8": 8, LAST: 4}),
    # Not the layers of the next block that still work at the larger side.
    ("resnet50", {"width": 8}, 32, {"9": 16, "15": 8, LAST: 4}),
    # Its last map has one position.
    ("vgg19_bn", {"width": 8}, 32, {"25": 8, "38": 4, "51": 2}),
    ("torchvision:mobilenet_v3_small", {}, 64, {"1.3": 8, "1.8": 4, LAST: 2}),
    ("timm:test_convnext", {}, 64, {"stages.1": 8, "stages.2": 4, LAST: 2}),
    ("timm:test_vit", {}, 160, {LAST: 10}),
]


@pytest.mark.parametrize(("name", "arguments", "side", "expected"), STAGES)
def test_stages_end_where_they_do(name: str, arguments: dict[str, Any], side: int, expected: dict[str, int]) -> None:
    with nothing_drawn(tried_out=False):
        model = models.build(name, num_classes=5, image_size=side, **arguments).eval()
    stages = stages_of(model, (side, side), 3)
    assert stages == list(expected)
    with recorded(model, stages) as maps, torch.no_grad():
        model(torch.zeros(2, 3, side, side))
    assert [maps[stage].shape[2:] for stage in stages] == [(size, size) for size in expected.values()]
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("network", "arguments", "side"),
    [("compact", {"width": 8}, 32), ("torchvision:mobilenet_v3_small", {}, 64), ("timm:test_vit", {}, 160)],
)
def test_other_networks_are_purified_as_well(network: str, arguments: dict[str, Any], side: int) -> None:
    model = models.build(network, num_classes=3, image_size=side, **arguments).eval()
    images = np.random.default_rng(0).integers(256, size=(4, side, side, 3), dtype=np.uint8)
    reserve = ImageSet(images, np.array([0, 1, 2, 0]), tuple("abc"))
    for name, own in {"lp": {}, "fe_tuning": {}, "fp": {}, "nad": {"teacher_epochs": 1}}.items():
        purified = PURIFIERS[name].purify(model, reserve, epochs=1, lr=1e-4, **own)
        assert all(value.isfinite().all() for value in purified.state_dict().values())


def test_nad_is_not_for_maps_of_one_position(monkeypatch: pytest.MonkeyPatch) -> None:
    # Refused before any training.
    monkeypatch.setattr(nad, "fit", None)
    reserve = ImageSet(np.zeros((4, 2, 2, 3), np.uint8), np.zeros(4, np.int64), tuple("abcdefghij"))
    with pytest.raises(UserError, match=r"^nad: strided given, whose maps all have one position; allowed: larger"):
        nad.purify(strided((8,), seed=0), reserve, teacher_epochs=1)
