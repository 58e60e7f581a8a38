"""Intervals of shares, suspects by class, and how far detectors agree."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy.stats import binomtest

from report_runs import CLASSES, COUNT, GIVEN, IMAGES, MASK, TRUE, metrics_of, run_of, truth_of
from unpoison.data.imageset import ImageSet, Overlay
from unpoison.data.scores import Scores
from unpoison.poisoning.triggered import Triggered
from unpoison.reporting.classes import agreement, by_class, depth, foremost
from unpoison.reporting.intervals import bracketed, images_behind, share_of, wilson
from unpoison.reporting.page import Page
from unpoison.reporting.run import Run


@pytest.mark.parametrize(("hits", "count"), [(0, 7), (7, 7), (1, 1), (3, 12), (1140, 1200), (4, 1080)])
def test_intervals_are_those_of_scipy(hits: int, count: int) -> None:
    expected = binomtest(hits, count).proportion_ci(method="wilson")
    assert wilson(hits / count, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_of_nothing_a_share_may_be_any() -> None:
    assert wilson(0, 0) == (0, 1)


def test_a_figure_is_written_with_its_interval() -> None:
    assert share_of(0.95, 1200) == "0.950 [.936,\u00a0.961]"
    assert share_of(1, 1080) == "1.000 [.996,\u00a01.000]"
    assert share_of(0, 1080) == "0.000 [.000,\u00a0.004]"
    assert bracketed(0.5, 0.25, 0.75) == "0.500 [.250,\u00a0.750]"
    # Of an unknown number, or of none, there is no interval; metrics from elsewhere may say anything.
    assert [share_of(0.5, count) for count in (None, 0, -3)] == ["0.500"] * 3
    assert share_of(None, 9) == "–"


def test_each_share_of_a_model_is_of_so_many_images() -> None:
    truth, test = truth_of(0, 2), ImageSet(IMAGES[:12], TRUE[:12], CLASSES)
    index = np.flatnonzero(test.labels != 0)
    overlay = Overlay(index, IMAGES[index], test.labels[index])
    triggered = dict(zip(truth.names, (Triggered(test, overlay, overlay), Triggered(test, overlay)), strict=True))
    run = run_of(truth=truth, metrics=metrics_of(truth), triggered=triggered)
    tested = dict.fromkeys(("asr", "ra", "retuned_asr", "reactivated_asr"), 8)
    # Of the test's 12 images 4 are of each class, two of which are targets.
    assert images_behind(run) == {"acc": 12, "acc_without_target": 4, "cross_acc": 8, **tested}
    assert images_behind(run_of(metrics={"backdoored": {"acc": 1}})) == {"acc": 12}


def test_the_cut_among_equal_scores_takes_a_part_of_each() -> None:
    values = np.array([5, 1, 1, 1, 9, 0], np.float32)
    assert foremost(values, 3).tolist() == pytest.approx([1, 1 / 3, 1 / 3, 1 / 3, 1, 0])
    assert foremost(values, 2).tolist() == [1, 0, 0, 0, 1, 0]
    assert foremost(values, 6).tolist() == [1] * 6


def test_the_most_suspicious_are_a_share_and_no_fewer_than_are_shown() -> None:
    run = run_of(settings={"suspects": 3})
    assert [depth(run, scored) for scored in (0, 2, 40, 1000)] == [0, 2, 3, 50]


def table(run: Run, section: object) -> tuple[list[list[str]], str]:
    """Header and rows of a section's table, and its text."""
    page = Page("a part of it")
    section(page, run)  # type: ignore[operator]
    lines = [line for line in page.markdown().splitlines() if line.startswith("|")]
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if "---" not in line
    ], page.markdown()


def ranked(first: list[int], **settings: object) -> Scores:
    """Scores by which these samples are the most suspicious, in order."""
    values = np.zeros(COUNT, np.float32)
    values[first] = np.arange(len(first), 0, -1)
    return Scores(values, 1, **settings)  # type: ignore[arg-type]


