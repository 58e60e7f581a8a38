"""Detection, purification and distillation: golden values, slow references, and behaviour on a planted backdoor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d

from conftest import Planted
from unpoison import models
from unpoison.compute.inference import logits_of
from unpoison.core.errors import UserError
from unpoison.data.imageset import ImageSet
from unpoison.detection import DETECTORS, ac, cd, ss
from unpoison.evaluation.metrics import accuracy, detection_metrics
from unpoison.purification import PURIFIERS, fst
from unpoison.robust.distillation import distill, distillation_loss
from unpoison.training.recipe import Recipe

# One row per detector: name, arguments, whether on the trained model, the AUROC it must reach on the planted poison.
# AC and SS look for clusters of features. The trained model is weak (ACC 0.6) and has them by luck only: over three seeds
# AC reached 0.999, 1.000 and 0.053. They get features that do separate, which is what they assume.
DETECTOR_TABLE: list[tuple[str, dict[str, Any], bool, float]] = [
    ("cd", {"steps": 30}, True, 0.8),
    ("ac", {}, False, 0.95),
    ("ss", {}, False, 0.95),
    ("strip", {"overlays": 30}, True, 0.8),
]
# One row per purifier: name, arguments, the highest ASR it may leave (1.0 for the baseline that is known to fail), and the
# accuracy it may cost. FST needs a higher learning rate than the published one on so weak a model.
PURIFIER_TABLE: list[tuple[str, dict[str, Any], float, float]] = [
    ("ft", {"epochs": 5, "batch_size": 32}, 1.0, 0.1),
    ("fst", {"epochs": 15, "batch_size": 32, "lr": 0.1}, 0.4, 0.25),
]


def asr(model: models.Classifier, planted: Planted) -> float:
    [some] = planted.truth.triggered(planted.test, planted.truth.parts[0])
    return accuracy(logits_of(model, ImageSet(some.images, some.wanted, planted.test.classes)), some.wanted)


def acc(model: models.Classifier, planted: Planted) -> float:
    return accuracy(logits_of(model, planted.test), planted.test.labels)


def test_tables_cover_every_method() -> None:
    assert [row[0] for row in DETECTOR_TABLE] == list(DETECTORS)
    assert [row[0] for row in PURIFIER_TABLE] == list(PURIFIERS)


def test_the_plant_took(planted: Planted) -> None:
    assert asr(planted.model, planted) > 0.9
    assert acc(planted.model, planted) > 0.4


class _Separating(torch.nn.Module):
    """A stand-in classifier: features are the image in 16 cells, and how strongly the trigger's corner alternates."""

    def features(self, images: torch.Tensor) -> torch.Tensor:
        corner = images[:, :, -8:, -8:]
        return torch.cat([adaptive_avg_pool2d(images.mean(1), 4).flatten(1), 4 * corner.diff().abs().mean((2, 3))], 1)


@pytest.mark.parametrize(("name", "arguments", "trained", "floor"), DETECTOR_TABLE)
def test_detector(name: str, arguments: dict[str, Any], trained: bool, floor: float, planted: Planted) -> None:
    before = {key: value.clone() for key, value in planted.model.state_dict().items()}
    model: Any = planted.model if trained else _Separating()
    scores = DETECTORS[name](model, planted.data, planted.reserve, seed=0, **arguments)
    assert scores.values.shape == (len(planted.data),)
    assert scores.values.dtype == np.float32
    assert np.isfinite(scores.values).all()
    assert detection_metrics(scores.values, planted.truth.mask)["auroc"] > floor
    assert all(torch.equal(value, before[key]) for key, value in planted.model.state_dict().items())


@pytest.mark.parametrize(("name", "arguments", "ceiling", "cost"), PURIFIER_TABLE)
def test_purifier(name: str, arguments: dict[str, Any], ceiling: float, cost: float, planted: Planted) -> None:
    before = {key: value.clone() for key, value in planted.model.state_dict().items()}
    purified = PURIFIERS[name](planted.model, planted.reserve, seed=0, **arguments)
    assert asr(purified, planted) <= ceiling
    assert acc(purified, planted) > acc(planted.model, planted) - cost
    assert all(torch.equal(value, before[key]) for key, value in planted.model.state_dict().items())
    assert not torch.equal(purified.head.weight, planted.model.head.weight)


def test_fst_keeps_the_heads_norm_and_turns_it_away(planted: Planted) -> None:
    original = planted.model.head.weight
    gentle, strong = (
        fst.purify(planted.model, planted.reserve, epochs=3, batch_size=32, alpha=alpha).head.weight for alpha in (0, 1)
    )
    for weight in (gentle, strong):
        assert torch.allclose(weight.norm(), original.norm(), rtol=1e-4)
    assert (strong * original).sum() < (gentle * original).sum()


def test_student_unlearns_the_trigger(planted: Planted, splits: dict[str, ImageSet]) -> None:
    # Clean images stand in for perfect variations: the teacher's backdoor must not come through the distillation.
    student = models.fresh_copy(planted.model, seed=1)
    recipe = Recipe(epochs=10, batch_size=64, lr=0.1, augment=["crop"])
    distill(student, splits["train"], planted.model, recipe, seed=0, temperature=4.0)
    assert asr(student, planted) < 0.3
    assert acc(student, planted) > 0.5


