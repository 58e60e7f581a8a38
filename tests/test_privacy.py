"""DP-SGD: its step by hand and against a plain loop, what it draws, what it spends by Opacus, and what is refused."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contract import weights_of
from small_networks import strided
from unpoison import models
from unpoison.compute.checkpoints import Checkpoints
from unpoison.compute.distributed import World
from unpoison.core.errors import ParameterError, UserError
from unpoison.core.files import sha256_json
from unpoison.core.seeding import torch_rng
from unpoison.data.imageset import ImageSet
from unpoison.models.classifier import Backbone, Classifier, GlobalAverage
from unpoison.training import privacy, shaping
from unpoison.training.loop import fit
from unpoison.training.privacy import Privacy, Private, PrivateRecipe, privacy_of, private
from unpoison.training.recipe import Recipe
from unpoison.training.shaping import Shaped, clipped_sum

PLAIN = Recipe(epochs=2, batch_size=16, lr=0.1, momentum=0.0, weight_decay=0.0, schedule="constant")
HAND = {"clip": 0.8, "noise": 0.5, "seed": 3, "what": "test"}
NEEDS_OPACUS = "Opacus is not installed: `pip install '.[privacy]'`"


def small() -> Classifier:
    return strided((8, 8), seed=0, norm=None)


def linear() -> Classifier:
    """The product of two channels of one pixel with the weights 1 and 0."""
    description = {"name": "linear", "mean": [0.0, 0.0], "std": [1.0, 1.0], "image_size": [1, 1]}
    model = Classifier(Backbone(nn.Identity(), GlobalAverage()), nn.Linear(2, 1, bias=False), description)
    model.head.weight.data.copy_(torch.tensor([[1.0, 0.0]]))
    return model


def half_square(model: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    outputs = model(images)
    return outputs, (outputs[:, 0] - labels).square() / 2


# Outputs 3, 0.3 and 2, of residuals 1, 1 and 0: gradients (3, 4), which is clipped to (0.6, 0.8), (0.3, 0.4) and (0, 0).
IMAGES = torch.tensor([[3.0, 4.0], [0.3, 0.4], [2.0, 5.0]])[:, :, None, None]
LABELS = torch.tensor([2.0, -0.7, 2.0])


def gradient_of(hand: Shaped, count: int = 3) -> Tensor:
    """The gradient of a step of the linear model on the first of the three samples."""
    model = linear()
    parts = IMAGES[:count], LABELS[:count], torch.arange(count)
    objective = hand.objective(half_square, model, *parts)
    assert objective.losses.tolist() == pytest.approx([0.5, 0.5, 0.0][:count], abs=1e-6)
    assert objective.logits.flatten().tolist() == pytest.approx([3.0, 0.3, 2.0][:count], abs=1e-6)
    hand.backward(objective, [model.head.weight], count, World())
    assert model.head.weight.grad is not None
    return model.head.weight.grad


def test_a_step_on_three_samples_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = torch.tensor([[0.3, 0.4]])
    assert torch.allclose(gradient_of(Shaped(clip=1.0, noise=0.0, seed=0, what="test")), expected, atol=1e-6)
    # No clip: (3.3, 4.4) / 3; a tight one, by which both of the lengths 5 and 0.5 become 0.1.
    for clip, mean in ((9.0, [[1.1, 4.4 / 3]]), (0.1, [[0.04, 0.16 / 3]])):
        found = gradient_of(Shaped(clip=clip, noise=0.0, seed=0, what="test"))
        assert torch.allclose(found, torch.tensor(mean), atol=1e-6)
    # Noise is on the sum, in units of the clip, and each step's is of its own.
    hand = Shaped(clip=0.1, noise=2.0, seed=7, what="test")
    hand.start_epoch(4, 9)
    for step in range(2):
        noise = torch.randn(1, 2, generator=torch_rng(7, "fit/test/noise", 4, step))
        assert torch.allclose(gradient_of(hand), torch.tensor([[0.04, 0.16 / 3]]) + 0.2 * noise / 3, atol=1e-6)
    # Sample by sample it is the same.
    monkeypatch.setitem(shaping._AT_A_TIME, "cpu", 2)
    assert torch.allclose(gradient_of(Shaped(clip=1.0, noise=0.0, seed=0, what="test")), expected, atol=1e-6)


def test_a_private_step_divides_by_the_expected_size_whatever_was_drawn() -> None:
    recipe = private(replace(PLAIN, batch_size=2), Privacy(noise=0.5, clip=1.0))
    hand = Private(recipe, 3, seed=0, what="test")
    noise = torch.randn(1, 2, generator=torch_rng(0, "fit/test/noise", 0, 0))
    # Of no sample at all there is noise still.
    for count, total in ((3, [0.9, 1.2]), (1, [0.6, 0.8]), (0, [0.0, 0.0])):
        hand.start_epoch(0, 1)
        found = gradient_of(hand, count)
        assert torch.allclose(found, (torch.tensor([total]) + 0.5 * noise) / 2, atol=1e-6)


def test_clipping_is_over_all_weights_together() -> None:
    gradients = [torch.tensor([[3.0], [0.0]]), torch.tensor([[[0.0, 4.0]], [[0.0, 0.0]]])]
    first, second = clipped_sum(gradients, 2.5)
    assert first.tolist() == [1.5]
    assert second.tolist() == [[0.0, 2.0]]


def test_equals_a_plain_loop_over_samples(splits: dict[str, ImageSet]) -> None:
    data, model, plain = splits["public"].subset(np.arange(40)), small(), small()
    history = fit(model, data, PLAIN, seed=3, what="test", hand=Shaped(**HAND))
    images, labels, order = data.tensor().float() / 255, torch.from_numpy(data.labels), torch_rng(3, "fit/test")
    for epoch in range(2):
        for step, index in enumerate(torch.randperm(40, generator=order).split(16)):
            sums = [torch.zeros_like(weight) for weight in plain.parameters()]
            for sample in index.tolist():
                loss = F.cross_entropy(plain(images[[sample]]), labels[[sample]])
                assert history.losses[epoch, sample] == pytest.approx(loss.item(), abs=1e-4)
                gradients = torch.autograd.grad(loss, list(plain.parameters()))
                length = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
                for value, gradient in zip(sums, gradients, strict=True):
                    value += gradient * min(1.0, 0.8 / length)
            noise = torch_rng(3, "fit/test/noise", epoch, step)
            for weight, value in zip(plain.parameters(), sums, strict=True):
                value += 0.4 * torch.randn(value.shape, generator=noise)
                weight.data -= 0.1 * value / len(index)
    for found, expected in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(found, expected, atol=1e-5)


@pytest.fixture
def noise_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there may be no Opacus: the noise as given, and nobody asked what it spends."""
    monkeypatch.setattr(privacy, "check_installed", lambda: None)
    spent = {"epsilon": 5.0, "delta": 0.01, "noise": 1.0, "clip": 1.0}
    monkeypatch.setattr(privacy, "spending", lambda privacy, **_: spent)


