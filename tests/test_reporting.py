"""The report: a section for what there is and none for what there is not, and remarks."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from report_runs import CLASSES, COUNT, IMAGES, MASK, MODEL, TRUE, metrics_of, run_of, scores_of, truth_of
from unpoison.data.imageset import ImageSet, Overlay
from unpoison.data.scores import Assumption, Scores
from unpoison.data.verdicts import Verdict
from unpoison.poisoning.policy import Policy
from unpoison.poisoning.triggered import Triggered
from unpoison.poisoning.truth import Part, Truth
from unpoison.reporting import figures, pictures, sections
from unpoison.reporting.page import Page
from unpoison.reporting.sections import report


def headings(page: Page) -> list[str]:
    return re.findall("<h2>(.*?)</h2>", page.html())


def rows(page: Page, first: str) -> list[list[str]]:
    """The rows of the Markdown table whose header begins with a word."""
    lines = page.markdown().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {first} |"))
    end = next(number for number in range(start, len(lines) + 1) if not "".join(lines[number : number + 1]))
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[start + 2 : end]]


def plain(table: list[list[str]]) -> list[list[str]]:
    """Cells without the intervals."""
    return [[re.sub(r" \[.*\]", "", cell) for cell in row] for row in table]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is made, none of them rendered, which takes most of the time."""
    made: list[Figure] = []

    def record(figure: Figure) -> bytes:
        made.append(figure)
        return b"picture"

    monkeypatch.setattr(figures, "png_of", record)
    return made


def axes_of(made: list[Figure], ylabel: str) -> Any:
    return next(figure.axes[0] for figure in made if figure.axes[0].get_ylabel() == ylabel)


def test_data_alone(drawn: list[Figure]) -> None:
    page = report(run_of(settings={"note": "a note", "samples": 3}))
    assert headings(page) == ["What was run", "Models", "The same images through the pipeline"]
    assert "a note" in page.markdown()
    assert "No model of this run was graded" in page.markdown()
    assert rows(page, "") == [
        ["data", r"pets (a\|folder): 40 train, 12 test; 12x12x3"],
        ["attack", "unknown: data of unknown origin"],
    ]
    # Images as received, of three samples, and nothing to compare them with.
    assert [len(figure.axes) for figure in drawn] == [3]


def test_scores_of_data_of_unknown_origin(drawn: list[Figure]) -> None:
    run = run_of(model=MODEL, scores=scores_of(2), metrics={"backdoored": {"acc": 0.9}}, settings={"suspects": 5})
    page = report(run)
    assert headings(page) == [
        "What was run",
        "Models",
        "Suspects by class",
        "Agreement of the detectors",
        "The same images through the pipeline",
        "Scores",
        "Most suspicious samples",
    ]
    assert "Nothing is known about an attack, so there is no ASR" in page.markdown()
    # Of 12 test images.
    assert rows(page, "model") == [["backdoored", "0.900 [.626,\u00a0.980]"]]
    assert "accuracy on the 12 images of the test split" in page.markdown()
    assert ["seed", "3"] in rows(page, "")
    assert ["network", "name resnet18, width 8"] in rows(page, "")
    assert ["training", "epochs 2"] in rows(page, "")
    assert "Marked in red" not in page.html()
    assert 'class="hit"' not in page.html()
    assert page.html().count('<img class="" alt=') == 2 * 5