@pytest.mark.parametrize(("ce_temperature", "expected"), [(1.0, 0.379246), (10.0, 0.720326)])
def test_distillation_golden(ce_temperature: float, expected: float) -> None:
    student = torch.tensor([[2.0, 0, -1], [0.5, 1.5, -0.5]])
    teacher = torch.tensor([[1.0, 1, 0], [0, 3, -1]])
    loss = distillation_loss(
        student, teacher, torch.tensor([0, 1]), alpha=0.5, temperature=10, ce_temperature=ce_temperature
    )
    assert loss.mean().item() == pytest.approx(expected, abs=1e-5)


def test_total_variation_golden() -> None:
    ramp = (torch.arange(9.0) / 8).view(1, 1, 3, 3)
    assert cd.total_variation(ramp).item() == pytest.approx(0.104167, abs=1e-5)


def test_cd_equals_the_textbook_loop(planted: Planted) -> None:
    model, images = planted.model, planted.data.tensor(np.arange(6)).float() / 255
    fast = cd.distill_masks(model, images, torch.Generator().manual_seed(1), steps=6, lr=0.1, gamma=0.01, beta=10.0)
    generator, masks = torch.Generator().manual_seed(1), []
    theta = torch.ones(6, 1, 32, 32, requires_grad=True)
    optimizer = torch.optim.Adam([theta], 0.1, betas=(0.1, 0.1))
    target = model(images).detach()
    for _ in range(6):
        mask = (theta.tanh() + 1) / 2
        delta = torch.rand(6, 3, 1, 1, generator=generator)
        keep = (model(images * mask + (1 - mask) * delta) - target).abs().mean(1)
        loss = keep + 0.01 * mask.sum((1, 2, 3)) + 10.0 * cd.total_variation(mask)
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        masks.append((theta.detach().tanh() + 1) / 2)
    one = cd.distill_masks(model, images, torch.Generator().manual_seed(1), steps=1, lr=0.1, gamma=0.01, beta=10.0)
    assert torch.allclose(one, masks[0], atol=1e-5)
    # With such betas Adam nearly steps by the sign: where a gradient is all but 0, rounding decides.
    assert ((fast - masks[-1]).abs() < 1e-4).float().mean() > 0.99
    start = cd.distill_masks(model, images, generator, steps=0, lr=0.1, gamma=0.01, beta=10.0)
    assert start[0, 0, 0, 0].item() == pytest.approx(0.8807970779778824)


class _Fixed(torch.nn.Module):
    """A stand-in classifier whose features are the first pixels' values."""

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, 0, 0, :2] * 255 / 10

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.features(images)


@pytest.mark.parametrize(
    ("centred", "expected"),
    [(False, [0.85525, 1.76233, 2.51394, 11.14358]), (True, [10.3267, 5.3197, 2.4175, 50.0529])],
)
def test_spectral_signature_golden(centred: bool, expected: list[float]) -> None:
    # Features (1, 0), (2, 0.1), (3, -0.1), (10, 5) in tenths, shifted by one so that they fit unsigned bytes.
    features = np.array([[10, 0], [20, 1], [30, -1], [100, 50]])
    images = np.zeros((4, 2, 2, 1), np.uint8)
    shift = 1 if centred else 0
    images[:, 0, :, 0] = (features + np.array([0, shift])).clip(0)
    data = ImageSet(images, np.zeros(4, np.int64), ("a",))
    if not centred:
        images[2, 0, 1, 0] = 0
        expected = _reference_projection(images[:, 0, :, 0] / 10)
    values = ss.score(_Fixed(), data, data, centred=centred).values  # type: ignore[arg-type]
    assert values == pytest.approx(expected, rel=1e-3)


def _reference_projection(features: np.ndarray) -> list[float]:
    direction = np.linalg.svd(features - features.mean(0))[2][0]
    return np.abs(features @ direction).tolist()


def test_strip_needs_as_many_trusted_images_as_overlays(planted: Planted) -> None:
    with pytest.raises(UserError, match=r"detect\.strip\.overlays: 301 given, allowed: 1 to 300"):
        DETECTORS["strip"](planted.model, planted.data, planted.reserve, overlays=301)


def test_detection_metrics_on_a_case_done_by_hand() -> None:
    scores, poisoned = np.array([4, 3, 2, 1, 0], np.float32), np.array([1, 0, 1, 0, 0], bool)
    metrics = detection_metrics(scores, poisoned)
    assert metrics["auroc"] == pytest.approx(5 / 6)
    assert metrics["ap"] == pytest.approx((1 + 2 / 3) / 2)
    assert metrics["tpr_at_1fpr"] == metrics["tpr_at_5fpr"] == 0.5


def test_a_score_that_is_not_finite_is_refused(tmp_path: Any) -> None:
    from unpoison.data.scores import Scores, load_scores, save_scores

    save: Callable[..., None] = save_scores
    with pytest.raises(UserError, match=r"detect\.cd: 1 of 2 scores are not finite"):
        save(Scores(np.array([1, np.nan], np.float32), 1), tmp_path / "s", method="cd", parameters={})
    save(Scores(np.array([1, 2], np.float32), 1), tmp_path / "s", method="cd", parameters={})
    assert load_scores(tmp_path / "s").values.tolist() == [1, 2]


def test_silhouettes_to_a_part_are_close_to_the_exact_ones() -> None:
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(0, 1, (900, 4)), rng.normal(1.5, 1, (300, 4))]).astype(np.float32)
    clusters = np.repeat([0, 1], [900, 300]).astype(np.int32)
    exact = ac.silhouettes(rows, clusters, rng)
    assert np.abs(ac.silhouettes(rows, clusters, rng, exact=1199) - exact).max() < 0.03
    lonely = np.zeros(1200, np.int32)
    lonely[7] = 1
    assert ac.silhouettes(rows, lonely, rng, exact=1199)[7] == 0
