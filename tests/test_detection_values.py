"""The detectors' formulas: by hand, beside a slow plain version, or as the originals' own code gave them."""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from planted import Planted
from unpoison import models
from unpoison.core.errors import ParameterError, UserError
from unpoison.data.features import Features
from unpoison.data.imageset import ImageSet
from unpoison.data.scores import Scores
from unpoison.detection import (
    DETECTORS,
    abl,
    beatrix,
    ensemble,
    fct,
    frequency,
    ibd_psc,
    psbd,
    scale_up,
    scan,
    sentinet,
    spectre,
    ss,
)
from unpoison.detection.detector import Detector, Suspect
from unpoison.evaluation.metrics import detection_metrics
from unpoison.models.classifier import Backbone, Classifier
from unpoison.training.bounds import Ascent, held

CPU = torch.device("cpu")


def of_features(rows: Any, labels: Any, trusted: Any, trusted_labels: Any) -> Suspect:
    """For detectors that look at features and labels alone."""
    classes = tuple(map(str, range(max(*labels, *trusted_labels) + 1)))
    images, features = [], []
    for values, given in ((rows, labels), (trusted, trusted_labels)):
        values = np.array(values, np.float32)
        images.append(ImageSet(np.zeros((len(values), 2, 2, 1), np.uint8), np.array(given, np.int64), classes))
        features.append(Features(values, values))
    return Suspect(
        model=None,  # type: ignore[arg-type]
        data=images[0],
        features=features[0],
        reserve=images[1],
        reserve_features=features[1],
    )


def several_classes(
    rng: np.random.Generator, spread: np.ndarray, share: float, shift: np.ndarray
) -> tuple[Suspect, np.ndarray]:
    """Five classes of normal features, 200 suspect and 60 trusted each, with poison in class 0; and its mask."""
    means = rng.normal(0, 5, (5, len(spread)))
    labels, trusted_labels = np.repeat(np.arange(5), 200), np.repeat(np.arange(5), 60)
    rows, trusted = (means[k] + rng.normal(0, spread, (len(k), len(spread))) for k in (labels, trusted_labels))
    poisoned = np.arange(1000) < share * 200
    rows[poisoned] += shift
    return of_features(rows, labels, trusted, trusted_labels), poisoned


# SCAn


def test_a_mean_is_shrunk_by_how_much_is_known_of_it() -> None:
    # Three samples that sum to 6: 2 times 6 / (3 times 2 + 3).
    assert scan.null_mean(np.array([[1.0], [2], [3]]), np.array([[2.0]]), np.array([[3.0]])) == pytest.approx(12 / 9)


def test_likelihood_ratio_by_hand() -> None:
    # Distances to 0 are 1, 9, 25, 49; to the means 2 and 6 of the halves 1 each.
    rows, side = np.array([[1.0], [3], [5], [7]]), np.array([False, False, True, True])
    assert scan.likelihood_ratio(rows, side, np.zeros(1)) == pytest.approx((84 - 4) / 4)
    # And these halves are what a split ends at, whichever of them is named first.
    assert scan.split(rows, 0).tolist() in (side.tolist(), (~side).tolist())
    assert not scan.split(np.ones((3, 2)), 0).any()


def test_anomaly_index_by_hand() -> None:
    # Median 3, deviations 2, 1, 0, 1, 97 with median 1.
    assert scan.anomaly_index(np.array([1.0, 2, 3, 4, 100])) == pytest.approx(np.array([-2, -1, 0, 1, 97]) / 1.4826)


def test_covariances_equal_the_loop_over_samples() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=60)
    rows = rng.normal(size=(4, 3))[labels] * 3 + rng.normal(size=(60, 3))
    between, within = scan.covariances(rows, labels)
    # The same, sample by sample, with plain inverses.
    x = rows - rows.mean(0)
    means, last = np.stack([x[labels == label].mean(0) for label in range(4)]), (np.zeros((3, 3)), np.zeros((3, 3)))
    for step in range(scan.MOST):
        u = np.stack([means[label] for label in labels])
        s_u, s_e = np.cov(u.T), np.cov((x - u).T)
        if step and np.linalg.norm(s_u - last[0]) + np.linalg.norm(s_e - last[1]) <= 1e-5:
            break
        last = s_u, s_e
        means = np.zeros((4, 3))
        for vector, label in zip(x, labels, strict=True):
            means[label] += s_u @ np.linalg.inv((labels == label).sum() * s_u + s_e) @ vector
    assert np.allclose(between, s_u, rtol=1e-6)
    assert np.allclose(within, s_e, rtol=1e-6)


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_scan_finds_a_second_group_whatever_its_share(share: float) -> None:
    suspect, poisoned = several_classes(np.random.default_rng(0), np.ones(8), share, np.r_[6.0, np.zeros(7)])
    scores = scan.score(suspect)
    assert detection_metrics(scores.values, poisoned)["auroc"] > 0.99
    assert scores.flagged is not None
    assert (scores.flagged == poisoned).mean() > 0.99