def test_everything(drawn: list[Figure]) -> None:
    truth = truth_of(0)
    test = ImageSet(IMAGES[:12], TRUE[:12], CLASSES)
    attacked = np.flatnonzero(test.labels != 0)
    triggered = {"badnets": Triggered(test, Overlay(attacked, 255 - IMAGES[attacked], np.zeros(8, np.int64)))}
    quality = {"auroc": 0.95, "ap": 0.5, "tpr_at_1fpr": 0.25, "tpr_at_5fpr": 0.75, "precision_at_count": 0.5}
    student, fst = {"acc": 0.85, "asr": 0.05, "ra": 0.8}, {"acc": 0.7, "asr": 0.0, "ra": 0.6}
    flagged = {"flagged": 4.0, "flagged_tpr": 0.75, "flagged_fpr": 0.125}
    detection = {"detector0": quality | flagged, "strong": quality | {"auroc": 0.9, "tpr_at_1fpr": 0.5}}
    metrics = metrics_of(
        truth,
        student=student,
        purified={"fst": fst},
        detection=detection,
        inputs={"strip": quality | {"flagged_tpr": 0.5}},
    )
    masks = {"index": np.array([7, 4]), "masks": np.full((2, 12, 12), 0.5, np.float16)}
    curve = pd.DataFrame({"epoch": [1, 2], "accuracy": [0.5, 0.6], "loss": [1.0, 0.5]})
    losses = np.where(MASK, 0.1, 1.0) * np.ones((2, 1))
    losses[0, 0] = np.nan  # left out of an epoch
    run = run_of(
        truth=truth,
        triggered=triggered,
        model=MODEL,
        sampler={"strength": 0.6},
        variations=ImageSet(np.repeat(IMAGES, 2, 0), np.repeat(TRUE, 2), CLASSES),
        metrics=metrics,
        roc=pd.DataFrame({"fpr": [0, 0.1, 1], "detector0": [0, 0.5, 1]}),
        intervals=pd.DataFrame(
            {"level": [0.025, 0.975], "detector0.auroc": [0.9, 1.0], "inputs.strip.auroc": [0.8, 0.99]}
        ),
        scores=scores_of(
            1, aux=masks, caption="What the masks show.", flagged=np.arange(COUNT) < 4, rule="the first four"
        ),
        curves={"backdoored": curve, "student": curve.iloc[:0]},
        losses=losses,
        settings={"samples": 4},
    )
    page = report(run)
    assert headings(page) == [
        "What was run",
        "Models",
        "Detection",
        "Suspects by class",
        "Detection at test time",
        "The same images through the pipeline",
        "The trigger at the test",
        "Scores",
        "Image, mask and pattern: detector0",
        "Most suspicious samples",
        "Training",
    ]
    assert ["attack", "badnets size 2; target class 0 (cat); 4 of 40 samples (10.00%)"] in rows(page, "")
    assert ["variations", "strength 0.6"] in rows(page, "")
    # Of 12 test images, of 8 of other classes than the target, and of 8 that carry the trigger.
    ends = ("0.900 [.626,\u00a0.980]", "0.800 [.455,\u00a0.950]", "0.700 [.366,\u00a0.904]", "0.200 [.050,\u00a0.545]")
    assert rows(page, "model")[0] == ["backdoored", *ends]
    assert "ACC: accuracy on 12 clean test images. ASR: share of 8 triggered test images" in page.markdown()
    assert "ACC without target: on 8 clean test images" in page.markdown()
    assert plain(rows(page, "model")) == [
        ["backdoored", "0.900", "0.800", "0.700", "0.200"],
        ["student", "0.850", "–", "0.050", "0.800"],
        ["purified: fst", "0.700", "–", "0.000", "0.600"],
    ]
    stealth = ["20.000", "0.900", "1.000", "2.000", "0.100"]
    assert rows(page, "trigger at the test") == [["badnets", "0.700 [.366,\u00a0.904]", *stealth]]
    assert (
        rows(page, "detector")
        == [
            ["detector0", "0.950 [.900,\u00a01.000]", "0.500", "0.250", "0.750", "0.500", "1", ""],
            ["strong", "0.900", "0.500", "0.500", "0.750", "0.500", "–", ""],
        ][::-1]
    )
    assert "Figures are of all 40 samples, 4 of them poisoned." in page.markdown()
    # Of 4 poisoned and 36 clean samples.
    rates = ["0.750 [.301,\u00a0.954]", "0.125 [.052,\u00a0.270]"]
    assert rows(page, "rule of") == [["detector0", "4\u00a0of\u00a040", *rates, "the first four"]]
    assert rows(page, "detector of inputs") == [
        ["strip", "0.950 [.800,\u00a0.990]", "0.500", "0.250", "0.750", "0.500 [.215,\u00a0.785]", "–"]
    ]
    assert "8 triggered test images among 12 clean ones" in page.markdown()
    assert "8 triggered test images (of other classes than the target)" in page.markdown()
    assert "What the masks show." in page.html()
    # Marked are those of the shown suspects that are poisoned: the three with the highest scores are none of them.
    assert page.html().count('class="hit"') == 0
    assert "Marked in red" in page.html()
    # Clean, received, difference, variation.
    assert len(drawn[1].axes) == 4 * 4
    points = axes_of(drawn, "ASR (triggered test images)").collections
    assert [tuple(map(float, point.get_offsets()[0])) for point in points] == [(0.9, 0.7), (0.85, 0.05), (0.7, 0.0)]
    lines = {line.get_label(): line.get_ydata().tolist() for line in axes_of(drawn, "loss").lines}
    assert lines == {"clean": [1.0, 1.0], "poisoned": [pytest.approx(0.1)] * 2}


