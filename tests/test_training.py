"""The training core against a slow, obvious loop."""

from __future__ import annotations

import re
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from contract import weights_of
from small_networks import strided
from unpoison import models
from unpoison.compute.device import autocast, batch_size, compiled, hardware, pick_device
from unpoison.compute.distributed import World
from unpoison.compute.inference import features_of, logits_of
from unpoison.core.errors import ParameterError, UserError
from unpoison.core.seeding import torch_rng
from unpoison.data.imageset import ImageSet
from unpoison.training import loop, plan
from unpoison.training.hand import Hand
from unpoison.training.recipe import Recipe


def small() -> models.Classifier:
    return strided((8, 16, 32, 32), seed=0)


RECIPE = Recipe(epochs=2, batch_size=32, lr=0.01, nesterov=True)


def test_same_seed_same_weights_and_other_seed_other_weights(splits: dict[str, ImageSet]) -> None:
    data = splits["public"]

    def train(seed: int) -> torch.Tensor:
        model = small()
        loop.fit(model, data, RECIPE, seed=seed, what="test")
        return model.head.weight.detach()

    assert torch.equal(train(0), train(0))
    assert not torch.equal(train(0), train(1))


def test_equals_the_loop_people_write(splits: dict[str, ImageSet]) -> None:
    data, model, plain = splits["public"], small(), small()
    history = loop.fit(model, data, RECIPE, seed=3, what="test")
    images, labels = data.tensor().float() / 255, torch.from_numpy(data.labels)
    optimizer = torch.optim.SGD(plain.parameters(), 0.01, 0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=2 * 4 + 1)
    generator = torch_rng(3, "fit/test")
    plain.train()
    for epoch in range(2):
        for index in torch.randperm(len(data), generator=generator).split(32):
            loss = F.cross_entropy(plain(images[index]), labels[index], reduction="none")
            assert np.allclose(history.losses[epoch, index.numpy()], loss.detach(), atol=1e-3)
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
            schedule.step()
    assert torch.allclose(model.head.weight, plain.head.weight, atol=1e-3)


def test_sam_equals_the_loop_people_write(splits: dict[str, ImageSet]) -> None:
    data, model, plain = splits["public"], small(), small()
    recipe = replace(RECIPE, epochs=1, schedule="constant", sam=0.5)
    history = loop.fit(model, data, recipe, seed=3, what="test")
    images, labels = data.tensor().float() / 255, torch.from_numpy(data.labels)
    optimizer = torch.optim.SGD(plain.parameters(), 0.01, 0.9, weight_decay=5e-4, nesterov=True)
    plain.train()
    for index in torch.randperm(len(data), generator=torch_rng(3, "fit/test")).split(32):
        losses = F.cross_entropy(plain(images[index]), labels[index], reduction="none")
        assert np.allclose(history.losses[0, index.numpy()], losses.detach(), atol=1e-3)
        gradients = torch.autograd.grad(losses.mean(), list(plain.parameters()))
        length = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        # A network of its own at the worst weights, so that neither its statistics nor its weights reach the other.
        worst = deepcopy(plain)
        for parameter, gradient in zip(worst.parameters(), gradients, strict=True):
            parameter.data += 0.5 * gradient / length
        F.cross_entropy(worst(images[index]), labels[index]).backward()
        for parameter, other in zip(plain.parameters(), worst.parameters(), strict=True):
            parameter.grad = other.grad
        optimizer.step()
    for name, value in plain.state_dict().items():
        assert torch.allclose(model.state_dict()[name], value, atol=1e-3), name
    # It is not what training without it gives.
    without = small()
    loop.fit(without, data, replace(recipe, sam=0.0), seed=3, what="test")
    assert not torch.allclose(model.head.weight, without.head.weight, atol=1e-3)


