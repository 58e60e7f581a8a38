"""Names that may hold anything, through every format: read back, each stands there as it is written and nothing else."""

from __future__ import annotations

import csv
import io
import os
import re
import subprocess
import sys
import warnings
from html.parser import HTMLParser

import matplotlib.cbook
import numpy as np
import pytest
from markdown_it import MarkdownIt

from report_runs import IMAGES, run_of, scores_of, truth_of
from unpoison.data.imageset import ImageSet
from unpoison.reporting import escaping, figures
from unpoison.reporting.page import Page, Table
from unpoison.reporting.pictures import suspects_csv, suspects_table
from unpoison.reporting.sections import report

NAMES = (
    "$x^2$",
    "$$ \\alpha",
    "a\nb",
    "<script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    '" onerror="alert(1)',
    "' onload='alert(1)",
    "<!-- x -->",
    "&amp; &#60; &lt",
    "[x](http://evil.example)",
    "![x](http://evil.example)",
    "[x]: http://evil.example",
    "[x][y] <http://evil.example>",
    "http://evil.example www.evil.example HTTPS://evil.example",
    "`code` ``x",
    "a|b\\|c\\",
    "# heading",
    "- item",
    "1. item",
    "> quote",
    "---",
    "===",
    "*b* _e_ __s__ ~~d~~ snake_case_",
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-1+1",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    " =1",
    "\uff1d1",
    "'=1",
    "a;=1",
    'quo"te,d',
    "\x1b[31mred\x07",
    "nul\x00",
    "\u202egpj.exe",
    "a\u2028b\u200bc",
    "猫 \u3000 🐈",
    "_under",
    "lone \ud800",
    "x" * 10_000,
)
LABELS = np.arange(len(NAMES))
DATA = ImageSet(np.repeat(IMAGES[:1], len(NAMES), 0), LABELS, NAMES)
TAGS = frozenset(
    re.findall(
        r"\w+", "html head meta title style body main h1 h2 p div table thead tbody tr th td span figure figcaption img"
    )
)
TEXTS = [escaping.visible(name, keep=escaping.JOINERS) for name in NAMES]


