"""A set of unknown origin: groups that stand apart, canaries, levels, the rules, the answer, the cleaned set, the command line."""

from __future__ import annotations

import csv
import io
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import detect_canary
import train_canary
from canary import run_of_round
from parameters import load_params
from report_runs import CLASSES, COUNT, DATA, run_of, scores_of
from test_detection_values import of_features
from tiny import ROOT, TINY, run_stages, write_params
from unpoison.core.errors import UserError
from unpoison.data.imageset import ImageSet
from unpoison.data.scores import Scores
from unpoison.detection import DETECTORS, separation, transplant
from unpoison.poisoning.policy import Policy
from unpoison.poisoning.truth import Part, Truth
from unpoison.reporting.answer import answer_text, kept_and_removed
from unpoison.reporting.pictures import suspects_csv
from unpoison.reporting.sections import report
from unpoison.reporting.suspicion import (
    FAR,
    HIGH,
    LEVELS,
    LOW,
    MEDIUM,
    Round,
    at_least,
    caught,
    other_alarms,
    reasons,
    suspicion,
)
from unpoison.scan import rules
from unpoison.scan.__main__ import last_accuracy, main
from unpoison.scan.canaries import FEWEST, LEAST, plant
from unpoison.scan.export import export
from unpoison.sources.folder import open_folder


class TestSeparation:
    def rows(self, distance: float, *, poisoned: int = 20) -> tuple[np.ndarray, np.ndarray]:
        """Three classes of 100 samples in 8 dimensions, all normal but for a group in the first one that lies so far away."""
        rng = np.random.default_rng(0)
        rows = rng.normal(size=(300, 8))
        labels = np.repeat(np.arange(3), 100)
        rows[:, 0] += 10 * labels
        rows[:poisoned, 3] += distance
        return rows, labels

    def test_a_group_that_stands_apart_is_flagged_and_no_other_class(self) -> None:
        rows, labels = self.rows(8)
        scores = DETECTORS["separation"].score(of_features(rows, labels, [], []))
        assert scores.flagged is not None
        assert np.flatnonzero(scores.flagged).tolist() == list(range(20))
        # Eight standard deviations, as there is nothing else along the line, less 1.645 times the root of 100 / 1600 + 64 / 200.
        assert scores.values[:20].max() == pytest.approx(8 - 1.02, abs=0.9)
        assert scores.values[20:].max() < 3.5

    def test_a_class_in_one_piece_is_not_flagged(self) -> None:
        rows, labels = self.rows(0)
        scores = DETECTORS["separation"].score(of_features(rows, labels, [], []))
        assert scores.flagged is not None
        assert not scores.flagged.any()
        # The best of a hundred cuts of a normal distribution.
        assert 1.5 < scores.values.max() < 3.5

    def test_variation_is_that_of_the_other_classes(self) -> None:
        rng = np.random.default_rng(1)
        rows, labels = rng.normal(size=(4000, 2)), np.repeat([0, 1], 2000)
        rows[labels == 1] *= [1, 5]
        roots = separation.within_others(rows, labels)
        # The first class is measured by the second one, five times as wide in one direction, and the other way round.
        assert np.diag(roots[0]) == pytest.approx([1, 0.2], rel=0.05)
        assert np.diag(roots[1]) == pytest.approx([1, 1], rel=0.05)

    def test_separation_by_hand(self) -> None:
        places, group = np.array([0.0, 2.0, 7.0, 9.0]), np.array([False, False, True, True])
        # Means 1 and 8, and one standard deviation about each.
        assert separation.separation(places, group) == pytest.approx(7)

    @pytest.mark.parametrize(("few", "rest", "expected"), [(50, 50, 4.3318), (7, 49, 3.9773)])
    def test_the_lower_bound_by_hand(self, few: int, rest: int, expected: float) -> None:
        # 5 - 1.645 sqrt(100 / 2500 + 25 / 200), and 5 - 1.645 sqrt(56 / 343 + 25 / 112): fewer are less sure.
        group = np.arange(few + rest) < few
        assert separation.at_least(5, group) == pytest.approx(expected, abs=1e-3)
        assert separation.at_least(0.1, group) == 0

    def test_classes_too_small_for_a_group_are_ranked_all_the_same(self) -> None:
        rows, labels = self.rows(0)
        few = np.flatnonzero(np.arange(300) % 100 < 4)
        scores = DETECTORS["separation"].score(of_features(rows[few], labels[few], [], []))
        assert len(np.unique(scores.values)) > 3
        assert scores.values.max() == 1
        assert scores.flagged is not None
        assert not scores.flagged.any()


