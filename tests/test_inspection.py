"""Inspectors: one contract for all, figures by hand, slow references, and verdicts as artefacts."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import gamma
from torch import Tensor
from torch.nn import functional as F

from contract import check_parameters, fingerprint
from planted import Planted
from unpoison import models
from unpoison.compute.inference import frozen
from unpoison.core.errors import ParameterError, UserError
from unpoison.core.seeding import numpy_rng, torch_rng
from unpoison.data.imageset import ImageSet
from unpoison.data.verdicts import Verdict, load_verdict, save_verdict
from unpoison.inspection import INSPECTORS, inspector, mm_bd
from unpoison.inspection import neural_cleanse as nc

CPU = torch.device("cpu")
ARGUMENTS: dict[str, dict[str, Any]] = {
    "neural_cleanse": {"epochs": 2, "sample": 16, "batch_size": 8, "success": 0.0},
    "mm_bd": {"images": 2, "steps": 60, "lr": 0.1},
}
SETTINGS = nc.Settings(epochs=3, batch_size=8, sample=16, lr=0.1, weight=0.01, factor=1.5, success=0.0, patience=1)


@pytest.fixture(scope="module")
def few(planted: Planted) -> ImageSet:
    return planted.reserve.subset(np.arange(20))


@pytest.mark.parametrize("name", INSPECTORS)
def test_contract(name: str, planted: Planted, few: ImageSet) -> None:
    assert list(ARGUMENTS) == list(INSPECTORS)
    arguments = ARGUMENTS[name]
    check_parameters(INSPECTORS[name].parameters, arguments)
    arguments = arguments | ({"steps": 3} if "steps" in arguments else {})
    before, state = fingerprint(planted.model, few), torch.random.get_rng_state()
    verdict, again = (INSPECTORS[name].inspect(planted.model, few, seed=5, **arguments) for _ in range(2))
    assert fingerprint(planted.model, few) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (verdict.anomaly.shape, verdict.anomaly.dtype) == ((10,), np.float32)
    assert (verdict.flagged.shape, verdict.flagged.dtype) == ((10,), np.bool_)
    assert np.isfinite(verdict.anomaly).all()
    assert verdict.anomaly.tobytes() == again.anomaly.tobytes()
    assert len(np.unique(verdict.anomaly)) > 3
    assert verdict.rule
    assert verdict.forward_passes == {"neural_cleanse": 2 * 2 * 16 * 10, "mm_bd": 2 * 3 * 2 * 10}[name]
    other = INSPECTORS[name].inspect(planted.model, few, seed=6, **arguments)
    assert verdict.anomaly.tobytes() != other.anomaly.tobytes()


def test_the_planted_target_has_the_largest_margin(planted: Planted, few: ImageSet) -> None:
    # Over seeds 0 to 2 the target has 3.36 and more, every other class 0.39 and less.
    verdict = mm_bd.inspect(planted.model, few, seed=0, **ARGUMENTS["mm_bd"])
    assert verdict.anomaly[0] > 2
    assert (verdict.anomaly[1:] < 1).all()
    assert np.flatnonzero(verdict.flagged).tolist() == [0]


def test_the_planted_target_has_the_smallest_mask(planted: Planted) -> None:
    # Over seeds 0 to 2: masks of 64 to 73 pixels, the trigger's size, beside 108 and more of these other classes.
    settings = replace(SETTINGS, epochs=8, batch_size=16, sample=128, lr=0.2, weight=0.001, success=0.99, patience=2)
    network = frozen(planted.model, CPU)
    patches, _ = nc.find_patches(network, planted.reserve, torch.arange(4), settings, seed=0)
    norms = patches[:, 0].sum((1, 2))
    assert norms[0] < 0.8 * norms[1:].min()


class Ninths(torch.nn.Module):
    """Class by the brightest ninth of 12x12 px; of the first ninth only 2x2 of its 4x4 pixels count."""

    def forward(self, images: Tensor) -> Tensor:
        grey = images.mean(1)
        regions = F.avg_pool2d(grey, 4).flatten(1)
        return 20 * torch.cat([grey[:, :2, :2].mean((1, 2))[:, None], regions[:, 1:]], 1)


def dark(count: int) -> ImageSet:
    """Images with ninths of up to a quarter of the brightness."""
    regions = np.random.default_rng(0).integers(0, 64, (count, 3, 3, 3), dtype=np.uint8)
    return ImageSet(regions.repeat(4, 1).repeat(4, 2), np.zeros(count, np.int64), tuple("abcdefghi"))


def test_a_patch_is_as_large_as_what_a_class_hangs_on() -> None:
    settings = replace(SETTINGS, epochs=1000, batch_size=32, sample=64, weight=0.001, success=0.99, patience=5)
    patches, passes = nc.find_patches(Ninths(), dark(64), torch.arange(9), settings, seed=0)
    masks = patches[:, 0]
    # The searches end by themselves, and what a class does not hang on is left alone.
    assert passes < 2 * 64 * 9 * 500
    assert masks[0, :2, :2].sum() > 0.99 * masks[0].sum()
    assert masks[8, 8:, 8:].sum() > 0.99 * masks[8].sum()
    # Over seeds 0 to 2 its index is 5.4 and more, that of others 1.1 and less.
    anomaly = nc.anomaly_index(masks.sum((1, 2)).numpy())
    assert anomaly is not None
    assert anomaly[0] > 4
    assert (anomaly[1:] < 2).all()


def test_a_class_that_no_patch_leads_to_counts_as_the_whole_image() -> None:
    def never(images: Tensor) -> Tensor:
        return Ninths()(images) - 100 * torch.eye(9)[8]

    settings = replace(SETTINGS, epochs=1000, batch_size=16, sample=16, success=0.99)
    patches, passes = nc.find_patches(never, dark(16), torch.tensor([8]), settings, seed=0)  # type: ignore[arg-type]
    assert patches[0, 0].sum() == 144
    assert passes == 2 * 16 * nc.HOPELESS


def test_patches_equal_the_textbook_loop(planted: Planted, few: ImageSet) -> None:
    # Every epoch counts as a success here, so that the weight is 0, 0.01, 0.015, and the smallest mask is kept.
    found, _ = nc.find_patches(frozen(planted.model, CPU), few, torch.tensor([0, 7]), SETTINGS, seed=3)
    for place, target in enumerate((0, 7)):
        start = torch.rand(4, 32, 32, generator=torch_rng(3, "neural_cleanse/start", target))
        theta = torch.atanh(2 * start - 1).requires_grad_()
        optimizer, ends = torch.optim.Adam([theta], 0.1, betas=(0.5, 0.9)), []
        for epoch, weight in enumerate((0, 0.01, 0.015)):
            order = numpy_rng(3, "neural_cleanse/order", epoch).permutation(20)[:16]
            for index in (order[:8], order[8:]):
                images = few.tensor(index).float() / 255
                mask, pattern = (theta[:1].tanh() + 1) / 2, (theta[1:].tanh() + 1) / 2
                logits = planted.model((1 - mask) * images + mask * pattern)
                loss = F.cross_entropy(logits, torch.full((8,), target)) + weight * mask.abs().sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            ends.append((theta.detach().tanh() + 1) / 2)
        expected = min(ends, key=lambda patch: float(patch[0].sum()))
        # Where a gradient is all but 0 its sign is rounding, and Adam takes a step of full length either way.
        assert ((found[place] - expected).abs() < 1e-4).float().mean() > 0.99
        assert float(found[place, 0].sum()) == pytest.approx(float(expected[0].sum()), rel=1e-4)


def test_margins_equal_the_textbook_loop(planted: Planted) -> None:
    settings: dict[str, Any] = {"steps": 4, "lr": 0.5, "momentum": 0.2}
    margins, _ = mm_bd.largest_margins(
        frozen(planted.model, CPU), torch.tensor([0, 7]), (3, 3, 32, 32), seed=3, **settings
    )
    for place, target in enumerate((0, 7)):
        images = torch.rand(3, 3, 32, 32, generator=torch_rng(3, "mm_bd/start", target)).requires_grad_()
        optimizer = torch.optim.SGD([images], 0.5, momentum=0.2)
        for _ in range(4):
            logits = planted.model(images.clamp(0, 1))
            others = torch.cat([logits[:, :target], logits[:, target + 1 :]], 1)
            margin = logits[:, target] - others.max(1).values
            optimizer.zero_grad()
            (-margin.sum()).backward()
            optimizer.step()
        assert margins[place] == pytest.approx(float(margin.detach().max()), rel=1e-3)
        # The comparison means something: the clamp was felt, and the margin rose.
        assert images.detach().abs().max() > 1


def test_an_ascent_ends_where_nothing_moves() -> None:
    def still(images: Tensor) -> Tensor:
        return torch.tensor([3.0, 1.0, 0.0]) + 0 * images.mean((1, 2, 3))[:, None]

    margins, passes = mm_bd.largest_margins(
        still,
        torch.arange(3),
        (2, 3, 8, 8),
        steps=300,
        lr=0.01,
        momentum=0.2,
        seed=0,  # type: ignore[arg-type]
    )
    assert margins.tolist() == [2, -2, -3]
    assert passes == 2 * 2 * 3 * 2


@pytest.mark.parametrize("name", INSPECTORS)
def test_classes_do_not_influence_each_other(
    name: str, planted: Planted, few: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ARGUMENTS[name] | {"neural_cleanse": {"epochs": 1}, "mm_bd": {"steps": 3}}[name]
    together = INSPECTORS[name].inspect(planted.model, few, seed=1, **arguments)
    monkeypatch.setattr(inspector, "PASS", 24)
    assert len(inspector.groups(planted.model, 8)) == 4
    apart = INSPECTORS[name].inspect(planted.model, few, seed=1, **arguments)
    assert apart.anomaly == pytest.approx(together.anomaly, abs=1e-2)
    assert apart.forward_passes == together.forward_passes


def test_anomaly_index_by_hand() -> None:
    # Median 40; deviations 30, 5, 0, 2, 4, whose median is 4.
    index = nc.anomaly_index(np.array([10, 45, 40, 38, 44], np.float32))
    assert index == pytest.approx(np.array([30, -5, 0, 2, -4]) / (1.4826 * 4))
    assert nc.anomaly_index(np.array([10, 64, 64, 64, 20], np.float32)) is None


def test_p_values_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    margins = np.array([1.0, 9.0, 2.0, 4.0])
    fitted = gamma.fit([1.0, 2.0, 4.0])
    p = mm_bd.p_values(margins)
    assert p is not None
    assert p[1] == pytest.approx(1 - gamma.cdf(9.0, *fitted) ** 4)
    # With shape 1 the law is exponential, here of mean 2: below x with probability 1 - exp(-x / 2).
    monkeypatch.setattr(type(gamma), "fit", lambda *_: (1.0, 0.0, 2.0))
    p = mm_bd.p_values(np.array([1.0, 100.0, 2.0, 4.0]))
    assert p is not None
    assert p[[0, 2, 3]] == pytest.approx(1 - (1 - np.exp([-0.5, -1, -2])) ** 4)
    # So rare that 1 minus the power would be 0.
    assert p[1] == pytest.approx(4 * np.exp(-50), rel=1e-6)
    assert mm_bd.p_values(np.array([2.0, 9.0, 2.0, 2.0])) is None


def test_the_weight_follows_the_successes() -> None:
    search = nc.Search(replace(SETTINGS, weight=0.001, success=0.9, patience=2))
    kept = [search.after(*epoch) for epoch in ((0.5, 9), (0.95, 60), (0.9, 50), (1, 55), (1, 40))]
    # A smaller mask that fails is none; two epochs set the weight, two more raise it.
    assert kept == [False, True, True, False, True]
    assert (search.weight, search.raised) == (pytest.approx(0.0015), True)
    assert not any(search.after(0.8, 30) for _ in range(2))
    assert search.weight == pytest.approx(0.0015 / 1.5**1.5)
    # Less than 1 % smaller is kept and counts as nothing new: the search ends ten epochs after the last new mask.
    assert search.after(0.95, 39.9)
    for _ in range(7):
        assert not search.over
        search.after(0.95, 45)
    assert search.over


def test_masks_of_one_size_flag_nothing(planted: Planted, few: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nc, "find_patches", lambda _, __, targets, *___, **____: (torch.ones(len(targets), 4, 4, 4), 0))
    verdict = nc.inspect(planted.model, few)
    assert not verdict.flagged.any()
    assert not verdict.anomaly.any()
    assert verdict.rule.startswith("none: ")


def with_head(planted: Planted, change: Callable[[Tensor], Tensor]) -> models.Classifier:
    model = deepcopy(planted.model)
    with torch.no_grad():
        model.head.weight.copy_(change(model.head.weight))
    return model


@pytest.mark.parametrize("name", INSPECTORS)
def test_a_model_that_has_diverged_gets_no_verdict(name: str, planted: Planted, few: ImageSet) -> None:
    model = with_head(planted, lambda weight: weight * torch.nan)
    with pytest.raises(
        UserError, match=rf"^{name}: (patches|margins) of 10 of 10 classes are not finite; allowed: "
    ) as caught:
        INSPECTORS[name].inspect(model, few, **ARGUMENTS[name])
    assert "\n" not in str(caught.value)


def test_what_cannot_be_inspected_is_said_in_one_line(planted: Planted, few: ImageSet) -> None:
    assert {name: one.needs_trusted() for name, one in INSPECTORS.items()} == {"neural_cleanse": 1, "mm_bd": 0}
    nobody = few.subset(np.arange(0))
    with pytest.raises(ParameterError, match=r"^sample: no trusted image given, allowed: a reserve of at least 1$"):
        nc.inspect(planted.model, nobody)
    assert len(mm_bd.inspect(planted.model, nobody, images=1, steps=1).anomaly) == 10
    two = models.build("resnet18", width=8, num_classes=2, image_size=8)
    for name, one in INSPECTORS.items():
        with pytest.raises(UserError, match=rf"^{name}: 2 classes given, allowed: 3 or more"):
            one.inspect(two, nobody)


def test_margins_that_are_all_alike_flag_nothing(planted: Planted, few: ImageSet) -> None:
    verdict = mm_bd.inspect(with_head(planted, torch.zeros_like), few, images=1, steps=1)
    assert verdict.rule.startswith("none: ") == bool((planted.model.head.bias == 0).all())
    model = with_head(planted, torch.zeros_like)
    with torch.no_grad():
        model.head.bias.zero_()
    verdict = mm_bd.inspect(model, few, images=1, steps=1)
    assert not verdict.flagged.any()
    assert not verdict.anomaly.any()
    assert verdict.rule.startswith("none: ")


def test_a_verdict_comes_back_whole(tmp_path: Path) -> None:
    aux = {"masks": np.full((2, 3, 4), 0.5, np.float16), "patterns": np.full((2, 1, 3, 4), 7, np.uint8)}
    verdict = Verdict(np.array([1, 2.5], np.float32), np.array([False, True]), "above 2", 12.0, "a caption", aux)
    save_verdict(verdict, tmp_path / "v", method="one", parameters={"a": 1}, made_from={"backdoored": "x"})
    kept = load_verdict(tmp_path / "v", method="one", classes=2)
    assert (kept.anomaly.tolist(), kept.flagged.tolist()) == ([1, 2.5], [False, True])
    assert (kept.rule, kept.forward_passes, kept.caption) == ("above 2", 12.0, "a caption")
    assert {name: array.tolist() for name, array in kept.aux.items()} == {k: v.tolist() for k, v in aux.items()}
    assert load_verdict(tmp_path / "v").aux["patterns"].dtype == np.uint8
    bad = replace(verdict, anomaly=np.array([np.inf, 1], np.float32))
    with pytest.raises(UserError, match=r"^one: the index of 1 of 2 classes is not finite; allowed: finite ones$"):
        save_verdict(bad, tmp_path / "w", method="one", parameters={})
    assert not (tmp_path / "w").exists()
    path = tmp_path / "v" / "anomaly.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"anomaly\.npy: digest mismatch"):
        load_verdict(tmp_path / "v")