@pytest.mark.usefixtures("noise_of_one")
def test_the_same_seed_gives_the_same_bytes_and_a_killed_training_too(
    splits: dict[str, ImageSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, recipe = splits["public"].subset(np.arange(40)), private(PLAIN, Privacy(noise=1.0))

    def train(seed: int, kept: Checkpoints | None = None) -> bytes:
        model = small()
        history = fit(model, data, recipe, seed=seed, what="test", checkpoints=kept)
        assert history.spent["epsilon"] == 5.0
        return weights_of(model) + history.losses.tobytes()

    whole, save = train(0), Checkpoints.save
    assert train(0) == whole != train(1)

    def killed(checkpoints: Checkpoints, *state: Any) -> None:
        save(checkpoints, *state)
        raise KeyboardInterrupt

    def checkpoints() -> Checkpoints:
        return Checkpoints(tmp_path, sha256_json("test"), what="test", unit="epoch")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            train(0, checkpoints())
    assert train(0, checkpoints()) == whole


@pytest.mark.usefixtures("noise_of_one")
def test_every_step_draws_each_sample_with_the_same_probability() -> None:
    hand = Private(private(PLAIN, Privacy(noise=1.0)), 64, seed=0, what="test")
    generator, cut = torch_rng(0, "test"), lambda order: list(order.split(16))
    drawn = [batch for epoch in range(500) for batch in hand.batches(epoch, 64, generator, cut)]
    assert len(drawn) == 2000
    # Each by itself: a binomial number of samples, of mean 16 and deviation 3.46, and every sample about 500 times.
    sizes = torch.tensor([len(batch) for batch in drawn]).double()
    assert sizes.mean().item() == pytest.approx(16, abs=0.3)
    assert sizes.std().item() == pytest.approx(math.sqrt(64 * 0.25 * 0.75), abs=0.25)
    times = torch.cat(drawn).bincount(minlength=64)
    assert 400 < times.min() <= times.max() < 600
    assert all(len(batch.unique()) == len(batch) for batch in drawn)


@pytest.mark.usefixtures("noise_of_one")
def test_epochs_that_draw_few_samples_or_none(splits: dict[str, ImageSet]) -> None:
    # A sample at a time of four: a third of the batches are empty, and one epoch in a hundred.
    data = splits["public"].subset(np.arange(4))
    recipe = private(replace(PLAIN, epochs=60, batch_size=1, augment=("translate", "rotation")), Privacy(noise=1.0))
    history = fit(strided((8,), seed=0, norm=None), data, recipe, seed=0, what="test")
    drawn = np.isfinite(history.losses).sum(1)
    assert drawn.min() == 0
    assert drawn.max() == 4
    assert [row["loss"] for row, count in zip(history.epochs, drawn, strict=True) if not count] == [0.0] * int(
        (drawn == 0).sum()
    )


@pytest.mark.parametrize(
    ("count", "delta"),
    [(1, 0.1), (2, 0.1), (10, 0.1), (11, 0.01), (100, 0.01), (101, 1e-3), (4800, 1e-4), (60_000, 1e-5)],
)
def test_delta_is_a_power_of_ten_up_to_one_sample(count: int, delta: float) -> None:
    assert privacy.default_delta(count) == pytest.approx(delta)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({}, r"^noise: null given, allowed: a noise multiplier, or in its place epsilon, a budget$"),
        ({"noise": None, "clip": 2.0}, r"^noise: null given"),
        ({"noise": 1.0, "epsilon": 8.0}, r"^noise: 1\.0 given, allowed beside epsilon 8\.0: null$"),
        ({"noise": 0.0}, r"^noise: 0\.0 given; input should be greater than or equal to 0\.001$"),
        ({"noise": 101}, r"^noise: 101 given; input should be less than or equal to 100$"),
        ({"noise": -1.0}, r"^noise: -1\.0 given"),
        ({"noise": math.nan}, r"^noise: nan given; input should be a finite number$"),
        ({"epsilon": math.inf}, r"^epsilon: inf given; input should be a finite number$"),
        ({"epsilon": 0}, r"^epsilon: 0 given; input should be greater than 0$"),
        ({"epsilon": -8}, r"^epsilon: -8 given"),
        ({"epsilon": True}, r"^epsilon: True given"),
        ({"epsilon": "8"}, r"^epsilon: '8' given"),
        ({"noise": 1, "delta": 0.0}, r"^delta: 0\.0 given; input should be greater than 0$"),
        ({"noise": 1, "delta": 1.0}, r"^delta: 1\.0 given; input should be less than 1$"),
        ({"noise": 1, "clip": 0.0}, r"^clip: 0\.0 given"),
        ({"noise": 1, "sigma": 2}, r"^sigma: unknown key, allowed: noise, epsilon, delta, clip$"),
    ],
)
def test_settings_that_are_refused(values: dict[str, Any], line: str) -> None:
    with pytest.raises(ParameterError, match=line):
        privacy_of(values)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"whiten": True},
            r"^whiten: true given, allowed with privacy: false, as its filters are made from the images",
        ),
        ({"sam": 0.1}, r"^sam: 0\.1 given, allowed with privacy: 0, as it takes a second look"),
    ],
)
def test_what_is_not_accounted_for_is_refused(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ParameterError, match=line):
        private(replace(PLAIN, **changes), Privacy(noise=1.0))