class Corner(nn.Module):
    """Class 0 where the last pixel is white; otherwise what the first one says."""

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.zeros(len(images), 3)
        classes = (images[:, 0, 0, 0] * 255 / 100).round().long().clamp(0, 2)
        classes[images[:, 0, -1, -1] > 0.9] = 0
        return logits.scatter(1, classes[:, None], 1.0)


class TestTransplant:
    def found(self, monkeypatch: pytest.MonkeyPatch, *, corner: int, distance: float = 8) -> Scores:
        """Of three classes whose first one has a group of 20, 20 more than enough to see, whose last pixel has a value."""
        rows, labels = TestSeparation().rows(distance)
        suspect = of_features(rows, labels, [], [])
        pixels = np.zeros((300, 4, 4, 1), np.uint8)
        pixels[:, 0, 0, 0] = 100 * labels
        pixels[:20, -1, -1, 0] = corner
        data = ImageSet(pixels, suspect.data.labels, suspect.data.classes)
        monkeypatch.setattr(transplant, "frozen_for", lambda *_: Corner())
        return DETECTORS["transplant"].score(replace(suspect, data=data))

    def test_what_takes_its_class_along_is_flagged(self, monkeypatch: pytest.MonkeyPatch) -> None:
        scores = self.found(monkeypatch, corner=255)
        assert scores.flagged is not None
        assert np.flatnonzero(scores.flagged).tolist() == list(range(20))
        # The lower right quarter makes every image class 0, and that of the other eighty leaves it what it was.
        assert scores.values[:20].tolist() == [1.0] * 20
        assert scores.values[20:100].tolist() == [0.0] * 80

    def test_a_group_that_is_only_apart_is_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        scores = self.found(monkeypatch, corner=200)
        assert scores.flagged is not None
        assert not scores.flagged.any()
        assert np.abs(scores.values).max() == 0

    def test_nor_one_that_is_not_apart(self, monkeypatch: pytest.MonkeyPatch) -> None:
        scores = self.found(monkeypatch, corner=255, distance=0)
        assert scores.flagged is not None
        assert not scores.flagged.any()

    def test_the_lower_bound_by_hand(self) -> None:
        # 0.75 - 0.25, variances 1/24 and 1/24 of four each: 0.5 - 1.645 sqrt(1/48).
        group, rest = np.array([0.5, 0.75, 0.75, 1]), np.array([0, 0.25, 0.25, 0.5])
        assert transplant.at_least(group, rest) == pytest.approx(0.5 - 1.645 / 48**0.5)


def images(count: int, classes: int, *, side: int = 16) -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    return ImageSet(pixels, np.arange(count) % classes, tuple(f"class {number}" for number in range(classes)))


class TestCanaries:
    @pytest.mark.parametrize(("count", "classes", "each"), [(180, 3, 12), (3000, 10, 30), (60, 3, 6)])
    def test_three_kinds_go_to_classes_of_their_own(self, count: int, classes: int, each: int) -> None:
        data = images(count, classes)
        planted = plant(data, seed=0)
        truth = planted.truth
        assert np.bincount(truth.part + 1).tolist() == [count - 3 * each, each, each, each]
        targets = [part.policy.target for part in truth.parts]
        assert len(set(targets)) == 3
        received = planted.received(data)
        for number, target in enumerate(targets):
            own = np.flatnonzero(truth.part == number)
            assert (received.labels[own] == target).all()
            # Of other classes, and stamped.
            assert (data.labels[own] != target).all()
            assert (received.gather(own) != data.gather(own)).any((1, 2, 3)).all()
        rest = np.flatnonzero(truth.part < 0)
        assert (received.gather(rest) == data.gather(rest)).all()
        assert (received.labels[rest] == data.labels[rest]).all()

    def test_two_classes_take_two_kinds(self) -> None:
        assert len(plant(images(100, 2), seed=0).truth.parts) == 2

    def test_another_round_plants_other_samples(self) -> None:
        one, other = (plant(images(180, 3), seed=seed).truth.part for seed in (0, 1))
        assert (one != other).any()

    def test_classes_that_are_too_small(self) -> None:
        with pytest.raises(UserError, match=r"detect\.canary: .* allowed: at least two classes of 12 images or more"):
            plant(images(2 * FEWEST, 4), seed=0)

    def test_fewest_and_least(self) -> None:
        # The smallest class that may carry canaries has as many of its own beside them.
        assert FEWEST <= LEAST
        assert np.bincount(plant(images(2 * 2 * FEWEST, 2), seed=0).truth.part + 1)[1:].tolist() == [FEWEST, FEWEST]


def scored(values: Any, flagged: Any = None, index: Any = None) -> Scores:
    mask = None if flagged is None else np.array(flagged, bool)
    return Scores(np.array(values, np.float32), 1, flagged=mask, rule="by hand", index=index)