class Parsed(HTMLParser):
    """The tags, attributes and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.sources: set[str] = set()
        self.texts: list[str] = []
        self.other: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.sources |= {str(value)[:22] for name, value in attrs if name == "src"}
        self.texts += [str(value) for name, value in attrs if name == "alt"]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        self.other.append(data)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "png_of", lambda _: b"picture")


@pytest.mark.usefixtures("undrawn")
def test_a_page_of_hostile_names_shows_them_and_does_nothing() -> None:
    count = len(NAMES)
    settings = {"suspects": count, "samples": 2}
    scores = {name: type(scored)(np.arange(count, dtype=np.float32), 1) for name, scored in scores_of(1).items()}
    run = run_of(data=DATA, sources=list(NAMES), scores=scores, settings=settings)
    page = Parsed(report(run).html())
    assert page.tags <= TAGS
    allowed = "lang charset name content class alt src scope role tabindex aria-label"
    assert page.attributes <= set(allowed.split())
    assert page.sources == {"data:image/png;base64,"}
    assert not page.other
    shown = set(page.texts)
    # By name and by class; of this set the two are the same.
    assert {f"{text} label {text}" for text in TEXTS} <= shown


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_notes_data_sets_and_classes_in_page_and_summary(name: str) -> None:
    about = {"name": name, "source": name, "counts": {"train": 40}}
    data = ImageSet(IMAGES, np.zeros(40, np.int64), (name, "b", "c"))
    run = run_of(data=data, about=about, truth=truth_of(0), settings={"note": name, "samples": 1})
    written, text, folded = report(run), escaping.visible(name, keep=escaping.JOINERS), " ".join(name.split())
    note = escaping.visible(folded, keep=escaping.JOINERS)
    # GitHub makes links of addresses that stand alone; the renderer here does not.
    summary = written.markdown()
    assert "://" not in summary.replace("\\://", "")
    assert "www." not in summary
    for page in (written.html(), MarkdownIt("commonmark").enable("table").render(summary)):
        parsed = Parsed(page)
        assert parsed.tags <= TAGS
        assert not parsed.other
        shown = "\n".join(part.strip(" ") for part in parsed.texts if part != "\n") + "\n"
        assert f"\n{note}\n" in f"\n{shown}"
        assert f"\n{text.strip(' ')} ({text}): 40 train; 12x12x3\n" in shown
        assert f"target class 0 ({text});" in shown


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_markdown_of_cells_paragraphs_and_prose(name: str) -> None:
    text, renderer = escaping.visible(name, keep=escaping.JOINERS), MarkdownIt("commonmark").enable("table")
    table = Parsed(renderer.render(Table(("a", name), [[name, name]]).markdown()))
    assert [part for part in table.texts if part != "\n"] == ["a", *[text.strip()] * 3]
    page = Page(name)
    page.heading(name)
    page.text(name)
    assert Parsed(renderer.render(page.markdown())).tags == {"h1", "h2", "p"}
    if "`" not in name:
        folded = escaping.visible(" ".join(name.split()), keep=escaping.JOINERS)
        assert Parsed(renderer.render(f"- {escaping.prose(name)}")).texts[-3].strip() == folded


def test_code_in_prose_stays_code_and_ends_no_cell() -> None:
    text = Table(("a",), [[escaping.prose("see `make a|b` and *that* `x")]]).markdown(str)
    cell = MarkdownIt("commonmark").enable("table").render(text)
    assert "<td>see <code>make a|b</code> and *that* `x</td>" in cell
    assert escaping.code("a`b|c") == "`a'b\\|c`"


def test_no_cell_of_a_spreadsheet_is_a_formula_and_every_name_comes_back() -> None:
    scores = {name: type(scored)(np.arange(len(NAMES), dtype=np.float32), 1) for name, scored in scores_of(1).items()}
    text = suspects_csv(run_of(data=DATA, sources=list(NAMES), scores=scores))
    rows = list(csv.reader(io.StringIO(text)))
    assert {len(row) for row in rows} == {7}
    # Names, and the reason at the end, which may hold the name of a class.
    texts = [cell for row in rows for cell in (*row[:2], row[-1])]
    assert not [cell for cell in texts if cell.strip().startswith(("=", "+", "-", "@", "\uff1d"))]
    assert not [cell for cell in texts if escaping.visible(cell, keep=escaping.JOINERS) != cell]
    back = {escaping.from_spreadsheet(row[0]) for row in rows[1:]}
    assert back == set(TEXTS)
    # In quotes, so that no separator of another country's spreadsheet ends the cell.
    assert '"a;=1"' in text
    assert escaping.spreadsheet("-0.25") == "-0.25"


def test_labels_of_figures_are_no_mathematics_and_warn_of_nothing() -> None:
    for name in NAMES:
        label = figures.label_of(escaping.visible(name))
        assert not matplotlib.cbook.is_math_text(label.replace("\\$", ""))
        assert len(label) < 500
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.contact_sheet({"猫 $x$": IMAGES[:3], "b\x00": IMAGES[:3]}, [NAMES[0], NAMES[4], "🐈"])
        for name in NAMES:
            figures.roc(np.array([0.0, 1.0]), {name: np.array([0.0, 1.0])}, name)
    assert escaping.figure("猫$") == "\\u732b\\$"
    assert escaping.figure("x" * 99) == "x" * 20 + "…" + "x" * 19


def test_a_terminal_of_any_encoding_is_told_and_obeys_nothing() -> None:
    for encoding in ("ascii", "latin-1", "utf-8"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        for name in NAMES:
            escaping.say(name, file=stream)
        stream.seek(0)
        lines = stream.read().split("\n")
        assert all(line.replace("\u3000", " ").isprintable() for line in lines)
        assert "\\x1b[31mred\\x07" in lines
    assert escaping.terminal("a\nb\x1b") == "a\nb\\x1b"


def test_a_reader_that_has_enough_ends_the_program_without_a_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream, pytest.raises(SystemExit):
        escaping.say("a", file=stream)


def test_mains_print_names_on_a_terminal_that_is_not_utf8() -> None:
    text = '{"metrics.json": {"größe\\u001b": {"old": 0.1, "new": 0.2}}}'
    done = subprocess.run(
        [sys.executable, "-m", "unpoison.reporting.metrics_diff"],
        input=text.encode(),
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
    )
    assert done.returncode == 0
    assert b"| gr\\xf6\\xdfe\\\\x1b | 0.1000 | 0.2000 | +0.1000 |" in done.stdout


def test_a_list_of_many_suspects_is_written_in_a_moment() -> None:
    count = 12_000
    data = ImageSet(np.zeros((count, 1, 1, 3), np.uint8), np.zeros(count, np.int64), ("=a",))
    run = run_of(data=data, sources=[f"-{i}/é{i}.png" for i in range(count)], scores={})
    assert suspects_table(run)["sample"].str.startswith("'-").all()
    assert suspects_csv(run).count("\n") == count + 1