def test_streaming_gives_what_a_resident_set_gives(
    splits: dict[str, ImageSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    resident, streamed = small(), small()
    loop.fit(resident, splits["public"], RECIPE, seed=0, what="test")
    monkeypatch.setattr(plan, "_memory", lambda device: 0)
    loop.fit(streamed, splits["public"], RECIPE, seed=0, what="test")
    assert torch.equal(resident.head.weight, streamed.head.weight)


def test_it_learns_and_keeps_every_samples_loss(splits: dict[str, ImageSet]) -> None:
    data, model = splits["public"].subset(np.arange(40)), small()
    history = loop.fit(model, data, Recipe(epochs=20, batch_size=10, lr=0.05), seed=0, what="test")
    assert history.losses.shape == (20, 40)
    assert (history.losses > 0).all()
    assert [row["loss"] for row in history.epochs] == pytest.approx(history.losses.mean(1).tolist(), rel=1e-5)
    # Forty images are learned by heart: 0.90 or more of them over three seeds.
    assert history.epochs[-1]["accuracy"] > 0.75
    assert (logits_of(model, data).argmax(1).numpy() == data.labels).mean() > 0.8


def test_inference_matches_a_plain_pass_and_leaves_a_network_that_can_be_trained(splits: dict[str, ImageSet]) -> None:
    data, model = splits["test"], small().eval()
    images = data.tensor().float() / 255
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logits, features = logits_of(model, data), features_of(model, data).penultimate
    with torch.no_grad():
        assert torch.allclose(logits, model(images), atol=1e-4)
        assert torch.allclose(torch.from_numpy(features), model.features(images), atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model(images[:2]).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_batch_has_two_images_for_every_process(splits: dict[str, ImageSet]) -> None:
    def planned(batch_size: int, processes: int) -> plan.Plan:
        here, cpu, rng = World(0, processes), torch.device("cpu"), torch.Generator()
        return plan.Plan(splits["reserve"], Recipe(batch_size=batch_size), here, cpu, rng, Hand())

    assert planned(4, 2).steps_per_epoch == 75
    for size, processes in ((3, 2), (1, 2), (1000, 151)):
        with pytest.raises(UserError, match=f"{processes} processes given, allowed for batches of "):
            planned(size, processes)


def test_device_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNPOISON_DEVICE", "cpu")
    assert pick_device().type == "cpu"
    monkeypatch.setenv("UNPOISON_COMPILE", "yes")
    with pytest.raises(UserError, match="UNPOISON_COMPILE: 'yes' given, allowed: 0, 1"):
        compiled(len)
    for wrong in ("toaster", "meta"):
        monkeypatch.setenv("UNPOISON_DEVICE", wrong)
        with pytest.raises(UserError, match=f"UNPOISON_DEVICE: '{wrong}' given, allowed: cpu, cuda"):
            pick_device()


def test_precision_comes_from_the_machine_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for able in (True, False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: {"avx512_bf16": able}, raising=False)
        monkeypatch.setenv("UNPOISON_PRECISION", "auto")
        with autocast(cpu):
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == (torch.bfloat16 if able else torch.float32)
        assert hardware()["device"].endswith(", bf16 autocast" if able else ", fp32")
        monkeypatch.setenv("UNPOISON_PRECISION", "fp32")
        with autocast(cpu):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    monkeypatch.setenv("UNPOISON_PRECISION", "bf16")
    with pytest.raises(UserError, match="UNPOISON_PRECISION: 'bf16' given, allowed: auto, fp32"):
        autocast(cpu)


@pytest.mark.gpu
def test_gpu_gives_what_the_cpu_gives(splits: dict[str, ImageSet], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNPOISON_PRECISION", "auto")
    results = []
    for device in ("cpu", "cuda"):
        monkeypatch.setenv("UNPOISON_DEVICE", device)
        results.append(logits_of(small().eval(), splits["reserve"]))
    assert torch.allclose(results[0], results[1], atol=0.05)


def test_a_last_batch_of_one_joins_the_one_before() -> None:
    assert [len(batch) for batch in plan.split(torch.arange(9), 4)] == [4, 5]
    assert [len(batch) for batch in plan.split(torch.arange(10), 4)] == [4, 4, 2]
    assert [len(batch) for batch in plan.split(torch.arange(1), 4)] == [1]
    assert [len(batch) for batch in plan.split(torch.arange(11), 4, least=4)] == [4, 7]
    assert [len(batch) for batch in plan.split(torch.arange(9), 4, drop_last=True)] == [4, 4]
    assert [len(batch) for batch in plan.split(torch.arange(8), 4, drop_last=True)] == [4, 4]
    data = ImageSet(np.zeros((9, 32, 32, 3), np.uint8), np.arange(9) % 2, ("a", "b"))
    model = models.build("vgg19_bn", num_classes=2, image_size=(32, 32), width=8)  # its last map is 1x1
    assert len(loop.fit(model, data, Recipe(epochs=1, batch_size=4), seed=0, what="test").epochs) == 1


def test_dropped_samples_have_no_loss(splits: dict[str, ImageSet]) -> None:
    data = splits["public"]  # 100 images: three batches of 32, four images left out
    history = loop.fit(small(), data, replace(RECIPE, drop_last=True), seed=0, what="test")
    assert np.isnan(history.losses).sum(1).tolist() == [4, 4]
    assert history.epochs[0]["loss"] == pytest.approx(np.nanmean(history.losses[0]), rel=1e-5)
    with pytest.raises(UserError, match="batch_size: 128 given, allowed with drop_last: 1 to 100"):
        loop.fit(small(), data, replace(RECIPE, batch_size=128, drop_last=True), seed=0, what="test")


def test_auxiliary_heads_are_trained_with_their_weight() -> None:
    class TwoHeads(torch.nn.Module):
        def logits_and_auxiliary(self, images: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
            return images, (2 * images,)

    logits, labels = torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 0])
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    expected += 0.4 * torch.nn.functional.cross_entropy(2 * logits, labels, reduction="none")
    assert torch.allclose(loop.cross_entropy(TwoHeads(), logits, labels)[1], expected)


def test_batches_shrink_with_the_images_area() -> None:
    assert [batch_size((side, side), 256) for side in (28, 32, 64, 224, 1000)] == [256, 256, 64, 5, 1]


@pytest.mark.parametrize(("lr", "schedule"), [(1e5, "constant"), (1e6, "onecycle"), (1e30, "constant")])
def test_a_training_that_diverges_ends_with_one_line(lr: float, schedule: Any, splits: dict[str, ImageSet]) -> None:
    recipe = replace(RECIPE, lr=lr, schedule=schedule)
    said = rf"^lr: {re.escape(str(lr))} given, with which the training of test diverged: the loss is not finite, first in epoch "
    with pytest.raises(ParameterError, match=said + r"\d of 2, step \d of 4, at lr \S+; allowed: a lower one"):
        loop.fit(small(), splits["public"].subset(np.arange(100)), recipe, seed=0, what="test")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("call", [1, 4, 7])
def test_the_first_bad_step_is_named(call: int, value: float, splits: dict[str, ImageSet]) -> None:
    calls = 0

    def loss(model: models.Classifier, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal calls
        calls += 1
        logits, losses = loop.cross_entropy(model, images, labels)
        # One sample's loss, the last of the batch: the mean of an epoch has to notice.
        return logits, losses.index_fill(0, torch.tensor([len(losses) - 1]), value) if calls == call else losses

    epoch, step = divmod(call - 1, 4)
    with pytest.raises(ParameterError, match=rf"first in epoch {epoch + 1} of 2, step {step + 1} of 4, at lr"):
        loop.fit(small(), splits["public"], RECIPE, seed=0, what="test", loss=loss)
    # Nothing is trained after the epoch in which it happened.
    assert calls == 4 * (epoch + 1)


# What no loss shows: damage of the last step, and logits that overflow in evaluation mode only.
@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("head.weight", torch.nan, r"1 of \d+ tensors are not finite \(head\.weight\) after epoch 2"),
        ("backbone.body.1.running_var", torch.inf, r"1 of \d+ tensors are not finite .*running_var"),
        ("head.weight", 3e38, "its logits are not finite after epoch 2"),
    ],
)
def test_a_network_that_is_not_finite_in_the_end_is_refused(
    name: str, value: float, said: str, splits: dict[str, ImageSet]
) -> None:
    steps = 0

    def damage(model: models.Classifier) -> None:
        nonlocal steps
        steps += 1
        if steps == 8:
            model.state_dict()[name].fill_(value)

    with pytest.raises(ParameterError, match=said):
        loop.fit(small(), splits["public"], RECIPE, seed=0, what="test", after_step=damage)


def test_a_network_that_is_not_finite_before_is_not_trained(splits: dict[str, ImageSet]) -> None:
    model = small()
    model.state_dict()["backbone.body.1.running_mean"][0] = torch.nan
    with pytest.raises(
        UserError, match=r"^test: 1 of \d+ tensors of the network are not finite \(backbone\.body\.1\.run"
    ):
        loop.fit(model, splits["public"], RECIPE, seed=0, what="test")


@pytest.mark.parametrize(("images", "size", "name"), [(9, 1, "resnet18"), (1, 4, "resnet18"), (1, 1, "densenet121")])
def test_batch_norm_over_a_single_value_is_refused_before_the_first_step(images: int, size: int, name: str) -> None:
    data = ImageSet(np.zeros((images, 8, 8, 3), np.uint8), np.arange(images) % 2, ("a", "b"))
    own = {"width": 8, "stem": "conv3_pool"} if name == "resnet18" else {"growth": 8}
    model = models.build(name, num_classes=2, image_size=(8, 8), **own)
    before, state = weights_of(model), torch.random.get_rng_state()
    with pytest.raises(
        ParameterError, match=rf"^batch_size: {size} given for (1 image|images) of 8x8 px, .*data\.reserve"
    ):
        loop.fit(model, data, Recipe(epochs=1, batch_size=size), seed=0, what="test")
    assert weights_of(model) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    # Where the last map is larger, one image is enough: 4x4 without the pooling, of 32 px.
    large = ImageSet(np.zeros((1, 32, 32, 3), np.uint8), np.zeros(1, np.int64), ("a", "b"))
    assert loop.fit(small(), large, Recipe(epochs=1, batch_size=1, lr=0.01), seed=0, what="test").epochs


def test_logits_and_features_that_are_not_finite_are_refused(splits: dict[str, ImageSet]) -> None:
    model, data = small(), splits["test"].subset(np.arange(20))
    model.head.weight.data[3] = torch.nan
    with pytest.raises(UserError, match=r"^logits: not finite for 20 of 20 images"):
        logits_of(model, data)
    with pytest.raises(UserError, match=r"^features of samples 0 to 19: not finite for 20 of 20 images"):
        features_of(model, data)
