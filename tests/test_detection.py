"""Detectors: one contract for all, golden values, slow references."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from contract import check_parameters, fingerprint, own_parameters
from planted import Planted
from unpoison.core.arrays import Mask
from unpoison.core.errors import ParameterError, UserError
from unpoison.core.seeding import numpy_rng
from unpoison.data.features import Features
from unpoison.data.imageset import ImageSet
from unpoison.data.scores import Assumption, Scores, load_scores, save_scores
from unpoison.detection import DETECTORS, ac, cd, ss
from unpoison.evaluation.metrics import detection_metrics


class Row(NamedTuple):
    """A detector's arguments in the tests, and the AUROC that it must reach on the planted poison."""

    arguments: dict[str, Any]
    floor: float


# The lowest over seeds 0 to 2: 0.935, 0.989, 0.928 (nothing is drawn), 0.988.
TABLE = {
    "cd": Row({"steps": 10}, 0.85),
    "ac": Row({}, 0.9),
    "ss": Row({}, 0.85),
    "strip": Row({"overlays": 20}, 0.9),
}


@dataclass(frozen=True)
class Suspects:
    """A part of the planted set that is quick to score: all of the target class, and some of the others."""

    data: ImageSet
    features: Features
    poisoned: Mask


@pytest.fixture(scope="module")
def suspects(planted: Planted, features: Features) -> Suspects:
    in_target = planted.data.labels == 0
    index = np.sort(np.concatenate([np.flatnonzero(in_target), np.flatnonzero(~in_target)[::7]]))
    part = Features(features.logits[index], features.penultimate[index])
    return Suspects(planted.data.subset(index), part, planted.poisoned.truth.mask[index])


def first(count: int, suspects: Suspects) -> tuple[ImageSet, Features]:
    index = np.arange(count)
    return suspects.data.subset(index), Features(
        suspects.features.logits[:count], suspects.features.penultimate[:count]
    )


def test_every_detector_has_a_row() -> None:
    assert list(TABLE) == list(DETECTORS)


@pytest.mark.parametrize("name", DETECTORS)
def test_contract(name: str, planted: Planted, suspects: Suspects) -> None:
    detector, (arguments, _) = DETECTORS[name], TABLE[name]
    check_parameters(detector.parameters, arguments)
    data, features = first(32, suspects)
    inputs = (planted.model, data, planted.reserve, features)
    before, state = fingerprint(*inputs), torch.random.get_rng_state()
    scores, again = (detector.score(*inputs, seed=5, **arguments) for _ in range(2))
    assert fingerprint(*inputs) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert scores.values.shape == (32,)
    assert scores.values.dtype == np.float32
    assert np.isfinite(scores.values).all()
    assert scores.values.tobytes() == again.values.tobytes()
    assert len(np.unique(scores.values)) > 8
    assert scores.forward_passes >= 1
    if "masks" in scores.aux:
        assert scores.aux["masks"].shape == (len(scores.aux["index"]), *data.image_size)
        assert scores.caption


@pytest.mark.parametrize("name", DETECTORS)
def test_poison_is_ranked_first(name: str, planted: Planted, suspects: Suspects) -> None:
    arguments, floor = TABLE[name]
    inputs = (planted.model, suspects.data, planted.reserve, suspects.features)
    scores = DETECTORS[name].score(*inputs, seed=0, **arguments)
    assert detection_metrics(scores.values, suspects.poisoned)["auroc"] > floor


@pytest.mark.parametrize("name", DETECTORS)
def test_trusted_images_needed_are_known_beforehand(name: str, planted: Planted, suspects: Suspects) -> None:
    detector, (arguments, _) = DETECTORS[name], TABLE[name]
    defaults = {key: parameter.default for key, parameter in own_parameters(detector.parameters).items()}
    needed = detector.needs_trusted(**defaults | arguments)
    data, features = first(2, suspects)
    reserve = planted.reserve.subset(np.arange(needed))
    assert len(detector.score(planted.model, data, reserve, features, seed=0, **arguments).values) == 2
    if needed:
        too_few = planted.reserve.subset(np.arange(needed - 1))
        with pytest.raises(ParameterError, match=f": {needed} given, allowed: 1 to {needed - 1}, the trusted reserve"):
            detector.score(planted.model, data, too_few, features, seed=0, **arguments)


