"""ACC, ASR, RA counted by hand, for every label policy: a stand-in for the network answers as the test says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import evaluate
from unpoison.crafting.context import Scene
from unpoison.crafting.craft import intent, poison
from unpoison.data.imageset import ImageSet
from unpoison.poisoning.truth import Truth

CLASSES = ("a", "b", "c", "d")
# Grey images, whose value is ten times the true class; the trigger makes the last pixel white.
LABELS = np.array([0, 0, 1, 1, 1, 2, 2, 3])
TEST = ImageSet(np.repeat(LABELS * 10, 192).reshape(8, 8, 8, 3).astype(np.uint8), LABELS, CLASSES, "grading")
TRAIN_LABELS = np.arange(80) % 4
TRAIN = ImageSet(np.zeros((80, 8, 8, 3), np.uint8), TRAIN_LABELS, CLASSES, "train")


def truth_of(name: str = "badnets", arguments: dict[str, Any] | None = None, **policy: Any) -> Truth:
    own = {"pattern": "white", "size": 1} if arguments is None else arguments
    return poison(name, [intent(name, {"poison_rate": 0.5, **policy}, own)], Scene(train=TRAIN, seed=0))


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in: 0 for a triggered image but of class 2, which it knows; the true class otherwise; class 3 is taken for 1."""

    def logits_of(_: Any, data: ImageSet) -> torch.Tensor:
        images = data.gather(np.arange(len(data)))
        true, triggered = images[:, 0, 0, 0] // 10, images[:, -1, -1, 0] == 255
        said = np.where(triggered & (true != 2), 0, np.where(true == 3, 1, true))
        return torch.eye(4)[torch.from_numpy(said.astype(np.int64))]

    monkeypatch.setattr(evaluate, "logits_of", logits_of)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        # Of 8 images the last is wrong. Six are of other classes: b b b and d are sent to a, c c are not.
        ({}, {"acc": 7 / 8, "acc_without_target": 5 / 6, "asr": 4 / 6, "ra": 2 / 6}),
        ({"label_policy": "clean_label"}, {"acc": 7 / 8, "acc_without_target": 5 / 6, "asr": 4 / 6, "ra": 2 / 6}),
        # To b: only images of other classes than b count, none is sent there; c c keep their class, a a stay a.
        ({"target": 1}, {"acc": 7 / 8, "acc_without_target": 4 / 5, "asr": 0.0, "ra": 4 / 5}),
        # y to y + 1: d is wanted to be a, and is. All eight count, and all of them for ACC. Right: a a, c c.
        ({"label_policy": "all2all"}, {"acc": 7 / 8, "acc_without_target": 7 / 8, "asr": 1 / 8, "ra": 4 / 8}),
        (
            {"label_policy": "source_specific", "sources": [2, 3]},
            {"acc": 7 / 8, "acc_without_target": 5 / 6, "asr": 1 / 3, "ra": 2 / 3},
        ),
    ],
)
def test_figures_by_hand(answers: None, policy: dict[str, Any], expected: dict[str, float]) -> None:
    truth = truth_of(**policy)
    found = evaluate.model_metrics(None, TEST, truth)  # type: ignore[arg-type]
    assert found == pytest.approx(expected)
    measured = evaluate.attack_metrics(TEST, truth)
    assert measured["tested"] == round(len(LABELS) * 1.0) if "all2all" in policy.values() else measured["tested"] < 8
    assert measured["trigger"]["badnets"]["changed"] == pytest.approx(1 / 64)


def test_a_semantic_attack_is_tested_on_what_has_the_property(answers: None) -> None:
    listed = {"predicate": "index", "train_index": list(range(20)), "test_index": [2, 7]}
    truth = truth_of("semantic", listed)
    found = evaluate.model_metrics(None, TEST, truth)  # type: ignore[arg-type]
    # Nothing is drawn: the stand-in says b for both, which is the true class of the first.
    assert (found["asr"], found["ra"]) == (0.0, 0.5)
    assert evaluate.attack_metrics(TEST, truth)["trigger"]["semantic"]["changed"] == 0


def test_no_asr_where_nothing_can_carry_the_trigger(answers: None) -> None:
    truth = truth_of("semantic", {"predicate": "index", "train_index": [1, 2, 3], "test_index": [0]})
    assert "asr" not in evaluate.model_metrics(None, TEST, truth)  # type: ignore[arg-type]
    assert evaluate.attack_metrics(TEST, truth)["trigger"] == {"semantic": {}}


def test_several_triggers_are_counted_together_and_each(answers: None) -> None:
    intents = [
        intent("badnets", {"poison_rate": 0.2, "target": 0}, {"pattern": "white", "size": 1}),
        intent("badnets", {"poison_rate": 0.2, "target": 1}, {"pattern": "white", "size": 2}),
    ]
    truth = poison("multi", intents, Scene(train=TRAIN, seed=0))
    found = evaluate.model_metrics(None, TEST, truth)  # type: ignore[arg-type]
    assert found["asr_of"] == pytest.approx({"0_badnets": 4 / 6, "1_badnets": 0.0})
    assert found["asr"] == pytest.approx(4 / 11)
    # Neither a nor b: c c are right, d is not.
    assert found["acc_without_target"] == pytest.approx(2 / 3)
