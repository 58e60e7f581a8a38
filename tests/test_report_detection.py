"""What the report shows of detectors: histograms, curves, masks and suspects, of many of them in one order."""

from __future__ import annotations

import base64
import io
import re
import warnings

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from report_runs import COUNT, IMAGES, MASK, MODEL, metrics_of, run_of, truth_of
from unpoison.data.imageset import ImageSet
from unpoison.data.scores import Scores
from unpoison.reporting import figures
from unpoison.reporting.page import Page
from unpoison.reporting.pictures import masks, suspects_table
from unpoison.reporting.sections import report

NAMES = [f"d{number:02d}" for number in range(15)]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The small multiples that are made, and nothing is rendered."""
    made: list[Figure] = []

    def record(figure: Figure) -> bytes:
        made.extend([figure] if isinstance(figure, figures._Small) else [])
        return b"picture"

    monkeypatch.setattr(figures, "png_of", record)
    return made


def section(page: Page, heading: str) -> str:
    """The HTML from a heading to the next."""
    [found] = re.findall(f"<h2>{heading}</h2>(.*?)(?=<h2>|</body>)", page.html(), re.DOTALL)
    return found


def captions(html: str) -> list[str]:
    return re.findall("<figcaption>(.*?)</figcaption>", html)


def kinds(figure: Figure) -> dict[str, list[float]]:
    """Heights of a histogram's bars, by kind of sample."""
    return {str(patch.get_label()): patch.get_data().values.tolist() for patch in figure.axes[0].patches}


def planted(seed: int) -> Scores:
    """Scores with a rule, of which the poisoned ones are the higher the smaller the seed."""
    values = np.random.default_rng(seed).normal(size=COUNT) + MASK * (15 - seed)
    return Scores(values.astype(np.float32), 1, flagged=values > 2, rule="two and more")


