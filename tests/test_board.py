"""The board: its file, its cells by hand, the order of its runs, its page, and the committed one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from suite_files import ROOT, VARIED
from unpoison.board.__main__ import main
from unpoison.board.board import Board, Solved, read_board
from unpoison.board.cells import Cell, Map, maps_of
from unpoison.board.families import FAMILIES, Family
from unpoison.board.order import needed
from unpoison.board.page import FOLDER, board_page, folder_of, opened, shown, table_csv, write_board
from unpoison.board.verdict import beside_others
from unpoison.core.errors import UserError
from unpoison.suites.published import read_published
from unpoison.suites.reading import read_suite
from unpoison.suites.record import Run, write_record
from unpoison.suites.suite import Suite

RULE = Solved(asr=0.05, acc_drop=0.02, ra_drop=0.2, tpr=0.9)
DETECTORS, _, MODELS, PURIFIERS, ROBUST = FAMILIES
# Two suites with the same attacks, of which the second has a purifier that works on scores.
ONE = {**VARIED, "set": {"data.name": "digits", "detect.methods": ["cd", "ac"]}}
TWO = {**VARIED, "set": {"data.name": "digits", "purify.methods": ["fst"], "purify.by.dbr": "scores/fct"}}
FILE: dict[str, Any] = {
    "title": "A board",
    "attacks": ["badnets", "blended"],
    "rates": [0.1, 0.4, 0.05],
    "taken": 0.5,
    "solved": {"asr": 0.05, "acc_drop": 0.02, "ra_drop": 0.2, "tpr": 0.9},
    "scales": {"cpu": {"Digits": {"suites": {"one": "full", "two": "full"}}}},
}


def repository(folder: Path, board: dict[str, Any] = FILE, runs: dict[str, list[Run]] | None = None) -> Path:
    (folder / "suites").mkdir(exist_ok=True)
    for name, values in (("one", ONE), ("two", TWO)):
        (folder / "suites" / f"{name}.yaml").write_text(yaml.safe_dump(values))
    (folder / "board.yaml").write_text(yaml.safe_dump(board))
    (folder / "reports" / "suites").mkdir(parents=True, exist_ok=True)
    for name, of_suite in (runs or {}).items():
        write_record(folder / "reports" / "suites" / f"{name}.runs.csv", of_suite)
    return folder


def ran(suite: Suite, experiment: str, *, seed: int = 0, data: str = "digits", **figures: float) -> Run:
    settings = suite.settings("full", experiment)
    metrics = {name.replace("__", "."): value for name, value in figures.items()}
    about = {"commit": "0123abcd", "device": "cpu: X", "torch": "2.0", "seconds": 60.0, "data": data}
    return Run(scale="full", experiment=experiment, seed=seed, settings=settings, metrics=metrics, **about)


def suites(folder: Path) -> tuple[Suite, Suite]:
    repository(folder)
    return read_suite("one", folder / "suites"), read_suite("two", folder / "suites")


@pytest.fixture
def recorded(tmp_path: Path) -> tuple[Path, Board]:
    """One detector's and one purifier's figures at two rates, of which the victim has learned the attack at the first."""
    one, two = suites(tmp_path)
    victim = {"backdoored__acc": 0.9, "backdoored__asr": 0.8, "backdoored__ra": 0.1}
    runs = {
        "one": [
            ran(one, "badnets-0.1", **victim, detection__cd__auroc=0.97, detection__cd__tpr_at_1fpr=0.95),
            ran(one, "badnets-0.05", **{**victim, "backdoored__asr": 0.4}, detection__cd__auroc=0.6),
        ],
        "two": [
            ran(two, "badnets-0.1", **victim, purified__fst__acc=0.88, purified__fst__asr=0.05, purified__fst__ra=0.7)
        ],
    }
    root = repository(tmp_path, runs=runs)
    return root, read_board(root)


def of(maps: list[Map], family: Family) -> Map:
    return next(found for found in maps if found.family == family)


@pytest.mark.parametrize(
    ("family", "figures", "expected"),
    [
        # The victim has ACC 0.87: 0.85 is the 0.02 less that is allowed, and RA may be 0.2 below 0.85.
        (PURIFIERS, {"acc": 0.85, "asr": 0.05, "ra": 0.65}, True),
        (PURIFIERS, {"acc": 0.849, "asr": 0.05, "ra": 0.65}, False),
        (PURIFIERS, {"acc": 0.85, "asr": 0.051, "ra": 0.65}, False),
        (PURIFIERS, {"acc": 0.85, "asr": 0.05, "ra": 0.649}, False),
        (ROBUST, {"acc": 0.85, "asr": 0.05}, None),
        (DETECTORS, {"auroc": 1.0, "tpr_at_1fpr": 0.9}, True),
        (DETECTORS, {"auroc": 1.0, "tpr_at_1fpr": 0.89}, False),
        (DETECTORS, {"auroc": 1.0}, None),
        (MODELS, {"hit": 1.0, "false_alarms": 0.0}, True),
        (MODELS, {"hit": 1.0, "false_alarms": 1.0}, False),
        (MODELS, {"hit": 0.5, "false_alarms": 0.0}, False),
    ],
)
def test_when_a_cell_is_solved(family: Family, figures: dict[str, float], expected: bool | None) -> None:
    assert family.solved(figures, {"acc": 0.87, "asr": 1.0, "ra": 0.0}, RULE) is expected


def test_which_methods_a_run_asks_for() -> None:
    overrides = {
        "detect.methods": ["cd"],
        "purify.by.dbr": "scores/fct",
        "robust.methods": [],
        "variations.enabled": True,
    }
    assert [family.asked(overrides) for family in FAMILIES] == [{"cd"}, set(), set(), {"dbr"}, {"distillation"}]
    # Of two detectors and more there is what they say together.
    assert DETECTORS.asked({"detect.methods": ["cd", "ac"]}) == {"cd", "ac", "fusion"}


def test_cells_by_hand(recorded: tuple[Path, Board]) -> None:
    root, board = recorded
    maps = maps_of(board, "cpu", root)
    assert [(found.data_set, found.data) for found in maps] == [("Digits", "digits")] * 5
    cells = of(maps, DETECTORS).cells
    caught = cells["cd", ("badnets", 0.1)]
    assert (caught.figures, caught.taken, caught.solved) == ({"auroc": 0.97, "tpr_at_1fpr": 0.95}, True, True)
    assert (caught.suite, caught.scale, len(caught.runs)) == ("one", "full", 1)
    # The attack was not learned; the next was not run; the last no suite has.
    unlearned = cells["cd", ("badnets", 0.05)]
    assert (unlearned.figures, unlearned.taken, unlearned.solved) == ({"auroc": 0.6}, False, None)
    assert cells["ac", ("blended", 0.4)] == Cell(suite="one", scale="full")
    assert cells["ss", ("badnets", 0.1)] == Cell() == cells["cd", ("blended", 0.1)]
    purified = of(maps, PURIFIERS).cells
    assert purified["fst", ("badnets", 0.1)].solved
    assert purified["dbr", ("badnets", 0.1)] == Cell(suite="two", scale="full")


def test_data_sets_are_not_mixed_and_seeds_are_averaged(tmp_path: Path) -> None:
    one, _ = suites(tmp_path)
    figures = [0.9, 0.7]
    runs = [ran(one, "badnets-0.1", detection__cd__auroc=figures[0], backdoored__asr=1.0, data="folder a.zip")]
    root = repository(
        tmp_path, runs={"one": [*runs, ran(one, "badnets-0.1", detection__cd__auroc=0.7, backdoored__asr=1.0)]}
    )
    first, second = (found for found in maps_of(read_board(root), "cpu", root) if found.family == DETECTORS)
    assert (first.data, second.data) == ("digits", "folder a.zip")
    assert [found.cells["cd", ("badnets", 0.1)].figures["auroc"] for found in (first, second)] == [0.7, 0.9]
    changed = {**ONE, "scales": {"full": {**ONE["scales"]["full"], "seeds": [0, 1]}}}
    (root / "suites" / "one.yaml").write_text(yaml.safe_dump(changed))
    again = read_suite("one", root / "suites")
    both = [
        ran(again, "badnets-0.1", seed=seed, detection__cd__auroc=value, backdoored__asr=1.0)
        for seed, value in enumerate(figures)
    ]
    write_record(root / "reports" / "suites" / "one.runs.csv", both)
    cell = of(maps_of(read_board(root), "cpu", root), DETECTORS).cells["cd", ("badnets", 0.1)]
    # Of 0.9 and 0.7 the mean is 0.8, and the sample standard deviation 0.2 over the root of 2.
    assert (cell.figures["auroc"], cell.spread["auroc"]) == (pytest.approx(0.8), pytest.approx(0.2 / 2**0.5))


def test_published_figures_stand_beside_ours(tmp_path: Path) -> None:
    (tmp_path / "published.csv").write_text("attack,method,rate,acc,asr,ra\nbadnets,fst,0.1,0.9,0.01,0.8\n")
    data_set = {"suites": {"two": "full"}, "published": "published.csv", "source": "a paper"}
    root = repository(tmp_path, {**FILE, "scales": {"cpu": {"Digits": data_set}}})
    board = read_board(root)
    maps = maps_of(board, "cpu", root)
    cell = of(maps, PURIFIERS).cells["fst", ("badnets", 0.1)]
    assert cell.published == {"acc": 0.9, "asr": 0.01, "ra": 0.8}
    assert "published: acc 0.900, asr 0.010, ra 0.800" in opened(of(maps, PURIFIERS), "fst", ("badnets", 0.1), cell)
    assert "a paper" in board_page(board, "cpu", maps).markdown()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("attack,method\n", r"line 1: columns attack, method found, allowed: attack, method, rate, acc, asr, ra$"),
        ("", r"line 1: columns none found"),
        ("HEAD\nbadnets,fst,0.1,90,0,0\n", r"line 2: acc: 90\.0 given; "),
        ("HEAD\nbadnets,fst,0.1,nan,0,0\n", r"line 2: acc: nan given; "),
        ("HEAD\nbadnets,fst,0.1,x,0,0\n", r"line 2: '0\.1, x, 0, 0' found, allowed: numbers$"),
        ("HEAD\nbadnets,fst,0.1,1,0\n", r"line 2: 5 cells found, allowed: 6$"),
        ("HEAD\nbadnets,fst,0.1,1,0,0\nbadnets,fst,0.10,1,0,0\n", r"line 3: badnets, fst, 0\.1 found once more"),
        ('HEAD\n"', r"not readable as CSV"),
        ("HEAD\n" + 100_000 * "badnets,fst,0.1,1,0,0\n", r"larger than 131,072 bytes, allowed: a table of figures$"),
    ],
)
def test_published_figures_that_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "published.csv"
    path.write_text(text.replace("HEAD", "attack,method,rate,acc,asr,ra"))
    with pytest.raises(UserError, match=message):
        read_published(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attacks": ["wanet"]}, r"attacks: 'wanet' given, allowed: experiments of the suites$"),
        (
            {"attacks": ["badnets", "badnets"]},
            r"attacks: \['badnets', 'badnets'\] given, allowed: at least one, each once$",
        ),
        ({"rates": []}, r"rates: \[\] given, allowed: at least one"),
        ({"rates": [10]}, r"rates\.0: 10 given; "),
        ({"solved": {"asr": 2.0}}, r"solved\.asr: 2\.0 given; "),
        ({"colour": 1}, r"colour: unknown key, allowed: title, attacks"),
        (
            {"scales": {"cpu": {"Digits": {"suites": {"one": "tiny"}}}}},
            r"scales\.cpu\.Digits\.suites\.one: 'tiny' given, allowed: ",
        ),
        (
            {"scales": {"cpu": {"Digits": {"suites": {"one": "full"}, "source": "x"}}}},
            r"scales\.cpu\.Digits\.source: allowed: ",
        ),
        ({"scales": {"../x": {}}}, r"scales: '\.\./x' given as a name, allowed: small letters"),
        ({"scales": {"cpu": {"Digits": {"suites": {"three": "full"}}}}}, r"SUITE: 'three' given, allowed: one, two$"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else None,
)
def test_a_board_that_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_board(repository(tmp_path, {**FILE, **changes}))


def test_the_first_runs_are_whole_columns_of_the_most_telling_attacks(recorded: tuple[Path, Board]) -> None:
    root, board = recorded
    assert [(need.suite, need.row.experiment) for need in needed(board, "cpu", root)] == [
        ("one", "blended-0.4"),
        ("two", "blended-0.4"),
        ("two", "badnets-0.05"),
    ]
    (root / "reports" / "suites" / "one.runs.csv").unlink()
    assert [(need.suite, need.row.experiment) for need in needed(board, "cpu", root)][:2] == [
        ("one", "badnets-0.1"),
        ("one", "blended-0.4"),
    ]


def test_page_and_table(recorded: tuple[Path, Board]) -> None:
    root, board = recorded
    path = write_board(root, board, "cpu")
    page, summary = path.read_text(), (path.parent / "index.md").read_text()
    assert path == root / FOLDER / "index.html"
    # One file that asks for nothing else, and whose ids are each there once.
    assert "http" not in page
    assert "src=" not in page
    ids = re.findall(r"<div id=(c\d+) popover>", page)
    assert sorted(ids) == sorted(set(re.findall(r"popovertarget=(c\d+)", page)))
    assert len(ids) == len(set(ids)) > 5
    assert "| cd | 0.97 ✓ | · | 1 of 1 |" in summary
    assert "| cd | 0.60† | · | – |" in summary
    assert "| ac |  | · | – |" in summary
    assert "| fst | 0.05 ✓ | · | 1 of 1 |" in summary
    assert "make suite SUITE=one SCALE=full EXPERIMENTS=badnets-0.1" in page
    assert "Purifiers, 40% poisoned: not run." in summary
    assert "| Purifiers | Digits | 1 of 6 | fst 1 of 1 |" in summary
    rows = (path.parent / "board.csv").read_text().splitlines()
    cells = sum(len(family.methods) for family in FAMILIES) * 2 * 3
    assert len(rows) == 1 + cells


def test_what_a_method_costs_is_a_mean_over_its_cells(tmp_path: Path) -> None:
    one, two = suites(tmp_path)
    runs = {
        "one": [
            ran(one, "badnets-0.1", detection__cd__auroc=0.9, detection__cd__passes_per_sample=28.5),
            # Of an older record, which has no cost: it takes no part.
            ran(one, "badnets-0.05", detection__cd__auroc=0.9, detection__ac__auroc=0.5),
        ],
        "two": [
            ran(two, "badnets-0.1", purified__fst__asr=0.1, purified__fst__passes=20_000),
            ran(two, "badnets-0.05", purified__fst__asr=0.1, purified__fst__passes=30_000, purified__ft__passes=7560),
        ],
    }
    root = repository(tmp_path, runs=runs)
    page = write_board(root, read_board(root), "cpu").with_suffix(".md").read_text()
    assert "| method | badnets | blended | solved | passes per sample |" in page
    assert "| cd | 0.90 | · | – | 28.5 |" in page
    assert "| ac | 0.50 | · | – | – |" in page
    assert "| method | badnets | blended | solved | images passed |" in page
    assert "| fst | 0.10 | · | – | 25 k |" in page
    assert re.search(r"\| ft \|.*\| 7\.6 k \|", page)
    assert "asr 0.1, passes 20,000<" in (root / FOLDER / "index.html").read_text()


def test_a_cell_that_was_not_run_shows_nothing_and_one_that_nobody_has_a_dot() -> None:
    assert (shown(Cell(suite="one"), "asr"), shown(Cell(), "asr")) == ("", "·")


def test_the_default_defence_beside_the_others_by_hand() -> None:
    verdicts = {
        "default_defence": {"badnets": True, "blended": True, "sig": False},
        "abl": {"badnets": True, "blended": False, "sig": True},
        "dst": {"badnets": False, "blended": False, "sig": True},
        # Not run on all three, so no method to be held against.
        "pdb": {"badnets": True, "blended": True},
    }
    cells = {
        (method, (attack, 0.1)): Cell(solved=verdicts.get(method, {}).get(attack))
        for method in ROBUST.methods
        for attack in ("badnets", "blended", "sig")
    }
    assert beside_others([Map("Digits", "digits", ROBUST, cells)]) == (
        "default_defence solves 2 of the 3 cells that it was run on and whose attack took. Of the 2 other methods that were run "
        "on all of these the best single one, abl, solves 2; the best of them for each cell, in hindsight, 2."
    )
    assert beside_others([Map("Digits", "digits", ROBUST, {key: Cell() for key in cells})]) == ""


def test_a_suite_that_is_like_another(tmp_path: Path) -> None:
    root = repository(tmp_path)
    like = {"like": "one", "title": "Further", "set": {"detect.methods": ["ss"]}}
    (root / "suites" / "three.yaml").write_text(yaml.safe_dump(like))
    suite, one = read_suite("three", root / "suites"), read_suite("one", root / "suites")
    assert (suite.title, suite.set) == ("Further", {"data.name": "digits", "detect.methods": ["ss"]})
    assert suite.experiments == one.experiments
    for name, line in (
        ("three", r"^suites/four\.yaml: like: 'three' given, which is like another itself"),
        ("four", r"^suites/four\.yaml: like: 'four' given, allowed: the name of another suite$"),
        ("five", r"^SUITE: 'five' given, allowed: four, one, three, two$"),
    ):
        (root / "suites" / "four.yaml").write_text(yaml.safe_dump({"like": name}))
        with pytest.raises(UserError, match=line):
            read_suite("four", root / "suites")


def test_command_line(
    recorded: tuple[Path, Board], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, _ = recorded
    monkeypatch.setattr("unpoison.board.__main__.Repository.here", lambda: type("Here", (), {"root": root}))
    main(["plan"])
    assert "board, scale cpu: 3 runs to make" in capsys.readouterr().out
    main(["page"])
    assert capsys.readouterr().out == "wrote reports/board/index.html\n"
    for arguments, line in (
        (["page", "--scale", "tiny"], "SCALE: 'tiny' given, allowed: cpu"),
        (["make", "--most", "-1"], "MOST: -1 given, allowed: from 1"),
        (["make", "--data", "Digits"], "DATA: 'Digits' given, allowed: TITLE=PATH"),
        (["make", "--data", "CIFAR=x"], "DATA: 'CIFAR' given, allowed: Digits"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert line in str(ended.value.code)


def test_the_committed_board_is_that_of_the_records() -> None:
    board = read_board(ROOT)
    assert {scale: str(folder_of(board, scale)) for scale in board.scales} == {
        "cpu": "reports/board",
        "full": "reports/board/full",
    }
    for scale in board.scales:
        maps, folder = maps_of(board, scale, ROOT), ROOT / folder_of(board, scale)
        page = board_page(board, scale, maps)
        assert (folder / "index.html").read_text() == page.html()
        assert (folder / "index.md").read_text() == page.markdown()
        assert (folder / "board.csv").read_text() == table_csv(maps)
    assert len(board.attacks) >= 10
    assert set(board.rates) == {0.1, 0.05, 0.01}