class TestLevels:
    LABELS = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 2])
    # A group far apart in class 0, a nearer one in class 1, none in class 2.
    GROUPS = (
        [6.0, 5.9, 0.1, 4.9, 0.2, 0.1, 3.0, 2.9, 0.0, 0.1],
        [True, True, False, True, False, False, False, False, False, False],
    )

    def test_by_hand(self) -> None:
        scores = {"separation": scored(*self.GROUPS), "other": scored([1, 2, 0, 3, 0, 0, 8, 9, 0, 0])}
        found = suspicion(scores, self.LABELS)
        assert found is not None
        # One sample in a hundred, and so the first of these ten, is low where no group has it.
        assert found.level[[0, 1, 3]].tolist() == [HIGH, HIGH, MEDIUM]
        assert (found.level[[2, 4, 5, 6, 7, 8, 9]] <= LOW).all()
        assert found.apart[[0, 3, 6]] == pytest.approx([6, 4.9, 3])
        assert sorted(found.place) == list(range(1, 11))

    def test_a_group_that_takes_its_class_along_is_high(self) -> None:
        carried = scored([0, 0, 0, 0.9, 0.1, 0, 0, 0, 0, 0], np.arange(10) == 3)
        scores = {"separation": scored(*self.GROUPS), "transplant": carried}
        found = suspicion(scores, self.LABELS)
        assert found is not None
        assert found.level[[0, 1, 3]].tolist() == [HIGH] * 3
        assert found.brought == pytest.approx([0, 0, 0, 0.9, 0, 0, 0, 0, 0, 0])
        words = reasons(found, scores, self.LABELS, CLASSES)
        assert words[0].endswith("apart from the other 1")
        assert words[3].endswith(
            "at least 4.9 standard deviations apart from the other 2; a part of them gives their class to 90% more of the images "
            "that it is put onto"
        )

    def test_without_groups_the_first_of_the_list_are_low(self) -> None:
        found = suspicion({"other": scored(np.arange(10))}, self.LABELS)
        assert found is not None
        assert found.level.tolist() == [0] * 9 + [LOW]
        assert suspicion({}, self.LABELS) is None

    def test_a_lower_bound_is_rounded_down(self) -> None:
        assert [at_least(value) for value in (4.97, 5.0, 4.2, 12.34)] == ["4.9", "5.0", "4.2", "12.3"]

    def test_levels_are_by_the_detectors_of_the_run(self) -> None:
        scores = {"left over": scored(np.arange(COUNT)), "separation": scored(np.arange(COUNT)[::-1], np.zeros(COUNT))}
        both, own = (run_of(scores=scores, **part).suspicion for part in ({}, {"levels_by": ["separation"]}))
        assert own.level.tolist() == [LOW] + [0] * (COUNT - 1)
        assert both.level.tolist() != own.level.tolist()

    def test_samples_that_were_not_scored_have_no_level(self) -> None:
        index = np.array([0, 1, 3, 4])
        groups = scored([6.0, 5.9, 4.9, 0.2], [True, True, True, False], index)
        found = suspicion({"separation": groups}, self.LABELS)
        assert found is not None
        assert found.level.tolist() == [HIGH, HIGH, 0, MEDIUM, *[0] * 6]
        assert found.place[[2, 5]].tolist() == [0, 0]

    def test_reasons(self) -> None:
        scores = {"separation": scored(*self.GROUPS), "other": scored(np.arange(10))}
        found = suspicion(scores, self.LABELS)
        assert found is not None
        words = reasons(found, scores, self.LABELS, ("cat", "dog", "eel"))
        assert (
            words[0]
            == "one of 2 samples of class cat that stand at least 6.0 standard deviations apart from the other 1"
        )
        assert words[2] == ""
        alone = {"other": scored(np.arange(10))}
        low = suspicion(alone, self.LABELS)
        assert low is not None
        assert reasons(low, alone, self.LABELS, CLASSES)[9] == "number 1 of the list: rank 1 by other"


def planted_round(groups: Scores) -> Round:
    """Samples 0 and 1 are canaries of one kind, to class 0, and 3 one of another, to class 1."""
    part = np.full(10, -1, np.int8)
    part[[0, 1, 3]] = [0, 0, 1]
    labels = np.array([1, 2, 0, 2, 1, 1, 2, 2, 2, 2])
    parts = (Part("badnets", Policy(target=0), {}), Part("sig", Policy(target=1), {}))
    return Round(Truth("canaries", parts, part >= 0, part, labels), {"separation": groups})