def test_a_collapse_is_said_with_the_class(drawn: list[Figure]) -> None:
    truth = truth_of(0)
    fallen = {"acc": 0.3, "asr": 1.0, "ra": 0.0, "collapsed": {"class": 1.0, "share": 0.995}}
    page = report(run_of(truth=truth, metrics=metrics_of(truth, purified={"ft": fallen})))
    said = r"purified: ft has collapsed: 99.5% of the 12 clean test images get class 1 (\<b>dog\</b>)"
    assert said in page.markdown()
    assert page.markdown().count("collapsed") == 1


def test_an_undertrained_model_is_said(drawn: list[Figure]) -> None:
    for learned, said in ((0.42, True), (0.95, False)):
        curve = pd.DataFrame({"epoch": [1, 2], "loss": [2.0, 1.0], "accuracy": [0.9, learned]})
        text = report(run_of(curves={"backdoored": curve})).markdown()
        assert ("only 42% of its training samples their labels: it is undertrained" in text) == said
    assert "undertrained" not in report(run_of()).markdown()


def test_what_a_robust_training_found_is_said_without_the_truth_too(drawn: list[Figure]) -> None:
    found = {"suspects": 0.21083, "tuned": 1.0, "woken": 0.0169}
    metrics = {"backdoored": {"acc": 0.9}, "robust": {"default_defence": {"acc": 0.9, "found": found}}}
    page = report(run_of(metrics=metrics))
    assert "robust: default_defence found: suspects 0.2108, tuned 1, woken 0.0169." in page.markdown()
    assert page.markdown().count("Woken: ") == 1