def test_suspects_are_counted_by_class() -> None:
    # Samples 0, 1 and 4 have label 0, two of them poisoned; 2 has label 2.
    flagged = np.arange(COUNT) < 3
    scores = {"one": ranked([0, 1, 4], flagged=flagged), "two": ranked([2, 5, 0])}
    rows, text = table(run_of(truth=truth_of(0), scores=scores), by_class)
    assert rows == [
        ["class", "samples", "poisoned", "one: first 3", "one: flagged", "two: first 3"],
        ["0 (cat)", str((GIVEN == 0).sum()), "4", "3", "2", "1"],
        [r"1 (\<b>dog\</b>)", str((GIVEN == 1).sum()), "0", "0", "0", "0"],
        ["2 (eel)", str((GIVEN == 2).sum()), "0", "0", "1", "2"],
    ]
    assert "classes, those with the most" not in text
    # Without the truth the same, and nothing is said of poison.
    rows, text = table(run_of(scores=scores), by_class)
    assert rows[0] == ["class", "samples", "one: first 3", "one: flagged", "two: first 3"]
    assert "poison" not in text
    assert table(run_of(), by_class)[0] == []


def test_of_many_classes_those_with_the_most_suspects_are_shown() -> None:
    data = ImageSet(IMAGES, np.arange(COUNT), tuple(f"c{number}" for number in range(COUNT)))
    rows, text = table(run_of(data=data, scores={"one": ranked([39, 17])}), by_class)
    assert len(rows) == 21
    assert {"39 (c39)", "17 (c17)"} <= {row[0] for row in rows}
    assert [int(row[0].split()[0]) for row in rows[1:]] == sorted(int(row[0].split()[0]) for row in rows[1:])
    assert "These are 20 of 40 classes, those with the most." in text


def test_detectors_agree_where_they_find_the_same_samples() -> None:
    poisoned = np.flatnonzero(MASK).tolist()
    scores = {"one": ranked(poisoned), "same": ranked(poisoned[::-1]), "other": ranked([20, 21, 22, poisoned[0]])}
    run = run_of(truth=truth_of(0), scores=scores, settings={"suspects": 4})
    rows, text = table(run, agreement)
    assert rows == [
        ["detector", "one", "same", "other"],
        ["one", "–", "4\u00a0of\u00a04", "1\u00a0of\u00a04"],
        ["same", "4\u00a0of\u00a04", "–", "1\u00a0of\u00a04"],
        ["other", "1\u00a0of\u00a04", "1\u00a0of\u00a04", "–"],
    ]
    # 4 of 40 samples each: 4 times 4 / 40.
    assert re.search(r"would share 0\.", text)


def test_detectors_that_say_nothing_agree_on_nothing() -> None:
    # One score for all: an order by anything else would be the same for both.
    silent = Scores(np.zeros(COUNT, np.float32), 1)
    rows, _ = table(run_of(scores={"one": silent, "two": silent}, settings={"suspects": 20}), agreement)
    assert rows[1] == ["one", "–", "10\u00a0of\u00a020"]


def test_detectors_of_different_samples_are_compared_on_those_that_both_scored() -> None:
    index = np.arange(0, COUNT, 2)
    part = Scores(np.arange(len(index), dtype=np.float32), 1, index=index)
    whole = Scores(np.arange(COUNT, dtype=np.float32), 1)
    apart = Scores(np.arange(2, dtype=np.float32), 1, index=np.array([1, 3]))
    scores = {"part": part, "whole": whole, "apart": apart}
    rows, _ = table(run_of(scores=scores, settings={"suspects": 5}), agreement)
    assert rows[1:] == [
        ["part", "–", "5\u00a0of\u00a05", "–"],
        ["whole", "5\u00a0of\u00a05", "–", "2\u00a0of\u00a02"],
        ["apart", "–", "2\u00a0of\u00a02", "–"],
    ]
    assert table(run_of(scores={"one": whole}), agreement)[0] == []
