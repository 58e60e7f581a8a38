"""`detect.sample`: the draw, what it refuses, the scores' artefact, and the way from the stage to the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from planted import Planted
from unpoison.core.errors import ParameterError, UserError
from unpoison.data.scores import Scores, load_scores, save_scores
from unpoison.detection import ss
from unpoison.detection.detector import Suspect
from unpoison.detection.sample import check_sample, draw_sample
from unpoison.evaluation.grading import detector_metrics
from unpoison.evaluation.metrics import detection_metrics


# Shares of 10 samples out of 6, 9 and 15: 2, 3, 5. Of 11: 2.2, 3.3, 5.5, and the last class lost most. Of 8: 1.6, 2.4, 4.
# Of 5: 1, 1.5, 2.5, two equal remainders, of which the first class wins.
@pytest.mark.parametrize(
    ("count", "expected"),
    [(10, [2, 3, 5]), (11, [2, 3, 6]), (8, [2, 2, 4]), (5, [1, 2, 2]), (30, [6, 9, 15]), (29, [6, 9, 14])],
)
def test_classes_keep_their_shares_by_largest_remainders(count: int, expected: list[int]) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 3, 7], [6, 9, 15]))
    index = draw_sample(labels, count, seed=0)
    assert index.dtype == np.int64
    assert (np.diff(index) > 0).all()
    assert [int((labels[index] == label).sum()) for label in (0, 3, 7)] == expected


def test_the_draw_is_of_the_seed_alone() -> None:
    labels = np.arange(300) % 3
    one = draw_sample(labels, 30, seed=1)
    assert (draw_sample(labels, 30, seed=1) == one).all()
    assert (draw_sample(labels, 30, seed=2) != one).any()
    # Not the first of each class, and the classes are drawn apart.
    assert one.max() > 150
    assert len({tuple(one[labels[one] == label] // 3) for label in range(3)}) == 3
    # What happens in another class shifts nothing.
    moved = np.where(labels == 2, 3, labels)
    assert set(one[labels[one] < 2]) == set(draw_sample(moved, 30, seed=1)) - set(np.flatnonzero(moved == 3))


@pytest.mark.parametrize(
    ("count", "most", "said"),
    [
        (201, 200, "^sample: 201 given, allowed: at most 200, the training images; null: all$"),
        (29, 200, "^sample: 29 given, allowed: at least 30, 3 for each of 10 classes; null: all$"),
        (19, 20, "^sample: 19 given, allowed: at least 20, 3 for"),
        (30, 200, ""),
        (200, 200, ""),
        (20, 20, ""),
    ],
)
def test_samples_that_are_too_large_or_too_small(count: int, most: int, said: str) -> None:
    if said:
        with pytest.raises(ParameterError, match=said):
            check_sample(count, most=most, classes=10)
    else:
        check_sample(count, most=most, classes=10)


def test_scores_of_a_part_come_back_with_the_numbers_of_the_whole(tmp_path: Path) -> None:
    masks = np.ones((2, 2, 2), np.float16)
    scored = Scores(np.array([3, 1, 2], np.float32), 1, {"index": np.array([2, 0]), "masks": masks})
    part = scored.within(np.array([4, 7, 9]))
    save_scores(part, tmp_path / "s", method="cd", parameters={}, count=12)
    kept = load_scores(tmp_path / "s", method="cd", count=12)
    assert kept.index is not None
    assert (kept.index.tolist(), kept.values.tolist(), kept.aux["index"].tolist()) == ([4, 7, 9], [3, 1, 2], [9, 4])
    with pytest.raises(UserError, match="count: '12' found, allowed: 3"):
        load_scores(tmp_path / "s", count=3)
    # Whatever scores all of the set writes nothing more than before.
    save_scores(scored, tmp_path / "all", method="cd", parameters={})
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["aux.npz", "scores.json", "scores.npy"]
    assert "scored" not in (tmp_path / "all" / "scores.json").read_text()
    assert load_scores(tmp_path / "all").index is None


def test_a_detector_is_graded_on_what_it_scored() -> None:
    poisoned = np.array([True, False, True, False, False])
    values, whole = np.array([3, 1], np.float32), np.array([1, 2, 5, 4, 3], np.float32)
    indices = {"right": [2, 3], "all_clean": [1, 3], "all_poisoned": [0, 2]}
    scores = {name: Scores(values, 1, index=np.array(index)) for name, index in indices.items()}
    metrics, curves, _ = detector_metrics({**scores, "whole": Scores(whole, 1)}, poisoned)
    # There is nothing to tell poison from where a sample has one kind alone.
    assert list(metrics) == ["right", "whole"]
    assert list(curves) == ["fpr", "right", "whole"]
    figures = detection_metrics(values, np.array([True, False]))
    assert metrics["right"] == {**figures, "passes_per_sample": 1, "scored": 2, "scored_poisoned": 1}
    assert metrics["whole"] == {**detection_metrics(whole, poisoned), "passes_per_sample": 1}


def test_planted_poison_is_found_in_a_sample(planted: Planted, suspect: Suspect) -> None:
    mask = planted.poisoned.truth.mask
    index = draw_sample(planted.data.labels, 800, seed=0)
    scores = ss.score(suspect.subset(index)).within(index)
    graded = detector_metrics({"ss": scores}, mask)[0]["ss"]
    assert (graded["scored"], graded["scored_poisoned"]) == (800, mask[index].sum())
    # The sample is drawn by label and not by poison: about half of the 44.
    assert 14 <= graded["scored_poisoned"] <= 30
    assert graded["auroc"] > 0.85