def test_epochs_without_a_loss_are_not_drawn(drawn: list[Figure]) -> None:
    losses = np.ones((3, COUNT), np.float32)
    losses[1, MASK] = np.nan
    curve = pd.DataFrame({"epoch": [1, 2, 3], "accuracy": [0.5, 0.6, 0.7]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report(run_of(truth=truth_of(0), curves={"backdoored": curve}, losses=losses))
    lines = {line.get_label(): line.get_xdata().tolist() for line in axes_of(drawn, "loss").lines}
    assert lines == {"clean": [1, 2, 3], "poisoned": [1, 3]}


def test_poisoned_suspects_are_marked(drawn: list[Figure]) -> None:
    run = run_of(
        truth=truth_of(0), scores={"one": Scores(-np.arange(COUNT, dtype=np.float32), 1)}, settings={"suspects": 5}
    )
    assert report(run).html().count('class="hit"') == 2  # of samples 0 to 4: 1 and 4


def test_several_triggers(drawn: list[Figure]) -> None:
    truth = truth_of(0, 2)
    metrics = metrics_of(truth)
    metrics["backdoored"]["asr_of"] = {"0_badnets": 0.6}
    page, run = Page("a part of it"), run_of(truth=truth, model=MODEL, metrics=metrics)
    sections.what_was_run(page, run)
    sections.models(page, run)
    assert [row[:2] for row in rows(page, "trigger at the test")] == [["0_badnets", "0.600"], ["1_badnets", "–"]]
    [text] = [row[1] for row in rows(page, "") if row[0] == "attack"]
    assert (
        text
        == "multi; badnets size 2: target class 0 (cat); badnets size 2: target class 2 (eel); 4 of 40 samples (10.00%)"
    )


@pytest.mark.parametrize(
    ("policy", "text", "tested"),
    [
        ({"label_policy": "all2all", "shift": 2}, "class y to y + 2", "of all classes"),
        ({"label_policy": "clean_label"}, "clean label, target class 0 (cat)", "of other classes than the target"),
        (
            {"label_policy": "source_specific", "sources": [1]},
            r"classes 1 (\<b>dog\</b>) to target class 0 (cat)",
            "of the source classes",
        ),
        (
            {"cover_ratio": 1.0, "cover_classes": [2]},
            "target class 0 (cat), covers of classes 2 (eel)",
            "of other classes than the target",
        ),
        ({"poison_first": False}, "in one draw: triggers are stamped in training", "of other classes than the target"),
    ],
)
def test_every_policy_has_words(policy: dict[str, Any], text: str, tested: str, drawn: list[Figure]) -> None:
    truth = Truth(
        "badnets", (Part("badnets", Policy(**policy), {}),), MASK, np.where(MASK, 0, -1).astype(np.int8), TRUE
    )
    page, run = Page("a part of it"), run_of(truth=truth, model=MODEL, metrics=metrics_of(truth))
    sections.what_was_run(page, run)
    sections.models(page, run)
    assert text in page.markdown()
    assert f"({tested})" in page.markdown()


@pytest.mark.parametrize(
    ("least_share", "auroc", "remark"),
    [
        (0.2, 0.89, "takes poison for rare; here poison is 22% of class 0 (cat), so it fails"),
        (0.2, 0.90, "takes poison for rare; here poison is 22% of class 0 (cat), the edge of what it can take"),
        (0.23, 0.5, ""),
        (None, 0.5, ""),
    ],
)
def test_remarks_are_of_broken_assumptions(least_share: float | None, auroc: float, remark: str) -> None:
    assumption = None if least_share is None else Assumption("takes poison for rare", least_share)
    quality = {"auroc": auroc, "ap": 0.5, "tpr_at_1fpr": 0.5, "tpr_at_5fpr": 0.5, "precision_at_count": 0.5}
    # The second detector was graded and its scores are gone.
    detection, truth = {"detector0": quality, "gone": quality}, truth_of(0)
    metrics = metrics_of(truth, detection=detection)
    page = Page("a part of it")
    sections.detection(page, run_of(truth=truth, metrics=metrics, scores=scores_of(1, assumption=assumption)))
    graded, gone = rows(page, "detector")
    assert graded[-1] == remark
    assert gone[6:] == ["–", ""]


def test_figures_of_a_sample_are_said_to_be_of_one(drawn: list[Figure]) -> None:
    # Of the first 10 samples three are poisoned, and they are three of seven cats: of all 40, 4 of 18.
    index, assumption = np.arange(10), Assumption("takes poison for rare", 0.4)
    quality = dict.fromkeys(("auroc", "ap", "tpr_at_1fpr", "tpr_at_5fpr", "precision_at_count"), 0.5)
    quality |= {"scored": 10.0, "scored_poisoned": 3.0}
    scores = {"one": Scores(np.arange(10, dtype=np.float32), 1, assumption=assumption, index=index)}
    truth = truth_of(0)
    page = report(run_of(truth=truth, metrics=metrics_of(truth, detection={"one": quality}), scores=scores))
    [row] = rows(page, "detector")
    assert row[-1] == "takes poison for rare; here poison is 43% of class 0 (cat), so it fails"
    assert row[-1] in page.markdown()
    assert page.markdown().count("Figures are of 10 scored samples (of 40), 3 of them poisoned.") == 1
    assert "all 10 scored samples (of 40) with their scores are in suspects.csv" in page.html()


def test_detectors_of_inputs_say_of_how_many_images_their_figures_are(drawn: list[Figure]) -> None:
    quality = dict.fromkeys(("auroc", "ap", "tpr_at_1fpr", "tpr_at_5fpr", "precision_at_count"), 0.5)
    rule = {"flagged": 2.0, "flagged_tpr": 0.5, "flagged_fpr": 0.0}
    sampled = quality | rule | {"scored": 10.0, "scored_poisoned": 4.0}
    truth, page = truth_of(0), Page("a part of it")
    sections.inputs(
        page, run_of(truth=truth, metrics=metrics_of(truth, inputs={"cd": sampled, "strip": quality | rule}))
    )
    assert [row[-2:] for row in rows(page, "detector of inputs")] == [
        ["0.500 [.150,\u00a0.850]", "0.000 [.000,\u00a0.390]"],
        ["0.500 [.215,\u00a0.785]", "0.000 [.000,\u00a0.242]"],
    ]
    said = "of 4 triggered test images among 6 clean ones, 8 triggered test images among 12 clean ones, each by itself"
    assert said in page.markdown()


def test_more_methods_than_colours_are_all_drawn(drawn: list[Figure]) -> None:
    count = len(figures.COLOURS) + 3
    truth, models = truth_of(0), {f"method{number}": {"acc": 0.9, "asr": 0.1} for number in range(count)}
    curve = pd.DataFrame({"epoch": [1, 2], "accuracy": [0.5, 0.6]})
    run = run_of(
        truth=truth,
        metrics=metrics_of(truth, purified=models),
        scores=scores_of(count),
        curves=dict.fromkeys(models, curve),
    )
    page = report(run)
    assert len(axes_of(drawn, "ASR (triggered test images)").collections) == count + 1
    assert [line.get_label() for line in axes_of(drawn, "accuracy").lines] == list(models)
    assert all(f"<p>{name}: 1 of label cat, 1 of label eel, 1 of label" in page.html() for name in scores_of(count))
    assert len(rows(page, "model")) == count + 1


def test_what_stress_tests_say_of_a_purified_model(drawn: list[Figure]) -> None:
    truth = truth_of(0)
    tested = {"acc": 0.8, "asr": 0.1, "der": 0.75, "retuned_asr": 0.9, "reactivated_asr": 0.5}
    controls = {"retuned_asr_clean": 0.125, "reactivated_asr_clean": 0.25}
    other = {"acc": 0.8, "asr": 0.2, "der": 0.7, "reactivated_asr": 0.5, "reactivated_asr_clean": 0.375}
    metrics = metrics_of(truth, clean={"acc": 0.95, "asr": 0.0}, purified={"fst": tested | controls, "_x": other})
    line = pd.DataFrame({"t": [0, 1], "fst.acc": [0.8, 0.9], "fst.asr": [0.1, 0.7], "_x.acc": [0.8, 0.9]})
    page = report(run_of(truth=truth, metrics=metrics, line=line))
    assert [row[:1] + row[-3:] for row in plain(rows(page, "model"))] == [
        ["backdoored", "–", "–", "–"],
        ["clean", "–", "–", "–"],
        ["purified: fst", "0.750", "0.900", "0.500"],
        [r"purified: \_x", "0.700", "–", "0.500"],
    ]
    text = " ".join(page.markdown().replace("\\", "").split())
    assert "The clean model has 0.125 after the same steps." in text
    assert "The clean model gives the attacker's label to 0.250 to 0.375 of the same images." in text
    axes = axes_of(drawn, "share of test images")
    assert [(list(line.get_ydata()), line.get_linestyle()) for line in axes.lines] == [
        ([0.8, 0.9], "-"),
        ([0.1, 0.7], "--"),
        ([0.8, 0.9], "-"),
    ]
    assert [entry.get_text().strip() for entry in axes.get_legend().get_texts()] == ["fst", "_x"]
    # A defence's rating alone, as in every run.
    metrics = metrics_of(truth, purified={"fst": {"acc": 0.8, "asr": 0.1, "der": 0.75}})
    page = report(run_of(truth=truth, metrics=metrics, line=pd.DataFrame({"t": []})))
    assert rows(page, "model")[1][-1] == "0.750"
    assert "retuned" not in page.markdown().lower()
    assert "Between a purified" not in page.html()


def test_verdicts_name_the_classes_they_flag(drawn: list[Figure]) -> None:
    aux = {"masks": np.zeros((3, 12, 12), np.float16), "patterns": np.full((3, 3, 12, 12), 200, np.uint8)}
    aux["masks"][1, :2, :3] = 0.5
    patchy = Verdict(np.array([-1, 4.25, 0], np.float32), np.arange(3) == 1, "2 below", 1200, "The patches.", aux)
    silent = Verdict(np.array([0.5, 0.25, 1], np.float32), np.zeros(3, bool), "p below 0.05", 60)
    verdicts, truth = {"patchy": patchy, "silent": silent}, truth_of(1)
    graded = {"patchy": {"flagged": 1.0, "anomaly": 4.25, "hit": 1.0, "false_alarms": 0.0}}
    metrics = metrics_of(truth, models=graded)
    page = report(run_of(truth=truth, metrics=metrics, verdicts=verdicts, settings={"suspects": 2}))
    assert "Models inspected" in headings(page)
    assert rows(page, "inspector") == [
        ["patchy", r"1 (\<b>dog\</b>)", "1", "0", "1,200", "2 below"],
        ["silent", "none", "–", "–", "60", "p below 0.05"],
    ]
    assert [row[1:] for row in rows(page, "anomaly index of class")] == [
        ["-1.00", "0.50"],
        ["4.25", "0.25"],
        ["0.00", "1.00"],
    ]
    # The two most suspicious patches, of which the first is flagged.
    shown = page.html().split("The patches.")[1].split("<h2>")[0]
    captions = re.findall("<figcaption>(.*?)</figcaption>", shown)
    assert captions == ["1 (&lt;b&gt;dog&lt;/b&gt;): 4.2, flagged", "2 (eel): 0.0"]
    # Without the truth nothing is right or wrong, whatever stands in the metrics.
    unknown = report(run_of(metrics={"backdoored": {"acc": 0.9}, "models": graded}, verdicts=verdicts)).markdown()
    assert "Nothing is known about an attack, so nobody can say here whether a flag is right" in unknown
    assert r"| patchy | 1 (\<b>dog\</b>) | – | – |" in unknown
    assert "Models inspected" not in report(run_of()).markdown()


def test_a_patch_is_shown_on_black(monkeypatch: pytest.MonkeyPatch) -> None:
    images: list[np.ndarray] = []
    monkeypatch.setattr(figures, "thumbnail", lambda image: images.append(image) or b"picture")
    masks, patterns = np.zeros((2, 2, 2), np.float16), np.full((2, 1, 2, 2), 200, np.uint8)
    masks[1, 0, 0] = 0.5
    verdict = Verdict(
        np.array([0, 1], np.float32), np.zeros(2, bool), "", 1, "", {"masks": masks, "patterns": patterns}
    )
    pictures.patches(Page("page"), run_of(verdicts={"one": verdict}))
    assert [image[..., 0].tolist() for image in images] == [[[100, 0], [0, 0]], [[0, 0], [0, 0]]]
    assert images[0].dtype == np.uint8


def test_of_many_classes_the_most_suspicious_are_shown(drawn: list[Figure]) -> None:
    data = ImageSet(IMAGES, TRUE, tuple(f"c{number}" for number in range(30)))
    low, high = np.arange(30, dtype=np.float32), np.arange(30, 0, -1).astype(np.float32)
    verdicts = {name: Verdict(index, index > 100, "", 1) for name, index in (("low", low), ("high", high))}
    page = report(run_of(data=data, verdicts=verdicts))
    # Ten foremost of either.
    assert [row[0] for row in rows(page, "anomaly index of class")] == [
        f"{number} (c{number})" for number in (*range(10), *range(20, 30))
    ]
    assert "The 20 most suspicious of 30 classes." in page.markdown()