def test_strip_needs_as_many_trusted_images_as_overlays() -> None:
    assert {name: detector.needs_trusted() for name, detector in DETECTORS.items() if detector.needs_trusted()} == {
        "strip": 100
    }


def test_total_variation_golden() -> None:
    ramp = (torch.arange(9.0) / 8).view(1, 1, 3, 3)
    assert cd.total_variation(ramp).item() == pytest.approx(0.104167, abs=1e-5)


def test_cd_equals_the_textbook_loop(full_precision: None, planted: Planted) -> None:
    model, images = planted.model, planted.data.tensor(np.arange(6)).float() / 255
    settings = {"lr": 0.1, "gamma": 0.01, "beta": 10.0}
    fast, one = (
        cd.distill_masks(model, images, torch.Generator().manual_seed(1), steps=steps, **settings) for steps in (6, 1)
    )
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
    assert torch.allclose(one, masks[0], atol=1e-5)
    # With such betas Adam nearly steps by the sign: where a gradient is all but 0, rounding decides.
    assert ((fast - masks[-1]).abs() < 1e-4).float().mean() > 0.99
    start = cd.distill_masks(model, images, generator, steps=0, **settings)
    assert start[0, 0, 0, 0].item() == pytest.approx(0.8807970779778824)


def test_strip_equals_the_textbook_loop(full_precision: None, planted: Planted) -> None:
    data, reserve = planted.data.subset(np.arange(5)), planted.reserve
    scores = DETECTORS["strip"].score(planted.model, data, reserve, None, seed=3, overlays=7, weight=0.5)
    drawn = numpy_rng(3, "strip/overlays").choice(len(reserve), 7, replace=False)
    entropies = np.zeros((5, 7))
    with torch.no_grad():
        for row, image in enumerate(data.tensor() / 255):
            for column, overlay in enumerate(reserve.tensor(drawn) / 255):
                p = planted.model((image + 0.5 * overlay).clamp(0, 1)[None]).softmax(1)
                entropies[row, column] = torch.special.entr(p).sum()
    assert scores.values == pytest.approx(-entropies.mean(1), abs=1e-4)


def in_one_class(rows: Any) -> tuple[ImageSet, Features]:
    """Features of samples that all have one label, for detectors that look at nothing else."""
    rows = np.array(rows, np.float32)
    data = ImageSet(np.zeros((len(rows), 2, 2, 1), np.uint8), np.zeros(len(rows), np.int64), ("a",))
    return data, Features(rows, rows)


# v = (0.85525, 0.51821) is the first right singular vector of the rows less their mean (4, 1.25). |v · row| gives
# 0.85525, 1.71051 + 0.05182, 2.56576 - 0.05182, 8.55254 + 2.59104; (v · (row - mean))² the others.
@pytest.mark.parametrize(
    ("centred", "expected"),
    [(False, [0.85525, 1.76233, 2.51394, 11.14358]), (True, [10.3267, 5.3197, 2.4175, 50.0529])],
)
def test_spectral_signatures_by_hand(centred: bool, expected: list[float]) -> None:
    data, features = in_one_class([[1, 0], [2, 0.1], [3, -0.1], [10, 5]])
    values = ss.score(None, data, data, features, centred=centred).values  # type: ignore[arg-type]
    assert values == pytest.approx(expected, rel=1e-4)


# Two clusters on a line, {0, 1, 2} and {10, 11}. Silhouettes: mean distances within and to the other cluster are
# 1.5 and 10.5, 1 and 9.5, 1.5 and 8.5; 1 and 9, 1 and 10. The larger cluster's are negative.
def test_activation_clustering_by_hand() -> None:
    data, features = in_one_class([[0, 3], [1, 3], [2, 3], [10, 3], [11, 3]])
    values = ac.score(None, data, data, features).values  # type: ignore[arg-type]
    assert values == pytest.approx([-1 + 1.5 / 10.5, -1 + 1 / 9.5, -1 + 1.5 / 8.5, 1 - 1 / 9, 1 - 1 / 10], abs=1e-5)


def test_spectral_signatures_are_those_of_the_published_port() -> None:
    # One class of the default run's training set, and what that code gives for it before its z-score over all classes.
    with np.load(Path(__file__).parent / "golden" / "spectral_signatures.npz") as golden:
        data, features = in_one_class(golden["features"])
        scores = ss.score(None, data, data, features, centred=False).values  # type: ignore[arg-type]
        assert np.abs(scores - golden["scores"]).max() < 2e-6


