"""The report's page, tables, pictures, list of suspects and costs."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from report_runs import COUNT, IMAGES, run_of, scores_of, truth_of
from unpoison.core.files import write_json
from unpoison.data.scores import Scores
from unpoison.reporting import figures, pictures
from unpoison.reporting.costs import costs_table
from unpoison.reporting.page import Page, Table
from unpoison.reporting.pictures import suspects_csv, suspects_table
from unpoison.reporting.run import Run
from unpoison.reporting.sections import report


def test_the_page_is_one_file_and_names_are_text() -> None:
    run = run_of(truth=truth_of(0), scores=scores_of(1), settings={"note": "<script>alert(1)</script>"})
    page = report(run)
    pictures = re.findall(r'src="data:image/png;base64,([^"]*)"', page.html())
    # A contact sheet, a histogram, three thumbnails; nothing is fetched from anywhere.
    assert len(pictures) == 5
    without = re.sub('src="data:[^"]*"', "", page.html())
    assert not re.search("http|src=|href=|url\\(|@import|<script", without)
    assert "&lt;script&gt;" in without
    assert "&lt;b&gt;dog&lt;/b&gt;" in without
    assert page.html() == report(run).html()


def test_figures_are_pictures_and_the_same_every_time() -> None:
    one, other = (figures.contact_sheet({"row": IMAGES[:2, :, :, :1]}, ["a", "b"]) for _ in range(2))
    assert one == other
    assert Image.open(io.BytesIO(one)).format == "PNG"
    small = Image.open(io.BytesIO(figures.thumbnail(np.zeros((128, 100, 1), np.uint8))))
    assert small.size == (50, 64)


def test_suspects_are_ranked_by_all_detectors() -> None:
    second = np.zeros(COUNT, np.float32)
    second[[3, 5]] = [2, 1]
    table = suspects_table(run_of(scores={"one": scores_of(1)["detector0"], "two": Scores(second, 1)}))
    assert list(table.columns) == [
        "sample",
        "label",
        "one_score",
        "one_rank",
        "two_score",
        "two_rank",
        "mean_rank",
        "level",
        "reason",
    ]
    first = table.iloc[0]
    assert (first["sample"], first["label"], first["one_rank"], first["two_rank"]) == ("39.png", "cat", 1, 21.5)
    fifth = table[table["sample"] == "05.png"].iloc[0]
    assert (fifth["label"], fifth["one_rank"], fifth["two_rank"], fifth["mean_rank"]) == ("eel", 35, 2, 18.5)
    assert sorted(table["one_rank"]) == list(range(1, COUNT + 1))
    # The other 38 samples have one score: they share the mean of ranks 3 to 40, and none is in front of the others.
    assert sorted(table["two_rank"]) == [1, 2] + [21.5] * (COUNT - 2)
    assert list(suspects_table(run_of()).columns) == ["sample", "label"]


def test_samples_that_no_detector_scored_are_not_listed() -> None:
    part = Scores(np.array([1, 3, 2], np.float32), 1, index=np.array([4, 10, 30]))
    table = suspects_table(run_of(scores={"one": part}))
    assert table["sample"].tolist() == ["10.png", "30.png", "04.png"]
    assert table["label"].tolist() == ["cat", "cat", "cat"]
    assert table["one_rank"].tolist() == table["mean_rank"].tolist() == [1, 2, 3]
    page = suspects_of(run_of(scores={"one": part}, settings={"suspects": 2}))
    assert re.findall(r'alt="(\d\d)\.png label', page) == ["10", "30"]
    # Beside a detector that scored all, it leaves a gap.
    both = suspects_table(run_of(scores={"one": part, "all": scores_of(1)["detector0"]}))
    assert len(both) == COUNT
    assert both.set_index("sample").loc["10.png", ["one_rank", "all_rank", "mean_rank"]].tolist() == [1, 30, 15.5]
    assert both["one_score"].count() == 3


def suspects_of(run: Run) -> str:
    page = Page("a part of it")
    pictures.suspects(page, run)
    return page.html()


def test_samples_of_one_score_share_their_rank_and_the_page_says_so() -> None:
    # Ten suspects above thirty of one score, which lie class by class: in a list of twenty they come from all over.
    values = np.where(np.arange(COUNT) < 10, 9 - np.arange(COUNT), -1).astype(np.float32)
    run = run_of(scores={"one": Scores(values, 1)}, settings={"suspects": 20})
    table = suspects_table(run)
    assert list(table["one_rank"]) == [*range(1, 11), *[25.5] * 30]
    listed = [int(name[:2]) for name in table["sample"]]
    assert listed[:10] == list(range(10))
    assert sorted(listed) == list(range(COUNT))
    assert 20 < np.mean(listed[10:20]) < 30, "an order by number has the mean 14.5"
    page = suspects_of(run)
    assert ". 30 samples share the score at the cut; which 10 of them are shown means nothing." in page
    # Of the page and of the list the same ones.
    shown = re.findall(r'alt="(\d\d)\.png label', page)
    assert [int(name) for name in shown] == listed[:20]
    for suspects in (10, COUNT):
        other = run_of(scores={"one": Scores(values, 1)}, settings={"suspects": suspects})
        assert "share the score" not in suspects_of(other)


def test_a_table_in_html_and_markdown() -> None:
    table = Table(("name", "text"), [["a<b", "x|y"]], frozenset({1}))
    assert table.markdown() == "| name | text |\n|---|---|\n| a\\<b | x\\|y |"
    assert '<th scope="row" class="text">a&lt;b</th><td class="text">x|y</td>' in table.html()
    box = '<div class="scroll" role="region" tabindex="0" aria-label="of &lt;what&gt;"><table>'
    assert table.html("of <what>").startswith(box)
    assert '<thead><tr><td class="text"></td><th scope="col" class="number">n</th>' in Table(("", "n"), []).html()


def costs(folder: Path, stages: Mapping[str, tuple[float, int]]) -> str:
    for name, (seconds, peak) in stages.items():
        write_json(folder / f"{name}.json", {"seconds": seconds, "peak_mib": peak})
    return costs_table(folder)


def test_a_figure_has_its_interval_on_a_line_of_its_own() -> None:
    cell = Table(("a", "b"), [["x [y", "0.950 [.936, .961]"]]).html()
    assert '<td class="number">0.950 <span>[.936, .961]</span></td>' in cell
    assert 'class="text">x [y</th>' in cell


def test_suspects_have_their_names_below_them_in_full() -> None:
    name = "a folder/" + "long" * 100 + ".png"
    sources = [f"{name}{number}" for number in range(COUNT)]
    html = suspects_of(
        run_of(
            truth=truth_of(0), scores={"one": Scores(np.arange(COUNT, 0, -1).astype(np.float32), 1)}, sources=sources
        )
    )
    shown = re.findall(r"<figcaption><span>(.*?)</span>(.*?)</figcaption>", html)
    # The second one is poisoned: said, and not only marked.
    assert shown == [(f"{name}0", "label cat"), (f"{name}1", "label cat, poisoned"), (f"{name}2", "label eel")]
    assert "title=" not in html


def test_costs_of_the_stages(tmp_path: Path) -> None:
    assert costs_table(tmp_path / "none") == ""
    assert costs(tmp_path, {"train": (20.04, 900), "detect@cd": (20.06, 1000), "report": (1.5, 300)}).splitlines() == [
        "| stage | seconds | peak MiB |",
        "|---|---:|---:|",
        "| detect@cd | 20.1 | 1000 |",
        "| train | 20.0 | 900 |",
        "| report | 1.5 | 300 |",
        "| all | 41.6 | 1000 |",
    ]


def test_damaged_costs_are_left_out_in_a_line_each(tmp_path: Path) -> None:
    costs(tmp_path, {"train|x": (1.0, 9)})
    damaged = [
        "",
        "[]",
        "{}",
        '{"seconds": NaN, "peak_mib": 1}',
        '{"seconds": "1", "peak_mib": 1}',
        '{"seconds": -1, "peak_mib": 1}',
    ]
    for number, text in enumerate(
        [*damaged, '{"seconds": true, "peak_mib": 1}', '{"seconds": 1}', '{"seconds": 1e999, "peak_mib": 1}']
    ):
        (tmp_path / f"{number}.json").write_text(text)
    lines = costs_table(tmp_path).splitlines()
    assert lines[:4] == [
        "| stage | seconds | peak MiB |",
        "|---|---:|---:|",
        r"| train\|x | 1.0 | 9 |",
        "| all | 1.0 | 9 |",
    ]
    assert [line.split(": ")[:2] for line in lines[4:]] == [["left out", str(tmp_path / f"{n}.json")] for n in range(9)]
    (tmp_path / "train|x.json").unlink()
    assert costs_table(tmp_path).splitlines() == lines[4:]


def test_numbers_of_the_list_stand_without_quotes() -> None:
    one = Scores(np.array([0.123456789, 2.0, 1e-9], np.float32), 1, index=np.array([4, 10, 30]))
    lines = suspects_csv(run_of(scores={"one": one})).splitlines()
    assert [line.split(",")[2:4] for line in lines[1:4]] == [["2", "1"], ["0.123457", "2"], ["1e-09", "3"]]