def test_batch_norm_is_refused_before_the_first_step(splits: dict[str, ImageSet]) -> None:
    data = splits["public"].subset(np.arange(8))
    normed = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.InstanceNorm2d(8, track_running_stats=True), nn.ReLU())
    about = {**small().description}
    tracked = Classifier(Backbone(normed, GlobalAverage()), nn.Linear(8, 10), about)
    for model, name in ((strided((8, 8), seed=0), "BatchNorm2d"), (tracked, "InstanceNorm2d")):
        before = weights_of(model)
        with pytest.raises(UserError, match=rf"^test: a network with {name} given, .* norm: group are"):
            fit(model, data, PLAIN, seed=0, what="test", hand=Shaped(**HAND))
        assert weights_of(model) == before


def test_a_loss_of_its_own_is_refused_in_private(splits: dict[str, ImageSet]) -> None:
    data, recipe = splits["public"].subset(np.arange(8)), private(PLAIN, Privacy(noise=1.0))
    head = small().head.parameters()
    for more in ({"loss": half_square}, {"hand": Shaped(**HAND)}, {"parameters": head}):
        with pytest.raises(UserError, match=r"^test: a private recipe given, allowed: one without privacy"):
            fit(small(), data, recipe, seed=0, what="test", **more)


def test_without_opacus_one_line_names_the_command(
    splits: dict[str, ImageSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(privacy, "find_spec", lambda name: None)
    with pytest.raises(
        ParameterError, match=r"^privacy: given, .*allowed: `pip install '\.\[privacy\]'` first, or null$"
    ):
        fit(small(), splits["public"], private(PLAIN, Privacy(noise=1.0)), seed=0, what="test")


def test_nothing_imports_opacus_before_it_is_asked() -> None:
    library = Path(privacy.__file__).parents[1]
    naming = [path for path in library.rglob("*.py") if "opacus" in path.read_text()]
    assert [path.name for path in naming] == ["privacy.py"]
    for node in ast.parse(naming[0].read_text()).body:
        assert not isinstance(node, ast.Import | ast.ImportFrom) or "opacus" not in ast.unparse(node)


def test_a_batch_is_no_larger_than_the_set() -> None:
    with pytest.raises(
        ParameterError, match=r"^batch_size: 17 given, allowed with privacy: up to the 16 training samples$"
    ):
        privacy.spending(Privacy(noise=1.0), batch_size=17, count=16, steps=1)


def accountant(noise: float, rate: float, steps: int, delta: float) -> float:
    """Epsilon by Opacus' accountant, which is told of each step."""
    accountants = pytest.importorskip("opacus.accountants", reason=NEEDS_OPACUS)
    found = accountants.RDPAccountant()
    for _ in range(steps):
        found.step(noise_multiplier=noise, sample_rate=rate)
    return float(found.get_epsilon(delta))


@pytest.mark.filterwarnings("ignore:Optimal order:UserWarning")
@pytest.mark.parametrize(
    ("noise", "rate", "steps", "delta"), [(1.0, 0.25, 8, 0.01), (0.6, 0.01, 300, 1e-5), (3.0, 1.0, 20, 1e-4)]
)
def test_epsilon_is_that_of_opacus(noise: float, rate: float, steps: int, delta: float) -> None:
    expected = accountant(noise, rate, steps, delta)
    assert privacy.epsilon_of(noise, rate=rate, steps=steps, delta=delta) == pytest.approx(expected, rel=1e-9)


def test_without_sampling_epsilon_is_that_of_the_gaussian_mechanism() -> None:
    pytest.importorskip("opacus", reason=NEEDS_OPACUS)
    # Of order a its divergence is a / (2 noise²) in each step (Mironov 2017, corollary 3); converted as Canonne, Kamath and
    # Steinke 2020, proposition 12, do.
    orders = [*(1 + number / 10 for number in range(1, 100)), *range(12, 64)]
    log = math.log(1e-4)
    expected = min(
        20 * order / (2 * 9) - (log + math.log(order)) / (order - 1) + math.log((order - 1) / order) for order in orders
    )
    assert privacy.epsilon_of(3.0, rate=1.0, steps=20, delta=1e-4) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("epsilon", [0.12, 8.0, 1000.0])
def test_the_noise_of_a_budget_spends_it(epsilon: float) -> None:
    pytest.importorskip("opacus", reason=NEEDS_OPACUS)
    spent = privacy.spending(Privacy(epsilon=epsilon), batch_size=128, count=4800, steps=76)
    assert 0.999 * epsilon <= spent["epsilon"] <= epsilon
    assert spent["delta"] == pytest.approx(1e-4)
    # More noise spends less.
    more = replace(Privacy(), noise=2 * spent["noise"])
    assert privacy.spending(more, batch_size=128, count=4800, steps=76)["epsilon"] < epsilon


def test_a_budget_that_no_noise_leads_to() -> None:
    pytest.importorskip("opacus", reason=NEEDS_OPACUS)
    line = r"^privacy\.epsilon: 0\.01 given, allowed with delta 0\.0001 and 760 steps .* 0\.0267: 0\.0\d+ to 4\.\d+e\+08, which"
    with pytest.raises(ParameterError, match=line) as refused:
        privacy.spending(Privacy(epsilon=0.01), batch_size=128, count=4800, steps=760)
    # What it says is allowed.
    least = float(str(refused.value).partition("0.0267: ")[2].partition(" to ")[0])
    assert privacy.spending(Privacy(epsilon=least), batch_size=128, count=4800, steps=760)["epsilon"] <= least
    with pytest.raises(ParameterError, match=r"^privacy\.epsilon: 1000000000000\.0 given"):
        privacy.spending(Privacy(epsilon=1e12), batch_size=128, count=4800, steps=760)


def test_a_private_training_says_what_it_spent(splits: dict[str, ImageSet]) -> None:
    pytest.importorskip("opacus", reason=NEEDS_OPACUS)
    data = splits["public"].subset(np.arange(40))
    history = fit(small(), data, private(PLAIN, Privacy(noise=1.5, clip=0.5)), seed=0, what="test")
    assert history.spent == {
        "epsilon": pytest.approx(privacy.epsilon_of(1.5, rate=0.4, steps=6, delta=0.01)),
        "delta": 0.01,
        "noise": 1.5,
        "clip": 0.5,
    }


def networks() -> list[tuple[str, Callable[[], models.Classifier]]]:
    return [
        ("resnet18", lambda: models.build("resnet18", num_classes=10, image_size=32, width=8, norm="group")),
        ("vit", lambda: models.build("timm:test_vit", num_classes=10, image_size=32)),
    ]


@pytest.mark.parametrize(("name", "make"), networks())
def test_networks_without_batch_norm_have_gradients_of_single_samples(
    name: str, make: Callable[[], models.Classifier], splits: dict[str, ImageSet]
) -> None:
    # With a clip that nothing reaches and no noise the step is that of plain training.
    data, found = splits["public"].subset(np.arange(4)), []
    for hand in (None, Shaped(clip=1e6, noise=0.0, seed=0, what="test")):
        model = make()
        fit(model, data, replace(PLAIN, epochs=1, batch_size=4, lr=0.01), seed=0, what="test", hand=hand)
        found.append(torch.cat([weight.detach().flatten() for weight in model.parameters()]))
    assert torch.allclose(*found, atol=1e-5)


def test_a_private_recipe_keeps_its_privacy_when_it_is_changed() -> None:
    changed = replace(private(PLAIN, Privacy(noise=1.0)), epochs=5)
    assert isinstance(changed, PrivateRecipe)
    assert changed == private(replace(PLAIN, epochs=5), Privacy(noise=1.0)) != replace(PLAIN, epochs=5)