# SPECTRE


def test_spectre_finds_poison_in_a_direction_that_varies_little() -> None:
    # Six of the small direction's deviations, a tenth of the large one's: spectral signatures see the large one alone.
    spread = np.r_[10.0, np.ones(7)]
    suspect, poisoned = several_classes(np.random.default_rng(0), spread, 0.1, np.r_[0, 6.0, np.zeros(6)])
    scores = spectre.score(suspect, expected=0.05)
    assert detection_metrics(scores.values, poisoned)["auroc"] > 0.95
    assert scores.flagged is not None
    assert scores.flagged[poisoned].all()
    assert set(suspect.data.labels[scores.flagged]) == {0}
    assert detection_metrics(ss.score(suspect, centre="class").values, poisoned)["auroc"] < 0.8


def test_quantum_entropy_by_hand() -> None:
    # Second moments 4 and 1, so that exponents are 2 and 0: weights e² and 1.
    rows = np.array([[2.0, 1], [2, -1], [-2, 1], [-2, -1]])
    weight = np.exp(2)
    assert spectre.quantum_entropy(rows, 2.0) == pytest.approx((4 * weight + 1) / (weight + 1))
    assert spectre.quantum_entropy(rows, 0.0) == pytest.approx(5 / 2)


# Beatrix


def test_gram_matrices_by_hand() -> None:
    # Channels (1, 2) and (3, 0): products 5, 3, 9; of the squares 17, 9, 81.
    maps = torch.tensor([[[1.0, 2], [3, 0]]])
    assert beatrix.grams(maps, 1, True).tolist() == [[5, 3, 9]]
    assert beatrix.grams(maps, 2, True)[0] == pytest.approx(np.sqrt([17, 9, 81]))
    assert beatrix.grams(maps, 2, False)[0] == pytest.approx(np.sqrt([5, 3, 9]))


def test_deviation_by_hand() -> None:
    entries = np.array([[1, 10], [2, 10], [3, 10], [4, 10], [90, 10]], np.float32)
    # Median 3, median deviation 1: from 1 to 5 with a band of 2. The other column leaves no room.
    low, high = beatrix.bounds_of(entries, 2.0)
    assert (low.tolist(), high.tolist()) == ([1, 10], [5, 10])
    # 0.5 lies half of 1 below, 12 a fifth of 10 above; 7 lies 2 / 5 above, 5 half of 10 below.
    measured = beatrix.excess(np.array([[0.5, 12], [7, 5]], np.float32), low, high, 0.0)
    assert measured == pytest.approx([(0.5 + 0.2) / 2, (0.4 + 0.5) / 2])


# SCALE-UP


class Brightness(nn.Module):
    """Class 1 for images whose mean is above a half, else class 0."""

    def forward(self, images: Tensor) -> Tensor:
        mean = images.mean((1, 2, 3))
        return torch.stack([torch.full_like(mean, 0.5), mean], 1)


def grey(*levels: int) -> ImageSet:
    return ImageSet(
        np.repeat(levels, 192).reshape(-1, 8, 8, 3).astype(np.uint8), np.zeros(len(levels), np.int64), ("a", "b")
    )


