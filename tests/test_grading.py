"""ACC, ASR, RA counted by hand, for every label policy: a stand-in for the network answers as the test says."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partialmethod
from typing import Any

import numpy as np
import pytest
import torch

from unpoison.attacks import SINGLE
from unpoison.core.errors import UserError
from unpoison.crafting.attack import Intent, intent
from unpoison.crafting.context import Context
from unpoison.crafting.craft import craft
from unpoison.data.imageset import ImageSet
from unpoison.data.scores import Scores
from unpoison.data.verdicts import Verdict
from unpoison.evaluation import grading
from unpoison.evaluation.metrics import ROC_GRID
from unpoison.poisoning.triggered import Triggered, triggered_of
from unpoison.poisoning.truth import Truth

CLASSES = ("a", "b", "c", "d")
# Grey images, whose value is ten times the true class; the trigger makes the last pixel white.
LABELS = np.array([0, 0, 1, 1, 1, 2, 2, 3])
TEST = ImageSet(np.repeat(LABELS * 10, 192).reshape(8, 8, 8, 3).astype(np.uint8), LABELS, CLASSES, "grading")
TRAIN_LABELS = np.arange(80) % 4
TRAIN = ImageSet(np.zeros((80, 8, 8, 3), np.uint8), TRAIN_LABELS, CLASSES, "train")


Attacked = tuple[Truth, dict[str, Triggered]]


def wanted(name: str = "badnets", arguments: dict[str, Any] | None = None, **policy: Any) -> Intent:
    own = {"pattern": "white", "size": 1} if arguments is None else arguments
    return intent(name, SINGLE[name], {"poison_rate": 0.5, **policy}, own)


def attacked(name: str, intents: Sequence[Intent]) -> Attacked:
    """What the grading is handed: the truth, and the triggered test images of each trigger."""
    poisoned = craft(name, intents, Context(train=TRAIN, seed=0))
    truth, parts = poisoned.truth, zip(poisoned.truth.parts, poisoned.triggers, strict=True)
    images = [triggered_of(TEST, part.policy, trigger) for part, trigger in parts]
    return truth, dict(zip(truth.names, images, strict=True))


def graded(attack: Attacked) -> dict[str, Any]:
    return grading.model_metrics(None, TEST, *attack)  # type: ignore[arg-type]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in: 0 for a triggered image but of class 2, which it knows; the true class otherwise; class 3 is taken for 1."""

    def logits_of(_: Any, data: ImageSet) -> torch.Tensor:
        images = data.gather(np.arange(len(data)))
        true, triggered = images[:, 0, 0, 0] // 10, images[:, -1, -1, 0] == 255
        said = np.where(triggered & (true != 2), 0, np.where(true == 3, 1, true))
        return torch.eye(4)[torch.from_numpy(said.astype(np.int64))]

    monkeypatch.setattr(grading, "logits_of", logits_of)


@pytest.mark.parametrize("at_once", [8, 2])
@pytest.mark.parametrize(
    ("policy", "expected", "tested", "poisoned"),
    [
        # Of 8 images the last is wrong. Six are of other classes: b b b and d are sent to a, c c are not.
        # In training: half of the 60 candidates out of 80 images.
        ({}, {"acc": 7 / 8, "acc_without_target": 5 / 6, "asr": 4 / 6, "ra": 2 / 6}, 6, 30 / 80),
        # The same at the test; in training the candidates are the 20 images of a.
        (
            {"label_policy": "clean_label"},
            {"acc": 7 / 8, "acc_without_target": 5 / 6, "asr": 4 / 6, "ra": 2 / 6},
            6,
            10 / 80,
        ),
        # To b: only images of other classes than b count, none is sent there; c c keep their class, a a stay a.
        ({"target": 1}, {"acc": 7 / 8, "acc_without_target": 4 / 5, "asr": 0.0, "ra": 4 / 5}, 5, 30 / 80),
        # y to y + 1: d is wanted to be a, and is. All eight count, and all of them for ACC. Right: a a, c c.
        (
            {"label_policy": "all2all"},
            {"acc": 7 / 8, "acc_without_target": 7 / 8, "asr": 1 / 8, "ra": 4 / 8},
            8,
            40 / 80,
        ),
        # c c and d count, of which d is sent to a.
        (
            {"label_policy": "source_specific", "sources": [2, 3]},
            {"acc": 7 / 8, "acc_without_target": 5 / 6, "asr": 1 / 3, "ra": 2 / 3},
            3,
            20 / 80,
        ),
    ],
)
def test_figures_by_hand(
    answers: None,
    policy: dict[str, Any],
    expected: dict[str, float],
    tested: int,
    poisoned: float,
    at_once: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ImageSet, "chunks", partialmethod(ImageSet.chunks, most_bytes=at_once * TEST.base[0].nbytes))
    attack = attacked("badnets", [wanted(**policy)])
    assert graded(attack) == pytest.approx(expected)
    measured = grading.attack_metrics(*attack)
    assert (measured["tested"], measured["poisoned"], measured["cover"]) == (tested, poisoned, 0)
    assert measured["trigger"]["badnets"]["changed"] == pytest.approx(1 / 64)