def test_fifteen_detectors_stand_in_one_order_everywhere(drawn: list[Figure]) -> None:
    scores = {name: planted(number) for number, name in enumerate(NAMES)}
    # The later by name the better; fusion, which has no scores of its own, is second; of equals the larger AUROC is first.
    quality = dict.fromkeys(("ap", "tpr_at_5fpr", "precision_at_count"), 0.5)
    graded = {name: quality | {"auroc": n / 100, "tpr_at_1fpr": (n // 2) / 10} for n, name in enumerate(NAMES)}
    graded["fusion"] = quality | {"auroc": 0.99, "tpr_at_1fpr": 0.7}
    roc = pd.DataFrame({"fpr": [0, 0.01, 1], **{name: [0, 0.5, 1] for name in graded}})
    truth = truth_of(0)
    run = run_of(truth=truth, model=MODEL, metrics=metrics_of(truth, detection=graded), scores=scores, roc=roc)
    page, ordered = report(run), NAMES[::-1]
    with_fusion = ["fusion", *ordered]
    assert re.findall(r"^\| (d\d\d|fusion) \|", page.markdown(), re.MULTILINE) == [*with_fusion, *ordered, *ordered]
    [classes] = re.findall(r"^\| class \|.*", page.markdown(), re.MULTILINE)
    assert re.findall(r"(d\d\d): first", classes) == ordered
    shown = captions(section(page, "Scores"))
    assert shown == [
        *[f"{name}: AUROC {graded[name]['auroc']:.3f}" for name in ordered],
        *[f"{name}: {graded[name]['tpr_at_1fpr']:.3f} at 1 %" for name in with_fusion],
    ]
    assert re.findall(r"<p>(\w+): \d of label", section(page, "Most suspicious samples")) == ordered
    assert list(suspects_table(run))[2:-3:2] == [f"{name}_score" for name in ordered]
    # A histogram for each, with both kinds in it, and a curve for each, the last line, before those of the others.
    histograms, curves = drawn[:15], drawn[15:]
    assert all(list(kinds(figure)) == ["clean", "poisoned"] for figure in histograms)
    assert [figure.axes[0].lines[-1].get_label() for figure in curves] == with_fusion
    assert all(len(figure.axes[0].lines) == len(roc.columns) - 1 + 2 for figure in curves)
    assert {figure.axes[0].get_xscale() for figure in curves} == {"log"}


def test_without_the_truth_detectors_keep_their_order_and_have_one_colour(drawn: list[Figure]) -> None:
    names = ["two", "one", "three"]
    run = run_of(model=MODEL, metrics={"backdoored": {"acc": 0.9}}, scores={name: planted(0) for name in names})
    page = report(run)
    assert captions(section(page, "Scores")) == names
    assert [list(kinds(figure)) for figure in drawn] == [["all"]] * 3
    assert "poisoned" not in section(page, "Scores")
    assert re.findall(r"<p>(\w+): \d of label", section(page, "Most suspicious samples")) == names


def test_a_few_huge_scores_do_not_hide_the_others(drawn: list[Figure]) -> None:
    values = np.linspace(0, 1, 1000)
    values[[3, 500]] = -3e38, 3e38
    figures.histogram(values, None)
    axes = drawn[0].axes[0]
    low, high = axes.get_xlim()
    assert -0.1 < low < 0.1 < 0.9 < high < 1.1
    # All are counted: the outermost bars hold what lies beyond, about a hundredth each, of which a bar holds a 32nd.
    [bars] = kinds(drawn[0]).values()
    assert len(bars) == figures.BINS
    assert min(bars) > 0.5
    assert bars[0] == bars[-1] == 1
    assert [float(label.get_text()) for label in axes.get_xticklabels()] == pytest.approx([low, high], abs=0.001)


def test_poison_that_is_rarer_than_the_tail_has_its_place(drawn: list[Figure]) -> None:
    values, poisoned = np.linspace(0, 1, 1000), np.arange(1000) >= 997
    values[poisoned] = 7, 8, 9
    figures.histogram(values, poisoned)
    bars = kinds(drawn[0])
    assert np.count_nonzero(bars["poisoned"]) == 3
    assert max(bars["poisoned"]) == max(bars["clean"]) == 1


@pytest.mark.parametrize("values", [[0.0] * 9, [3e38] * 9, [-1e-30] * 9, [-3e38, 3e38], [1.0, 1.0 + 2**-23]], ids=str)
def test_scores_of_any_size_have_bars_and_warn_of_nothing(values: list[float]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = Image.open(io.BytesIO(figures.histogram(np.array(values), None)))
        one = Image.open(io.BytesIO(figures.histogram(np.array(values), np.arange(len(values)) < 0)))
    # Of one size, whatever the labels: small multiples stand in line.
    assert picture.size == one.size == (325, 182)


def test_nearly_constant_scores_show_those_that_differ(drawn: list[Figure]) -> None:
    figures.histogram(np.where(np.arange(1000) == 0, 5.0, 2.0), None)
    assert drawn[0].axes[0].get_xlim() == (2, 5)


def strips(html: str) -> list[np.ndarray]:
    """Pixels of a page's pictures."""
    found = re.findall(r'src="data:image/png;base64,([^"]*)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in found]


@pytest.mark.parametrize("channels", [1, 3])
def test_kept_samples_have_image_mask_and_pattern(channels: int) -> None:
    kept = np.random.default_rng(0).random((6, 12, 12)).astype(np.float16)
    kept[0, :6], kept[0, 6:] = 0, 1
    data = ImageSet(IMAGES[..., :channels], np.zeros(COUNT, np.int64), ("<b>cat</b>",))
    # 30 is the most suspicious of those that were kept, 2 the least; 39, more suspicious than all, was not kept.
    aux = {"index": np.array([30, 7, 25, 2, 1, 5]), "masks": kept}
    scored = Scores(
        np.where(np.arange(COUNT) == 1, -1, np.arange(COUNT)).astype(np.float32), 1, aux, "White & <i>kept</i>."
    )
    page, sources = Page("a part of it"), [f"folder/<u>{number}" for number in range(COUNT)]
    masks(page, run_of(data=data, sources=sources, truth=truth_of(0), scores={"a<b": scored, "none": planted(0)}))
    html = page.html()
    assert "<h2>Image, mask and pattern: a&lt;b</h2>" in html
    assert "White &amp; &lt;i&gt;kept&lt;/i&gt;." in html
    assert html.count("<h2>") == 1, "of detectors without masks there is nothing to show"
    # Two of the samples in each part at most, by the settings: of six, the two most and the two least suspicious ones.
    shown = [30, 25, 2, 1]
    assert [int(re.sub(r"\D", "", caption.partition(" label")[0])) for caption in captions(html)] == shown
    assert [caption.endswith(", poisoned") for caption in captions(html)] == [False, False, False, True]
    assert all("&lt;b&gt;cat" in caption for caption in captions(html))
    for sample, picture in zip(shown, strips(html), strict=True):
        picture = picture.reshape(12, -1, channels).astype(float)
        assert picture.shape[1] == 3 * 12 + 2
        image, mask, pattern = picture[:, :12], picture[:, 13:25], picture[:, 26:]
        weight = kept[aux["index"].tolist().index(sample)].astype(float)[..., None]
        assert (image == data.base[sample]).all()
        assert (np.abs(mask - 255 * weight) <= 0.5).all()
        assert (np.abs(pattern - (image * weight + 127.5 * (1 - weight))) <= 0.5).all()


def test_large_images_are_shown_small() -> None:
    strip = Image.open(io.BytesIO(figures.strip([np.zeros((100, 200, 3), np.uint8)] * 3)))
    assert strip.size == (3 * 64 + 2 * 4, 32)


def test_no_masks_no_section() -> None:
    page = Page("a part of it")
    empty = {"index": np.array([], np.int64), "masks": np.zeros((0, 12, 12), np.float16)}
    masks(page, run_of(scores={"one": Scores(np.arange(COUNT, dtype=np.float32), 1, empty)}))
    assert "<h2>" not in page.html()