def test_scaled_consistency_by_hand(monkeypatch: pytest.MonkeyPatch, suspect: Suspect) -> None:
    monkeypatch.setattr(scale_up, "frozen", lambda *_: Brightness())
    # 0.1 turns at a factor of 5 and stays turned; 0.04 never does up to 11 but there, 0.44; 0.6 is bright throughout.
    data, logits = grey(26, 10, 153), np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    trusted, trusted_logits = grey(26, 10), np.array([[1, 0], [1, 0]], np.float32)
    given = Suspect(
        model=suspect.model,
        data=data,
        features=Features(logits, logits),
        reserve=trusted,
        reserve_features=Features(trusted_logits, trusted_logits),
    )
    scores = scale_up.score(given)
    assert scores.values == pytest.approx([0.2, 1, 1])
    assert scores.flagged.tolist() == [False, True, True]  # type: ignore[union-attr]
    # Trusted shares are 0.2 and 1: a mean of 0.6, a deviation of 0.8 / sqrt 2.
    assert scale_up.score(given, standardise="all").values == pytest.approx(np.array([-0.4, 0.4, 0.4]) / (0.8 / 2**0.5))


# IBD-PSC


def test_the_last_norms_are_amplified_and_nothing_else(planted: Planted) -> None:
    amplified = ibd_psc.amplified(planted.model, 3, 1.5)
    norms = [name for name, module in planted.model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    changed = {f"{name}.{part}" for name in norms[-3:] for part in ("weight", "bias")}
    for (name, before), after in zip(planted.model.state_dict().items(), amplified.state_dict().values(), strict=True):
        assert torch.equal(after, before * 1.5 if name in changed else before), name


def test_consistency_of_amplified_models_equals_the_plain_loop(suspect: Suspect) -> None:
    given = suspect.subset(np.arange(6))
    images = given.data.tensor().float() / 255
    start, wrong = ibd_psc.first_layers(given, 1.5, 0.2, CPU)
    assert start is not None
    errors, total = [], torch.zeros(6)
    with torch.no_grad():
        for count in range(1, start + 1):
            model = ibd_psc.amplified(given.model, count, 1.5).eval()
            trusted = model(given.reserve.tensor().float() / 255).argmax(1).numpy()
            errors.append((trusted != given.reserve.labels).mean())
        for count in (start + 1, start + 2):
            probabilities = ibd_psc.amplified(given.model, count, 1.5).eval()(images).softmax(1)
            total += probabilities[torch.arange(6), torch.from_numpy(given.predicted)]
    assert errors[-1] == wrong > 0.2
    assert max(errors[:-1], default=0) <= 0.2
    scores = ibd_psc.score(given, models=2, error=0.2)
    assert scores.values == pytest.approx(total.numpy() / 2, abs=1e-4)
    assert scores.forward_passes == 2


# PSBD


def test_dropout_stands_behind_every_residual_addition(suspect: Suspect) -> None:
    given = suspect.subset(np.arange(4))
    images = given.data.tensor().float() / 255
    network = psbd._Dropping(given.model, CPU, 3)
    assert network.probabilities(images, 0.0) == pytest.approx(
        given.model(images).softmax(1).detach().numpy(), abs=1e-4
    )
    dropped = network.probabilities(images, 0.5, 7)
    # The same with hooks on the blocks: dropout behind the ReLU is dropout before it, as masks only scale or clear.
    model = deepcopy(given.model)
    blocks = [module for module in model.backbone.body if hasattr(module, "shortcut")]
    generator = torch.Generator().manual_seed(network.generator.initial_seed())

    def drop(_: nn.Module, __: Any, out: Tensor) -> Tensor:
        return out * torch.empty_like(out).bernoulli_(0.5, generator=generator) * 2

    for block in blocks:
        block.register_forward_hook(drop)
    assert len(blocks) == 8
    with torch.no_grad():
        plain = model(images.contiguous(memory_format=torch.channels_last)).softmax(1).numpy()
    assert dropped == pytest.approx(plain, abs=1e-4)
    assert np.abs(dropped - network.probabilities(images, 0.5, 8)).max() > 1e-3


def test_without_additions_dropout_stands_behind_the_activations() -> None:
    model = models.build("compact", num_classes=2, image_size=(16, 16), width=8).eval()
    network = psbd._Dropping(model, CPU, 0)
    images = torch.rand(2, 3, 16, 16)
    assert network.probabilities(images, 0.0) == pytest.approx(model(images).softmax(1).detach().numpy(), abs=1e-4)
    assert np.abs(network.probabilities(images, 0.5) - network.probabilities(images, 0.0)).max() > 1e-4


def test_the_rate_is_one_at_which_trusted_predictions_shift(monkeypatch: pytest.MonkeyPatch, suspect: Suspect) -> None:
    # Shares of trusted and of training images by rate: 0.6 shifts enough with the largest difference, 0.9 shifts most.
    shares = dict(zip(psbd.RATES, [0, 0.1, 0.3, 0.5, 0.7, 0.85, 0.88, 0.9, 0.95], strict=True))
    training = dict(zip(psbd.RATES, [0, 0, 0, 0, 0.2, 0.6, 0.7, 0.8, 0.9], strict=True))

    def shifted(_: Any, data: ImageSet, __: Any, rate: float) -> float:
        return (shares if data is suspect.reserve else training)[rate]

    monkeypatch.setattr(psbd, "_shifted", shifted)
    assert psbd._choose(None, suspect, 0)[0] == 0.6  # type: ignore[arg-type]
    monkeypatch.setattr(psbd, "SHIFTED", 0.99)
    assert psbd._choose(None, suspect, 0)[0] == 0.9  # type: ignore[arg-type]


# SentiNet


def test_a_region_is_where_the_label_comes_from() -> None:
    # A network that sees the brightness of each quarter and adds up two of them: the label hangs on the brighter one.
    class Quarters(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.avg_pool2d(images.mean(1, keepdim=True), 8)

    backbone = Backbone(Quarters(), nn.Flatten())
    head = nn.Linear(4, 2)
    head.weight.data = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 1]])
    model = Classifier(backbone, head, {"mean": [0.0] * 3, "std": [1.0] * 3})
    images = torch.zeros(2, 3, 16, 16)
    images[0, :, :8, :8] = 1
    masks = sentinet.regions(model, images, torch.tensor([0, 1]), 0.85)
    assert masks[0, 0, :4, :4].all()
    assert not masks[0, 0, 8:].any()
    # Nothing speaks for the second label: there is no region.
    assert not masks[1].any()