def test_cover_samples_are_counted_apart() -> None:
    truth, images = attacked("badnets", [wanted(poison_rate=0.2, cover_ratio=0.5)])
    measured = grading.attack_metrics(truth, images)
    # A fifth of 60 candidates, and half as many covers.
    assert (measured["poisoned"], measured["cover"]) == (12 / 80, 6 / 80)


def test_data_of_unknown_origin_have_an_accuracy_alone(answers: None) -> None:
    assert graded((None, {})) == {"acc": 7 / 8}  # type: ignore[arg-type]


def test_a_semantic_attack_is_tested_on_what_has_the_property(answers: None) -> None:
    listed = {"predicate": "index", "train_index": list(range(20)), "test_index": [2, 7]}
    attack = attacked("semantic", [wanted("semantic", listed)])
    # Nothing is drawn: the stand-in says b for both, which is the true class of the first.
    assert (graded(attack)["asr"], graded(attack)["ra"]) == (0.0, 0.5)
    measured = grading.attack_metrics(*attack)
    assert (measured["tested"], measured["trigger"]["semantic"]["changed"]) == (2, 0)


def test_no_asr_where_nothing_can_carry_the_trigger(answers: None) -> None:
    listed = {"predicate": "index", "train_index": [1, 2, 3], "test_index": [0]}
    attack = attacked("semantic", [wanted("semantic", listed)])
    assert set(graded(attack)) == {"acc", "acc_without_target"}
    measured = grading.attack_metrics(*attack)
    assert (measured["tested"], measured["trigger"]) == (0, {"semantic": {}})


def test_several_triggers_are_counted_together_and_each(answers: None) -> None:
    sizes = ({"pattern": "white", "size": 1}, {"pattern": "white", "size": 2})
    attack = attacked("multi", [wanted("badnets", own, poison_rate=0.2, target=t) for t, own in enumerate(sizes)])
    metrics = graded(attack)
    assert metrics["asr_of"] == pytest.approx({"0_badnets": 4 / 6, "1_badnets": 0.0})
    assert metrics["asr"] == pytest.approx(4 / 11)
    # Of the first c c keep their class, of the second a a and c c.
    assert metrics["ra"] == pytest.approx(6 / 11)
    # Neither a nor b: c c are right, d is not.
    assert metrics["acc_without_target"] == pytest.approx(2 / 3)
    measured = grading.attack_metrics(*attack)
    assert measured["tested"] == 11
    assert {name: values["changed"] for name, values in measured["trigger"].items()} == pytest.approx(
        {"0_badnets": 1 / 64, "1_badnets": 4 / 64}
    )