def test_of_two_equal_clusters_neither_is_suspect() -> None:
    for rows in ([[0, 3], [1, 3], [10, 3], [11, 3]], [[10, 3], [11, 3], [0, 3], [1, 3]]):
        data, features = in_one_class(rows)
        assert not ac.score(None, data, data, features).values.any()  # type: ignore[arg-type]


def test_clustering_does_not_depend_on_the_scale_of_features() -> None:
    rows = np.array([[0, 3], [1, 3], [2, 3], [10, 3], [11, 3]])
    expected = ac.score(None, *in_one_class(rows)[:1], None, in_one_class(rows)[1]).values  # type: ignore[arg-type]
    data, features = in_one_class(rows * 1e30)
    assert ac.score(None, data, data, features).values == pytest.approx(expected, abs=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_that_has_diverged_gets_no_scores(
    name: str, value: float, planted: Planted, suspects: Suspects
) -> None:
    data, features = first(24, suspects)
    model, rows = deepcopy(planted.model), features.penultimate.copy()
    model.head.bias.data[1] = value
    rows[5, 2] = value
    with pytest.raises(UserError, match=rf"^{name}: \w+ .*of \d+ of \d+ samples are not finite") as caught:
        DETECTORS[name].score(model, data, planted.reserve, Features(features.logits, rows), **TABLE[name].arguments)
    if name in ("ac", "ss"):
        assert f"(label {data.classes[data.labels[5]]})" in str(caught.value)


def test_the_masks_that_are_kept_prefer_no_sample_among_equals() -> None:
    kept = cd._extremes(np.zeros(1000, np.float32), list(range(1000)))
    assert len(set(kept)) == 16
    # Neither end takes the samples that happen to be numbered first, or last.
    assert sum(key < 500 for key in kept[:8]) in range(1, 8)
    assert sum(key < 500 for key in kept[8:]) in range(1, 8)
    mixed = np.zeros(1000, np.float32)
    mixed[[700, 300]] = [2, -2]
    assert cd._extremes(mixed, list(range(1000)))[0] == 700
    assert cd._extremes(mixed, list(range(1000)))[-1] == 300


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:Number of distinct clusters")
def test_classes_that_cannot_be_clustered_score_nothing() -> None:
    for rows in ([[1, 2], [3, 4]], [[1, 2]] * 5):
        data, features = in_one_class(rows)
        assert not ac.score(None, data, data, features).values.any()  # type: ignore[arg-type]


def test_silhouettes_to_a_part_are_close_to_the_exact_ones() -> None:
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(0, 1, (900, 4)), rng.normal(1.5, 1, (300, 4))]).astype(np.float32)
    clusters = np.repeat([0, 1], [900, 300]).astype(np.int32)
    exact = ac.silhouettes(rows, clusters, rng)
    assert np.abs(ac.silhouettes(rows, clusters, rng, exact=1199) - exact).max() < 0.03
    lonely = np.zeros(1200, np.int32)
    lonely[7] = 1
    assert ac.silhouettes(rows, lonely, rng, exact=1199)[7] == 0


def test_scores_come_back_whole_and_a_score_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^cd: 1 of 2 scores are not finite"):
        save_scores(Scores(np.array([1, np.nan], np.float32), 1), tmp_path / "s", method="cd", parameters={})
    assert not (tmp_path / "s").exists()
    aux = {"index": np.array([1]), "masks": np.ones((1, 2, 2), np.float16)}
    scores = Scores(np.array([1, 2], np.float32), 1.5, aux, "a caption", Assumption("assumes", 0.25))
    save_scores(scores, tmp_path / "s", method="cd", parameters={})
    kept = load_scores(tmp_path / "s")
    assert kept.values.tolist() == [1, 2]
    assert (kept.forward_passes, kept.caption, kept.assumption) == (1.5, "a caption", Assumption("assumes", 0.25))
    assert {name: array.tolist() for name, array in kept.aux.items()} == {"index": [1], "masks": [[[1, 1], [1, 1]]]}
    path = tmp_path / "s" / "scores.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"scores\.npy: digest mismatch"):
        load_scores(tmp_path / "s")