def test_the_envelope_is_the_highest_clean_points() -> None:
    # Of each tenth of confidence the higher point: (0.05, 0.9), (0.55, 0.4), (0.95, 0.1), through which one parabola goes.
    confidence, fooled = np.array([0.05, 0.02, 0.55, 0.95]), np.array([0.9, 0.1, 0.4, 0.1])
    envelope = sentinet._envelope(fooled, confidence)
    assert envelope([0.05, 0.55, 0.95]) == pytest.approx([0.9, 0.4, 0.1])


# FCT


def test_images_are_turned_and_shifted(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.arange(2 * 5 * 5 * 3, dtype=np.uint8).reshape(2, 5, 5, 3)
    samples = np.arange(2)
    # A quarter turn of the first; the second down by a pixel, a fifth of its side.
    draws = np.array([[0.75, 0.5, 0.5], [0.5, 1.0, 0.5]])
    monkeypatch.setattr(fct, "uniform", lambda *_: draws)
    turned = fct.turned(images, samples, 0)
    assert any((turned[0] == np.rot90(images[0], k)).all() for k in (1, 3))
    assert (turned[1, 1:] == images[1, :-1]).all()
    assert not turned[1, 0].any()


def test_transforms_of_a_sample_do_not_depend_on_the_others() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    every = fct.turned(images, np.arange(4), 3)
    assert (fct.turned(images[2:3], np.array([2]), 3) == every[2:3]).all()
    assert (fct.turned(images, np.arange(4), 4) != every).any()


class Identity(nn.Module):
    """Features that are what they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Identity()

    def features(self, values: Tensor) -> Tensor:
        return values


def test_tuning_loss_is_the_published_one() -> None:
    # Class means (1, 0), (0, 1) and (1, 1): what the originals' own code gives.
    _, losses = fct._similarity(Identity(), torch.tensor([[1.0, 0], [0, 1], [1, 1]]), torch.tensor([4, 1, 2]))  # type: ignore[arg-type]
    assert losses.tolist() == pytest.approx([0.3142697] * 3)


def test_consistency_is_a_mean_square_of_features(suspect: Suspect) -> None:
    given = suspect.subset(np.arange(5))
    images = fct.turned(given.data.gather(np.arange(5)), np.arange(5), 0)
    with torch.no_grad():
        after = given.model.features(torch.from_numpy(images).permute(0, 3, 1, 2) / 255).numpy()
    expected = ((given.features.penultimate[np.arange(5)] - after) ** 2).mean(1)
    assert fct.score(given, epochs=0).values == pytest.approx(expected, rel=1e-3, abs=1e-6)


# ABL


class Logits(nn.Module):
    def logits_and_auxiliary(self, values: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return values, ()


@pytest.mark.parametrize(
    ("ascent", "expected"),
    # The mean loss is log 2 = 0.693 of even logits.
    [
        ("lga", {0.5: 0.693147, 0.9: -0.693147}),
        ("flooding", {0.5: 0.693147, 0.9: 0.9 + 0.206853}),
        ("none", {0.9: 0.693147}),
    ],
)
def test_losses_are_held_at_the_floor(ascent: Ascent, expected: dict[float, float]) -> None:
    for floor, loss in expected.items():
        _, losses = held(Logits(), torch.zeros(3, 2), torch.tensor([0, 1, 0]), ascent=ascent, floor=floor)  # type: ignore[arg-type]
        assert losses.mean().item() == pytest.approx(loss, abs=1e-5)


def test_losses_before_each_epoch_begin_with_the_untrained_network(
    monkeypatch: pytest.MonkeyPatch, suspect: Suspect
) -> None:
    seen: list[int] = []
    plain = abl._losses

    def losses(model: models.Classifier, data: ImageSet) -> np.ndarray:
        norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
        seen.append(int(norm.num_batches_tracked))
        return plain(model, data)

    monkeypatch.setattr(abl, "_losses", losses)
    given = suspect.subset(np.arange(40))
    assert abl.score(given, epochs=3, batch_size=16, averaged=True).forward_passes == 12
    # Before the first step, after the three of the first epoch, after the six of two.
    assert seen == [0, 3, 6]
    seen.clear()
    abl.score(given, epochs=3, batch_size=16)
    assert seen == [9]


# Frequency


def test_cosine_transform_is_the_published_one() -> None:
    transformed = frequency.CosineTransform(4, 4)(torch.arange(16.0).view(1, 1, 4, 4))[0, 0]
    assert transformed[0].tolist() == pytest.approx([30, -4.461, 0, -0.317], abs=1e-3)
    assert transformed[:, 0].tolist() == pytest.approx([30, -17.844, 0, -1.268], abs=1e-3)
    assert transformed[1:, 1:].abs().max() < 1e-5


@pytest.mark.parametrize("channels", [1, 3])
def test_every_image_is_manipulated(channels: int) -> None:
    images = np.full((60, 9, 12, channels), 100, np.uint8)
    images[::2] = 140
    changed = frequency.manipulated(images, np.random.default_rng(0))
    assert (changed.shape, changed.dtype) == (images.shape, np.uint8)
    assert (changed != images).any((1, 2, 3)).all()
    # Rectangles change a part, noise and blends all, whatever the channels.
    share = (changed != images).any(3).mean((1, 2))
    assert (share < 0.5).any()
    assert (share > 0.9).any()


def test_grey_images_have_a_frequency_detector() -> None:
    rng = np.random.default_rng(0)
    images = ImageSet(rng.integers(0, 256, (24, 12, 12, 1), np.uint8), np.arange(24) % 2, ("a", "b"))
    rows = np.zeros((24, 2), np.float32)
    given = Suspect(
        model=None, data=images, features=Features(rows, rows), reserve=images, reserve_features=Features(rows, rows)
    )  # type: ignore[arg-type]
    assert np.isfinite(frequency.score(given, rounds=1, epochs=1).values).all()


# What they refuse


def refused(given: Callable[[], Any], message: str) -> None:
    with pytest.raises((ParameterError, UserError), match=message) as caught:
        given()
    assert "\n" not in str(caught.value)


def test_networks_that_a_method_cannot_use_are_named() -> None:
    plain = models.build("timm:test_vit", num_classes=2, image_size=(32, 32)).eval()
    data = ImageSet(np.zeros((24, 32, 32, 3), np.uint8), np.arange(24) % 2, ("a", "b"))
    rows = np.zeros((24, 2), np.float32)
    given = Suspect(
        model=plain, data=data, features=Features(rows, rows), reserve=data, reserve_features=Features(rows, rows)
    )
    refused(
        lambda: ibd_psc.score(given),
        r"^ibd_psc: network timm:test_vit without batch norm given, allowed: networks with it",
    )
    refused(
        lambda: psbd.score(given), r"^psbd: network timm:test_vit given, allowed: networks that torch\.fx can trace"
    )


def test_a_scale_that_does_not_confuse_the_model_gives_way_to_a_larger_one(
    suspect: Suspect, monkeypatch: pytest.MonkeyPatch
) -> None:
    suspect = replace(suspect.subset(np.arange(16)), reserve=suspect.reserve.subset(np.arange(40)))
    monkeypatch.setattr(ibd_psc, "SCALES", (1.0, 1.5))
    chosen = ibd_psc.score(suspect)
    assert chosen.rule.endswith("layers amplified by 1.5")
    assert (chosen.values == ibd_psc.score(suspect, scale=1.5).values).all()
    # Where no factor is enough there are scores, and no rule.
    monkeypatch.setattr(ibd_psc, "SCALES", (1.0, 1.01))
    for scores in (ibd_psc.score(suspect), ibd_psc.score(suspect, scale=1.01)):
        assert scores.flagged is None
        assert re.fullmatch(
            r"none: amplifying all \d+ layers by 1\.01 makes \d+% of the trusted images wrong", scores.rule
        )
        assert scores.forward_passes == 1


def test_small_images_have_no_frequencies(suspect: Suspect) -> None:
    small = ImageSet(np.zeros((24, 7, 9, 3), np.uint8), np.arange(24) % 2, ("a", "b"))
    given = replace(suspect, data=small, reserve=small)
    refused(lambda: frequency.score(given), r"^frequency: images of 7x9 given, allowed: 8x8 and larger")


def test_factors_are_at_least_one(suspect: Suspect) -> None:
    refused(lambda: scale_up.score(suspect, factors=[]), r"^factors: \[\] given, allowed: at least one number")


@pytest.mark.parametrize("name", ["ac", "ss", "spectre", "scan"])
@pytest.mark.filterwarnings("ignore:Degrees of freedom", "ignore:divide by zero", "ignore:invalid value")
def test_a_class_of_one_sample_does_no_harm(name: str) -> None:
    suspect, poisoned = several_classes(np.random.default_rng(0), np.ones(8), 0.1, np.r_[6.0, np.zeros(7)])
    alone = np.r_[np.arange(800), 900]
    scores = DETECTORS[name].score(suspect.subset(alone))
    assert np.isfinite(scores.values).all()
    assert detection_metrics(scores.values, poisoned[alone])["auroc"] > 0.85


def test_how_odd_a_sample_is_among_trusted_images() -> None:
    # Trusted are 1, 3, 4 and 5: three of four are 3 or higher, the 3 itself among them.
    values = np.array([2.0, 9.0, 3.0, 1.0, 3.0, 4.0, 5.0], np.float32)
    expected = [4 / 5, 1 / 5, 4 / 5, 4 / 4, 3 / 4, 2 / 4, 1 / 4]
    assert ensemble.shares_as_high(values, 3).tolist() == pytest.approx(expected)


def test_the_ensemble_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    def says(values: Any, flagged: Any = None) -> Detector:
        given = np.array(values, np.float32)
        mask = None if flagged is None else np.array(flagged, bool)
        return Detector(score=lambda suspect, *, seed: Scores(given, forward_passes=2, flagged=mask))

    # Fifty trusted images with scores of 1 to 50, and of 50 to 1, behind four samples.
    trusted = list(range(1, 51))
    one = says([50.5, 10, 49.5, 0.5, *trusted])
    other = says([10, 10, 0.5, 0.5, *reversed(trusted)])
    monkeypatch.setattr(ensemble, "CALIBRATED", {"one": one, "other": other})
    # Rules count among the samples alone.
    monkeypatch.setattr(ensemble, "RULED", {"rule": says([0] * 4, [False, False, False, True])})
    suspect = of_features([[0.0]] * 4, [0] * 4, [[0.0]] * 50, [0] * 50)
    scores = ensemble.score(suspect, false_alarms=0.04)
    # Of 51 images the first is alone, the second among the upper 42 both times, the third among 2; the fourth the rule has.
    least, mean = [1 / 51, 42 / 51, 2 / 51, 0.0], [43 / 102, 42 / 51, 53 / 102, 1.0]
    expected = [1 - low - average / 51**2 for low, average in zip(least, mean, strict=True)]
    assert scores.values == pytest.approx(expected, abs=1e-6)
    # Two trusted images of fifty, the oddest to one and to the other, have a share of one in fifty.
    assert scores.flagged is not None
    assert scores.flagged.tolist() == [True, False, False, True]
    assert scores.forward_passes == 4