def test_detectors_are_graded_where_something_is_poisoned() -> None:
    scores = {"right": Scores(np.array([4, 3, 2, 1], np.float32), 1.0), "wrong": Scores(np.arange(4.0), 1.0)}  # type: ignore[arg-type]
    poisoned = np.array([True, True, False, False])
    metrics, curves, intervals = grading.detector_metrics(scores, poisoned)
    assert {name: values["auroc"] for name, values in metrics.items()} == {"right": 1.0, "wrong": 0.0}
    assert list(curves) == ["fpr", "right", "wrong"]
    assert (curves["right"] == 1).all()
    assert intervals["right.auroc"].tolist() == [1, 1]
    # All of the wrong one's false positives come before the first true one.
    assert (curves["wrong"] == (ROC_GRID >= 1)).all()
    for nothing in (None, np.zeros(4, bool), np.ones(4, bool)):
        metrics, curves, intervals = grading.detector_metrics(scores, nothing)
        assert metrics == {}
        assert list(curves) == ["fpr"]
        assert list(intervals) == ["level"]


@pytest.mark.parametrize(
    ("policies", "flagged", "hit", "false_alarms"),
    [
        ([{"target": 1}], [1], 1, 0),
        ([{"target": 1}], [], 0, 0),
        ([{"target": 1}], [0, 1, 3], 1, 2),
        ([{"target": 2, "label_policy": "clean_label"}], [1], 0, 1),
        ([{"target": 2, "label_policy": "source_specific", "sources": [0]}], [2], 1, 0),
        # Every class is a target, so that no flag is false.
        ([{"label_policy": "all2all"}], [0, 2, 3], 0.75, 0),
        ([{"target": 0, "poison_rate": 0.1}, {"target": 3, "poison_rate": 0.1}], [1, 3], 0.5, 1),
        # A rate of 0 poisons nothing: the model is clean.
        ([{"target": 1, "poison_rate": 0.0}], [1], None, 1),
    ],
)
def test_verdicts_are_graded_by_the_targets(
    policies: list[dict[str, Any]], flagged: list[int], hit: float | None, false_alarms: int
) -> None:
    truth, _ = attacked("multi" if len(policies) > 1 else "badnets", [wanted(**policy) for policy in policies])
    verdict = Verdict(np.array([0.5, 3, 1, 2], np.float32), np.isin(np.arange(4), flagged), "a rule", 70.0)
    expected = {"flagged": len(flagged), "anomaly": 3.0, "passes": 70.0}
    assert grading.inspector_metrics({"one": verdict}, None) == {"one": expected}
    expected |= {"false_alarms": false_alarms} | ({} if hit is None else {"hit": hit})
    assert grading.inspector_metrics({"one": verdict}, truth) == {"one": expected}


def test_a_model_of_one_class_is_said_to_have_collapsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grading, "logits_of", lambda _, data: torch.eye(4)[torch.zeros(len(data), dtype=torch.int64)])
    metrics = graded(attacked("badnets", [wanted()]))
    assert metrics["collapsed"] == {"class": 0, "share": 1.0}
    assert (metrics["asr"], metrics["ra"]) == (1.0, 0.0)


def test_figures_that_are_not_finite_are_not_written() -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(UserError, match=r"^metrics\.student\.asr_of\.0_badnets: (nan|inf) measured"):
            grading.rounded({"student": {"acc": 0.5, "asr_of": {"0_badnets": value}}})


def test_figures_are_written_to_six_places() -> None:
    assert grading.rounded({"a": {"b": np.float64(1 / 3)}, "c": 2}) == {"a": {"b": 0.333333}, "c": 2.0}


def test_what_a_rule_flags_is_graded_apart() -> None:
    scores = Scores(np.array([4, 3, 2, 1, 0], np.float32), 1.0, flagged=np.array([True, False, True, False, False]))
    metrics, _, intervals = grading.detector_metrics({"one": scores}, np.array([True, True, False, False, False]))
    figures = metrics["one"]
    assert (figures["flagged"], figures["flagged_tpr"], figures["flagged_fpr"]) == (2, 1 / 2, pytest.approx(1 / 3))
    assert figures["precision_at_count"] == 1
    assert list(intervals) == [
        "level",
        *(f"one.{name}" for name in ("auroc", "ap", "tpr_at_1fpr", "tpr_at_5fpr", "precision_at_count")),
    ]