class TestCalibration:
    def test_what_is_caught(self) -> None:
        first, second = caught(planted_round(scored(*TestLevels.GROUPS)))
        assert (first.kind, first.target, first.count) == ("badnets", 0, 2)
        assert first.found[[LOW, MEDIUM, HIGH]].tolist() == [2, 2, 2]
        assert first.first == {"separation": 2}
        assert second.found[[LOW, MEDIUM, HIGH]].tolist() == [1, 1, 0]

    def test_a_group_that_only_the_other_network_sees(self) -> None:
        values = TestLevels.GROUPS[0]
        # In the set with canaries samples 6 and 7 are a group; 0, 1 and 3 are canaries, and 2 was drawn along with the first two.
        groups = scored(
            [*values[:2], 5.2, *values[3:6], 6.0, 5.9, *values[8:]],
            [True, True, True, True, False, False, True, True, False, False],
        )
        labels = TestLevels.LABELS
        nothing = {"separation": scored(np.linspace(0, 1, 10), np.zeros(10))}
        found = suspicion(nothing, labels, [planted_round(groups)])
        assert found is not None
        assert found.level[[0, 1, 2, 3, 6, 7]].tolist() == [0, 0, 0, 0, HIGH, HIGH]
        assert found.look.tolist() == [0] * 6 + [1, 1, 0, 0]
        assert found.apart[6] == pytest.approx(6)
        assert reasons(found, nothing, labels, CLASSES)[6].endswith("apart from the other 2 beside canaries")
        # What was drawn along is the only false alarm of these levels.
        assert other_alarms(planted_round(groups), found)[0][[MEDIUM, HIGH]].tolist() == [1, 1]
        # What the first network sees at a level as high is its own.
        both = suspicion(
            {"separation": scored([0] * 6 + [7.0, 6.9, 0, 0], np.arange(10) // 2 == 3)}, labels, [planted_round(groups)]
        )
        assert both is not None
        assert both.look.tolist() == [0] * 10
        assert both.apart[6] == pytest.approx(7)

    def test_alarms_beside_the_canaries(self) -> None:
        values, flagged = TestLevels.GROUPS
        # In the set with canaries samples 6 and 7 are flagged too; the scan itself names 6 alone.
        groups = scored([*values[:6], 6.0, 5.9, *values[8:]], [*flagged[:6], True, True, *flagged[8:]])
        scan = suspicion({"separation": scored([0] * 6 + [6.0, *[0] * 3], np.arange(10) == 6)}, TestLevels.LABELS)
        assert scan is not None
        alone, ordinary = other_alarms(planted_round(groups), scan)
        assert alone[[MEDIUM, HIGH]].tolist() == [1, 1]
        assert ordinary == 7


def scan_of(groups: Scores, **parts: Any) -> Any:
    """A run of the report's tests as a scan leaves it; canaries 0 and 1 are caught, 3 is not."""
    part = np.full(COUNT, -1, np.int8)
    part[[0, 1, 3]] = [0, 0, 1]
    parts_ = (Part("badnets", Policy(target=0), {}), Part("sig", Policy(target=1), {}))
    truth = Truth("canaries", parts_, part >= 0, part, np.full(COUNT, 2))
    caught_two = scored([9.0, 8.9, *[0.1] * (COUNT - 2)], np.arange(COUNT) < 2)
    return run_of(scores={"separation": groups}, calibration=[Round(truth, {"separation": caught_two})], **parts)


class TestAnswer:
    NOTHING = scored(np.linspace(0, 3, COUNT), np.zeros(COUNT))
    FOUND = scored(np.where(np.arange(COUNT) < 3, 7.0, 1.0) + np.arange(COUNT) / 100, np.arange(COUNT) < 3)

    def test_nothing(self) -> None:
        text = answer_text(scan_of(self.NOTHING))
        assert text.startswith(
            "Nothing was found: in none of the 3 classes does a group stand 5.5 standard deviations apart from the rest, or "
            "take its class along to other images.\n"
        )
        assert "of 3 canaries this scan would have found 2 (67%); it is blind to most of those by sig." in text
        assert (
            "high: 0 samples; expected false alarms 0 of 37; of the canaries it would have named 2 of 3, 0.667 [.208, .939]\n"
            in text
        )

    def test_something(self) -> None:
        run = scan_of(self.FOUND)
        text = answer_text(run)
        assert text.startswith(
            "Something is wrong: 1 of 13 samples of class 2 (eel) stand at least 7.0 standard deviations apart"
        )
        assert "make export" in text
        page = report(run)
        assert page.html().index("Answer") < page.html().index("What was run")
        assert "What would have been found" in page.markdown()

    def test_a_model_that_has_learned_too_little_gives_no_answer(self) -> None:
        import pandas as pd

        curve = pd.DataFrame({"epoch": [1], "accuracy": [0.5]})
        text = answer_text(scan_of(self.FOUND, curves={"backdoored": curve}))
        assert text.startswith("No answer yet: the model has learned only 50% of the labels")

    def test_without_canaries_nothing_is_known_of_what_would_have_been_found(self) -> None:
        run = run_of(truth=None, scores={"separation": self.FOUND})
        lines = answer_text(run).splitlines()
        assert lines[0].startswith("Something is wrong: 1 of 13 samples of class 2 (eel)")
        assert lines[1].startswith("How sure: unknown, as no canaries were planted")
        assert lines[-3:] == ["high: 3 samples", "medium: 3 samples", "low: 3 samples"]
        assert "Answer" in report(run).html()
        assert "expected false alarms" not in report(run).markdown()

    def test_a_group_of_medium_is_worth_a_look_and_no_more(self) -> None:
        values = np.where(np.arange(COUNT) < 3, 4.5, 1.0) + np.arange(COUNT) / 100
        text = answer_text(scan_of(scored(values, np.arange(COUNT) < 3)))
        assert text.startswith(
            "Nothing was found: in none of the 3 classes does a group stand 5.5 standard deviations apart"
        )
        assert (
            "Worth a look: 1 of 13 samples of class 2 (eel) stand at least 4.5 standard deviations apart from the others (medium)"
            in text
        )
        assert "Next: nothing has to be removed" in text

    def test_what_the_network_with_canaries_alone_sees_is_said(self) -> None:
        part = np.full(COUNT, -1, np.int8)
        part[[0, 1]] = 0
        truth = Truth("canaries", (Part("badnets", Policy(target=0), {}),), part >= 0, part, np.full(COUNT, 2))
        flagged = np.isin(np.arange(COUNT), [2, 5, 8])
        planted = Round(truth, {"separation": scored(np.where(flagged, 6.0, 0.1), flagged)})
        text = answer_text(run_of(scores={"separation": self.NOTHING}, calibration=[planted]))
        assert text.startswith(
            "Something is wrong: 3 of 13 samples of class 2 (eel) stand at least 6.0 standard deviations apart from"
        )
        assert "(high; seen by the network that was trained with canaries, and not by the other)" in text

    def test_how_many_of_a_class_are_of_which_level(self) -> None:
        part = np.full(COUNT, -1, np.int8)
        part[[0, 1]] = 0
        truth = Truth("canaries", (Part("badnets", Policy(target=0), {}),), part >= 0, part, np.full(COUNT, 2))
        received, sure = np.isin(np.arange(COUNT), [2, 5]), np.arange(COUNT) == 8
        planted = Round(truth, {"separation": scored(np.where(sure, 6.0, 0.1), sure)})
        scores = {"separation": scored(np.where(received, 4.5, 0.1), received)}
        text = answer_text(run_of(scores=scores, calibration=[planted]))
        assert "3 of 13 samples of class 2 (eel) stand at least 6.0 standard deviations apart" in text
        assert "(1 high, 2 medium)" in text

    def test_where_the_first_of_the_list_are(self) -> None:
        labels = np.arange(1000) % 4
        # The first ten are of class 1, which is one sample in four.
        first = scored(
            np.where((labels == 1) & (np.arange(1000) < 40), 9.0, 1.0) + np.arange(1000) / 1e4, np.zeros(1000)
        )
        data = ImageSet(np.zeros((1000, 8, 8, 1), np.uint8), labels, ("a", "b", "c", "d"))
        text = answer_text(
            run_of(data=data, sources=[f"{number}.png" for number in range(1000)], scores={"separation": first})
        )
        assert "Of the first 10 of the list 10 are of class 1 (b), which has 25% of the samples" in text

    def test_a_run_that_is_no_scan_has_none(self) -> None:
        assert answer_text(run_of(scores=scores_of(2))) == ""
        assert "Answer" not in report(run_of(scores=scores_of(2))).html()

    def test_kept_and_removed_are_the_set(self) -> None:
        for level, names in (("medium", ["00.png", "01.png", "02.png"]), ("high", ["00.png", "01.png", "02.png"])):
            kept, removed = kept_and_removed(scan_of(self.FOUND, settings={"level": level}))
            assert removed.splitlines() == names
            assert sorted([*kept.splitlines(), *names]) == [f"{number:02d}.png" for number in range(COUNT)]
        kept, removed = kept_and_removed(run_of())
        assert (len(kept.splitlines()), removed) == (COUNT, "")

    def test_the_list_has_level_and_reason_and_begins_with_the_highest(self) -> None:
        rows = list(csv.DictReader(io.StringIO(suspects_csv(scan_of(self.FOUND)))))
        assert [row["level"] for row in rows[:4]] == ["high", "high", "high", "none"]
        assert rows[0]["reason"].startswith("one of 1 samples of class")
        assert {row["level"] for row in rows} <= set(LEVELS)
        assert len(rows) == len(DATA)


class TestRules:
    @pytest.mark.parametrize(
        ("side", "total", "size"), [(40, 180, 40), (500, 180, 64), (500, 5000, 48), (96, 60_000, 32), (9, 100, 16)]
    )
    def test_image_size(self, side: int, total: int, size: int) -> None:
        assert rules.image_size_of(side, total) == size

    @pytest.mark.parametrize(("total", "classes", "epochs"), [(180, 3, 30), (2000, 10, 23), (50_000, 10, 8)])
    def test_epochs(self, total: int, classes: int, epochs: int) -> None:
        assert rules.epochs_of(total, classes) == epochs

    def test_a_large_set_goes_without_masks(self) -> None:
        assert "cd" in rules.detectors_of(180, 64)
        assert "cd" not in rules.detectors_of(50_000, 32)

    def test_trusted_images_are_used(self, folder: Path) -> None:
        found = rules.survey(open_folder(folder), folder)
        without = rules.overrides_of(found, trusted=None, epochs=3, canary=True)
        assert without["data.reserve_from"] == "train"
        assert without["params/detectors.yaml:ss.centre"] == "class"
        with_ = rules.overrides_of(found, trusted=Path("trusted"), epochs=3, canary=False)
        assert (with_["data.reserve_from"], with_["data.reserve_path"]) == ("other", "trusted")
        assert with_["detect.canary"] == []
        assert set(without) == set(with_)
        (folder.parent / "set" / "train").mkdir()
        for label in ("cat", "dog"):
            shutil.copytree(folder / label, folder / "reserve" / label)
            shutil.move(folder / label, folder / "train" / label)
        own = rules.overrides_of(rules.survey(open_folder(folder), folder), trusted=None, epochs=3, canary=True)
        assert (own["data.reserve_from"], own["data.reserve"]) == ("held_out", None)
        assert own["params/detectors.yaml:ss.centre"] == "reserve"

    def test_a_survey(self, folder: Path) -> None:
        found = rules.survey(open_folder(folder), folder)
        assert (found.classes, found.total, found.side) == (("cat", "dog"), 24, 20)
        assert found.sample.shape == (24, 20, 20, 3)

    def test_a_set_without_an_image_that_can_be_used(self, tmp_path: Path) -> None:
        for label in ("cat", "dog"):
            (tmp_path / label).mkdir()
            (tmp_path / label / "0.png").write_bytes(b"\x89PNG and no more")
        with pytest.raises(UserError, match=r"DATA: .* none of whose 2 images looked at can be used; allowed: images"):
            rules.survey(open_folder(tmp_path), tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve images of each of two classes, 20 pixels wide."""
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "set" / label).mkdir(parents=True)
        for number in range(12):
            Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(
                tmp_path / "set" / label / f"{number}.png"
            )
    return tmp_path / "set"


def scanned(path: str) -> None:
    """The parameters of a scan of so and so, in the working directory."""
    Path("params.yaml").write_text(f"data: {{path: {path}}}\n")


class TestExport:
    @pytest.fixture
    def after(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The working directory after a scan that named two images."""
        monkeypatch.chdir(folder.parent)
        (folder.parent / "reports").mkdir()
        names = [f"{label}/{number}.png" for label in ("cat", "dog") for number in range(12)]
        removed = ["cat/3.png", "dog/0.png"]
        Path("reports/removed.txt").write_text("".join(f"{name}\n" for name in removed))
        Path("reports/kept.txt").write_text("".join(f"{name}\n" for name in names if name not in removed))
        Path("reports/answer.txt").write_text("Something is wrong: …\n")
        scanned("set")
        return folder

    def bytes_of(self, folder: Path) -> dict[str, bytes]:
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}

    @pytest.mark.parametrize("form", ["copy", "link"])
    def test_a_folder(self, after: Path, form: Any) -> None:
        before = self.bytes_of(after)
        assert export(Path("set"), "clean", form) == "export: 22 files in clean, 2 left out"
        assert self.bytes_of(Path("clean")) == {
            name: data for name, data in before.items() if name not in ("cat/3.png", "dog/0.png")
        }
        assert self.bytes_of(after) == before
        linked = Path("clean/cat/0.png").stat().st_ino == Path("set/cat/0.png").stat().st_ino
        assert linked == (form == "link")

    def test_an_archive_to_an_archive(self, after: Path) -> None:
        shutil.make_archive("data", "zip", after)
        scanned("data.zip")
        assert export(Path("data.zip"), "clean.zip", "copy").startswith("export: 22 files")
        with zipfile.ZipFile("clean.zip") as archive:
            assert len(archive.namelist()) == 22
            assert archive.read("cat/0.png") == (after / "cat/0.png").read_bytes()

    @pytest.mark.parametrize(
        ("data", "to", "line"),
        [
            ("set", "set", "TO: 'set' given, which exists"),
            ("set", "", "TO: '' given, no name"),
            ("set", "set/clean", "TO: 'set/clean' given, which lies within the data"),
            ("set", "out/../set/clean", "which lies within the data"),
            ("set", "link/clean", "which lies within the data"),
            ("other", "clean", "DATA: 'other' given, allowed: the data of the last scan here, 'set'"),
        ],
    )
    def test_what_is_refused(self, after: Path, data: str, to: str, line: str) -> None:
        Path("link").symlink_to("set")
        with pytest.raises(UserError, match=line):
            export(Path(data), to, "copy")
        assert not Path("clean").exists()
        assert not (after / "clean").exists()

    def test_other_data_than_were_scanned(self, after: Path) -> None:
        (after / "cat/3.png").unlink()
        with pytest.raises(
            UserError, match=r"reports: 'cat/3.png' is no training image of 'set'; allowed: the data as they were"
        ):
            export(Path("set"), "clean", "copy")

    def test_an_image_that_came_later(self, after: Path) -> None:
        shutil.copy(after / "cat/0.png", after / "cat/new.png")
        with pytest.raises(UserError, match=r"DATA: 'cat/new.png' was not there when the data were scanned"):
            export(Path("set"), "clean", "copy")

    def test_a_file_that_cannot_be_used_is_left_out(self, after: Path) -> None:
        (after / "cat/a: b.png").write_bytes(b"no image")
        Path("data/base").mkdir(parents=True)
        Path("data/base/defects.txt").write_text("cat/a: b.png: cannot identify image file\n")
        said = "export: 22 files in clean, 2 left out, and 1 that cannot be used"
        assert export(Path("set"), "clean", "copy") == said
        assert len(self.bytes_of(Path("clean"))) == 22

    def test_a_list_without_a_line_break_at_its_end(self, after: Path) -> None:
        Path("reports/removed.txt").write_text("cat/3.png\ndog/0.png")
        assert export(Path("set"), "clean", "copy") == "export: 22 files in clean, 2 left out"

    @pytest.mark.parametrize("name", ["a\nb.png", "back\\new.png", "größe ü.png"])
    def test_odd_names(self, after: Path, name: str) -> None:
        (after / "cat/3.png").rename(after / "cat" / name)
        usual = {f"{label}/{number}.png" for label in ("cat", "dog") for number in range(12)}
        (listed,) = set(open_folder(after).names["train"]) - usual
        Path("reports/removed.txt").write_text(f"{listed}\ndog/0.png\n")
        assert export(Path("set"), "clean", "copy") == "export: 22 files in clean, 2 left out"

    @pytest.mark.parametrize(
        ("answer", "line"),
        [
            ("", "empty, as the last run here was no scan"),
            ("No answer yet: too little\n", "the last scan here has no answer"),
        ],
    )
    def test_a_run_without_an_answer(self, after: Path, answer: str, line: str) -> None:
        Path("reports/answer.txt").write_text(answer)
        with pytest.raises(UserError, match=rf"reports/answer\.txt: {line}"):
            export(Path("set"), "clean", "copy")

    def test_before_any_scan(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(folder.parent)
        with pytest.raises(UserError, match=r"answer\.txt: no such file; allowed: after `make scan DATA=…`"):
            export(Path("set"), "clean", "copy")


class TestCommand:
    @pytest.fixture(autouse=True)
    def root(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The command works in the root of a working copy, and is taken back from there."""
        monkeypatch.chdir(ROOT)

    def test_the_plan(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        main(["run", str(folder), "--plan"])
        said = capsys.readouterr().out
        assert "scan: 24 train images of 2 classes (12 to 12 each), of 20 px, scanned at 20 px" in said
        assert (
            "a ResNet-18 of width 16 for 180 epochs in batches of 32, and once more with canaries (badnets, blended)"
            in said
        )
        assert "no trusted images" in said
        assert "on this machine, by its first batches" in said

    def test_what_no_stage_could_end_with_is_said_before_any_starts(self, folder: Path) -> None:
        for number in range(10):
            (folder / "dog" / f"{number}.png").unlink()
        with pytest.raises(
            SystemExit, match=r"^error: DATA: 14 images to compare others with, allowed: at least 24, strip"
        ):
            main(["run", str(folder), "--plan"])
        with pytest.raises(
            SystemExit, match=r"^error: TRUSTED: 14 images to compare others with, allowed: at least 24"
        ):
            main(["run", str(folder), "--trusted", str(folder), "--plan"])
        for number in range(20):
            shutil.copy(folder / "cat" / "0.png", folder / "cat" / f"more {number}.png")
        with pytest.raises(
            SystemExit, match=r"^error: detect\.canary: .* allowed: at least two classes of 12 .*CANARY=0"
        ):
            main(["run", str(folder), "--plan"])
        main(["run", str(folder), "--plan", "--without-canary"])

    @pytest.mark.parametrize("given", [["run", ""], ["run", "nowhere"], ["run", ".", "--trusted", "nowhere"]])
    def test_what_does_not_exist(self, given: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(folder)
        with pytest.raises(
            SystemExit,
            match=r"^error: (DATA|TRUSTED): .*(none given|which does not exist); allowed: a folder or archive",
        ):
            main(given)

    def test_the_last_accuracy(self, tmp_path: Path) -> None:
        (tmp_path / "curve.csv").write_text("epoch,accuracy\n1,0.5\n2,0.75\n")
        assert last_accuracy(tmp_path / "curve.csv") == 0.75
        (tmp_path / "curve.csv").write_text("epoch,accuracy\n")
        with pytest.raises(UserError, match=r"curve\.csv: no accuracy found"):
            last_accuracy(tmp_path / "curve.csv")


def test_the_stages_of_a_scan(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a folder to the answer, all stages in this process, with one round of canaries and no test split."""
    project = folder.parent / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    found = rules.survey(open_folder(folder), folder)
    wanted = rules.overrides_of(found, trusted=None, epochs=1, canary=True)
    nested = {key: value for key, value in wanted.items() if key not in ("data.reserve", "detect.methods")}
    tiny = {key: value for key, value in TINY.items() if key.startswith("model.")}
    changes = {**nested, **tiny, "data.reserve": 4, "detect.methods": ["separation", "ac"]}
    write_params(project, changes)
    first = ("check_params", "prepare", "poison", "train_backdoored", "stamp_test", "extract", "examine")
    run_stages(*first, "detect@separation", "detect@ac")
    train_canary.main(0)
    detect_canary.main(0)
    run_stages("evaluate", "report")
    answer = Path("reports/answer.txt").read_text()
    # Of noise nothing can be learned in an epoch.
    assert answer.startswith("No answer yet: the model has learned only")
    rows = list(csv.DictReader(io.StringIO(Path("reports/suspects.csv").read_text())))
    assert len(rows) == 24
    assert {"separation_score", "separation_rank", "ac_score", "ac_rank", "mean_rank", "level", "reason"} <= set(
        rows[0]
    )
    assert len(Path("reports/kept.txt").read_text().splitlines()) + len(
        Path("reports/removed.txt").read_text().splitlines()
    ) == len(rows)
    page = Path("reports/index.html").read_text()
    assert "There is no test split" in page
    assert "What would have been found" in page


@pytest.mark.parametrize("arguments", [[], ["one"], ["0", "1"]])
def test_a_round_that_is_none_is_one_line(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["stages/train_canary.py", *arguments])
    with pytest.raises(
        SystemExit, match=r"^error: params\.yaml: detect\.canary: round '.*' given, allowed: a whole number from 0$"
    ):
        run_of_round("train_canary", lambda number: pytest.fail(f"ran {number}"))


def test_the_page_is_true() -> None:
    text = " ".join((ROOT / "docs" / "scan.md").read_text(encoding="utf-8").split())
    detectors = load_params(ROOT)["params/detectors.yaml"]
    assert f"stands at least {detectors['transplant']['apart']:g} standard deviations apart" in text
    assert detectors["transplant"]["threshold"] == 0.5
    assert "gives its class to at least half of these more" in text
    assert f"or at least {FAR:g} apart, whatever it does to others" in text
    assert f"in a group at least {detectors['separation']['threshold']:g} apart" in text
    (few, large), (many, middle) = rules.SIDES.items()
    assert f"{large} px at most; of more than {few:,} images {middle}, of more than {many:,} 32" in text
    assert f"{rules.STEPS} optimiser steps, or {rules.STEPS_PER_CLASS} for each class if that is more" in text
    assert f"{rules.FEWEST_EPOCHS} epochs at least; in batches of {rules.BATCH}" in text
    assert f"fewer than {rules.SMALL:,} images {rules.SMALL_BATCH}" in text
    *named, last = (f"`{name}`" for name in rules.detectors_of(100, 32))
    assert f"{', '.join(named)}, and {last} up to" in text
    assert LEAST == 12
    assert "at least twelve, of a copy of the set" in text
