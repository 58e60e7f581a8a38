"""Suites: the table's arithmetic, the file's validation, the record, and a real run with a kill in its middle."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import suite as program
import yaml
from suite_file import params_of, read_suite, value_at
from suite_record import flattened, merged, read_record, table_csv, write_record
from suite_runs import override_text
from suite_table import Run, Suite, lines, markdown

from check_params import check_all
from common import load_params
from conftest import with_value
from test_pipeline import COPIED, ENVIRONMENT, TINY, merge, run
from unpoison.core.errors import UserError

ROOT = Path(__file__).resolve().parent.parent

NAMES = sorted(path.stem for path in (ROOT / "suites").glob("*.yaml"))
FILE: dict[str, Any] = {
    "title": "Two attacks",
    "sources": {"paper": "A paper, table 1"},
    "protocol": ["Nothing is as published."],
    "tolerances": {"acc": 0.02, "asr": 0.05, "ra": 0.05},
    "methods": {
        "none": {"metrics": "backdoored"},
        "fst": {"metrics": "purified.fst", "unpublished": "the paper has no such table"},
    },
    "set": {"data.name": "digits"},
    "experiments": {
        "badnets": {
            "set": {"attack.name": "badnets"},
            "published": {"none": {"source": "paper", "acc": 0.91, "asr": 0.95}},
        },
        "blended": {
            "set": {"attack.name": "blended"},
            "published": {"none": {"source": "paper", "acc": 0.5, "ra": 0.0}},
        },
    },
    "scales": {
        "small": {"label": "200 digits", "seeds": [0, 1, 2], "cost": "a minute"},
        "full": {"label": "all digits", "seeds": [0], "cost": "a year", "set": {"data.train_limit": None}},
    },
}


def changed(key: str, value: Any) -> dict[str, Any]:
    return with_value(FILE, key.split("/"), value)


def read(folder: Path, file: Any) -> Suite:
    (folder / "suites").mkdir(exist_ok=True)
    (folder / "suites" / "tiny.yaml").write_text(yaml.safe_dump(file, sort_keys=False))
    return read_suite("tiny", folder / "suites")


@pytest.fixture
def tiny(tmp_path: Path) -> Suite:
    return read(tmp_path, FILE)


def ran(suite: Suite, experiment: str, seed: int, *figures: float, scale: str = "small", data: str = "digits") -> Run:
    names = [f"{place}.{metric}" for place in ("backdoored", "purified.fst") for metric in ("acc", "asr", "ra")]
    return Run(
        scale=scale,
        experiment=experiment,
        seed=seed,
        settings=suite.settings(scale, experiment),
        commit="0123abcd",
        data=data,
        device="cpu: X, 2 cores, 2 threads",
        torch="2.15.0",
        seconds=60.0,
        metrics=dict(zip(names, figures, strict=True)),
    )


def test_mean_spread_difference_and_verdict_by_hand(tiny: Suite) -> None:
    runs = [
        ran(tiny, "badnets", 0, 0.90, 1.0, 0.0, 0.8, 0.0, 0.1),
        ran(tiny, "badnets", 1, 0.92, 1.0, 0.0, 0.8, 0.0, 0.1),
        ran(tiny, "badnets", 2, 0.97, 1.0, 0.0, 0.8, 0.0, 0.4),
        ran(tiny, "blended", 1, 0.60, 1.0, 0.0, 0.8, 0.0, 0.1),
    ]
    rows = lines(tiny, runs)
    assert [(row.scale, row.experiment, row.method) for row in rows] == [
        (scale, attack, method)
        for scale in ("small", "full")
        for attack in ("badnets", "blended")
        for method in ("none", "fst")
    ]
    none, fst, blended, _, full = rows[:5]
    # Mean 2.79 / 3; squared deviations 0.0009, 0.0001, 0.0016 over n - 1 = 2, so 0.0013 ** 0.5. 0.02 is still within 0.02.
    assert none.mean == pytest.approx({"acc": 0.93, "asr": 1.0, "ra": 0.0})
    assert none.std == pytest.approx({"acc": 0.0360555, "asr": 0.0, "ra": 0.0}, abs=1e-6)
    assert none.difference == {"acc": 0.02, "asr": 0.05}
    assert (none.runs, none.wanted, none.verdict, none.why) == (3, 3, "within tolerance", "")
    assert fst.mean["ra"] == pytest.approx(0.2)
    assert fst.std["ra"] == pytest.approx(0.03**0.5)
    assert (fst.verdict, fst.why, fst.difference) == ("no published figure", "the paper has no such table", {})
    assert (blended.runs, blended.std, blended.verdict) == (1, {}, "deviates")
    assert (blended.difference, blended.why) == ({"acc": 0.1, "ra": 0.0}, "reason not found yet")
    assert (full.verdict, full.runs) == ("not run", 0)
    assert full.why == "`make suite SUITE=tiny SCALE=full`; estimate for all its runs: a year"


def test_page_says_what_a_line_stands_for(tiny: Suite) -> None:
    runs = [
        ran(tiny, "badnets", seed, 0.5 + seed / 10, 1.0, 0.0, 0.8, 0.0, 0.1, data="folder a.tar") for seed in (0, 1)
    ]
    page = markdown(tiny, runs)
    assert (
        "| small scale: 200 digits; folder a.tar | badnets | none | 0.910 / 0.950 / – | paper | 0.550 ± 0.071 / 1."
        in page
    )
    assert "| 2 of 3 | -0.360 / +0.050 / – | deviates | reason not found yet |" in page
    assert "0.100 ± 0.000 | 2 of 3 | – | no published figure | the paper has no such table |" in page
    assert "`make suite SUITE=tiny SCALE=small DATA=a.tar`" in page
    assert "- 2 of 6 runs: 1.0 to 1.0 min each, 2.0 min in all" in page
    assert "- hardware: cpu: X, 2 cores, 2 threads" in page
    assert "not run; estimate for all 2 runs: a year" in page
    rows = list(csv.DictReader(table_csv(lines(tiny, runs)).splitlines()))
    assert (rows[0]["mean_acc"], rows[0]["std_acc"], rows[0]["published_ra"]) == ("0.55", "0.070711", "")
    assert page == markdown(tiny, runs)


def test_reasons_of_a_scale_and_of_a_line(tmp_path: Path) -> None:
    small = {**FILE["scales"]["small"], "why": "it is small", "reasons": {"blended.none": "another pattern"}}
    suite = read(tmp_path, changed("scales/small", small))
    rows = lines(suite, [ran(suite, attack, 0, *[0.0] * 6) for attack in ("badnets", "blended")])
    assert [row.why for row in rows[:4:2]] == ["it is small", "another pattern"]


def test_runs_of_other_settings_are_not_counted_nor_data_sets_mixed(tiny: Suite, tmp_path: Path) -> None:
    runs = [ran(tiny, "badnets", 0, *[0.9] * 6), ran(tiny, "badnets", 1, *[0.1] * 6, data="folder a.tar")]
    assert [(row.data, row.mean["acc"]) for row in lines(tiny, runs) if row.runs][::2] == [
        ("digits", 0.9),
        ("folder a.tar", 0.1),
    ]
    other = read(tmp_path, changed("set", {"attack.poison_rate": 0.2}))
    assert {row.verdict for row in lines(other, runs)} == {"not run"}
    assert "not counted: 2" in markdown(other, runs)
    assert lines(tiny, [replace(runs[0], seed=7)])[0].verdict == "not run"


BAD: list[tuple[str, Any, str]] = [
    ("titel", "x", "titel: unknown key, allowed: title, sources"),
    ("title", 3, "title: 3 given; input should be a valid string"),
    ("sources", {}, "sources: {} given, allowed: at least one"),
    ("experiments", {}, "experiments: {} given, allowed: at least one"),
    ("experiments", ["badnets"], "experiments: ['badnets'] given; input should be a valid dictionary"),
    ("experiments/Bad Nets", {}, "experiments: 'Bad Nets' given as a name, allowed: small letters"),
    ("experiments/badnets/sett", {}, "experiments.badnets.sett: unknown key, allowed: set, published"),
    ("experiments/badnets/published/ft", {}, "experiments.badnets.published: 'ft' given, allowed: none, fst"),
    ("experiments/badnets/published/none", {"acc": 0.9}, "published.none.source: nothing given; field required"),
    ("experiments/badnets/published/none/source", "web", "published.none.source: 'web' given, allowed: paper"),
    (
        "experiments/badnets/published/none",
        {"source": "paper"},
        "published.none: no figure given, allowed: acc, asr, ra",
    ),
    ("experiments/badnets/published/none/acc", 91.3, "published.none.acc: 91.3 given; input should be less than"),
    (
        "experiments/badnets/published/none/auroc",
        0.9,
        "published.none.auroc: unknown key, allowed: source, acc, asr, ra",
    ),
    (
        "experiments/badnets/published",
        {},
        "experiments.badnets.published.none: nothing given, allowed: its figures, or",
    ),
    ("experiments/badnets/set/seed", 3, "experiments.badnets.set.seed: 3 given, allowed: `seeds` of a scale"),
    ("set/data.path", "x", "set.data.path: 'x' given, allowed: `seeds` of a scale, DATA on the command line"),
    ("set/attack", {"name": "badnets"}, "set.attack: {'name': 'badnets'} given, allowed: a text, a number"),
    ("tolerances", {"acc": 0.1, "asr": 0.1}, "tolerances.ra: nothing given, allowed: a number from 0 to 1"),
    ("tolerances/auroc", 0.1, "tolerances.auroc.[key]: 'auroc' given; input should be 'acc', 'asr' or 'ra'"),
    ("methods/none", {"metric": "backdoored"}, "methods.none.metric: unknown key, allowed: metrics, unpublished"),
    ("scales/tiny", {}, "scales: 'tiny' given, allowed: small, full"),
    ("scales/small/seeds", [0, 1.5], "scales.small.seeds.1: 1.5 given; input should be a valid integer"),
    ("scales/small/seeds", [0, "one"], "scales.small.seeds.1: 'one' given; input should be a valid integer"),
    ("scales/small/seeds", [1, 1], "scales.small.seeds: [1, 1] given, allowed: whole numbers, each once"),
    ("scales/small/seeds", [], "scales.small.seeds: [] given, allowed: whole numbers"),
    ("scales/small/cost", None, "scales.small.cost: None given; input should be a valid string"),
    ("scales/small/reasons", {"badnets.ft": "x"}, "reasons: 'badnets.ft' given, allowed: badnets.none, badnets.fst"),
]


@pytest.mark.parametrize(("key", "value", "message"), BAD)
def test_bad_file(key: str, value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, changed(key, value))
    assert str(caught.value).startswith("suites/tiny.yaml: ")
    assert message in str(caught.value)


def test_unreadable_and_unknown_suites(tmp_path: Path) -> None:
    for text in ("a: [", "- 1", ""):
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(UserError, match=r"x\.yaml: "):
            read_suite("x", tmp_path)
    with pytest.raises(UserError, match="SUITE: 'y' given, allowed: x"):
        read_suite("y", tmp_path)


def test_overrides_that_fit_no_parameter(tmp_path: Path) -> None:
    params = load_params(ROOT / "params.yaml")
    for key, message in (
        ("trian.epochs", "trian.epochs: no section trian in"),
        ("seed.x", "seed.x: no section seed in"),
        ("purify.methods", r"purify\.methods: 1 given, allowed: a list"),
    ):
        with pytest.raises(UserError, match=message):
            params_of(read(tmp_path, FILE), params, {key: 1})
    suite = read(tmp_path, changed("methods/fst/metrics", "purified.anp"))
    with pytest.raises(
        UserError, match=r"methods\.fst\.metrics: 'purified\.anp' given, allowed: backdoored, student, p"
    ):
        params_of(suite, params, {})


@pytest.mark.parametrize("name", NAMES)
def test_every_suite_is_valid_against_the_parameters(name: str) -> None:
    suite, params = read_suite(name, ROOT / "suites"), load_params(ROOT / "params.yaml")
    for scale in suite.scales:
        for experiment in suite.experiments:
            overrides = suite.overrides(scale, experiment)
            made = params_of(suite, params, overrides)
            check_all(made)
            assert {key: value_at(made, key) for key in overrides} == overrides
            assert made != params


def test_override_text_is_what_dvc_reads() -> None:
    values = ["/a b=,:'x", "null", "#ff0000", None, True, 1e-05, 3, ["crop", "flip"], []]
    from dvc.utils.hydra import to_hydra_overrides

    read_back = to_hydra_overrides([f"++k={override_text(value)}" for value in values])
    assert [each.value() for each in read_back] == values


def test_record_keeps_lines_of_runs_made_elsewhere(tiny: Suite, tmp_path: Path) -> None:
    path = tmp_path / "reports" / "tiny.runs.csv"
    assert read_record(path) == []
    elsewhere = ran(tiny, "blended", 2, *[0.25] * 6, scale="full")
    old, new = ran(tiny, "badnets", 0, *[0.5] * 6), ran(tiny, "badnets", 0, *[0.75] * 6)
    without = replace(ran(tiny, "badnets", 1, *[0.5] * 6), seconds=None, device="", metrics={"backdoored.acc": 1.0})
    other = replace(old, data="folder a.tar")
    write_record(path, [old, elsewhere, other])
    write_record(path, merged(read_record(path), [without, new]))
    assert read_record(path) == [elsewhere, new, without, other]
    before = path.read_bytes()
    write_record(path, reversed(read_record(path)))
    assert path.read_bytes() == before
    assert flattened({"purified": {"ft": {"acc": 1}}, "x": 0.5}) == {"purified.ft.acc": 1.0, "x": 0.5}
    path.write_text(path.read_text().replace("badnets,0,", "badnets,zero,"))
    with pytest.raises(UserError, match=r"tiny\.runs\.csv: line 3 is not that of a run"):
        read_record(path)


GRADE = """
import json, os, pathlib, sys, time, yaml
name = yaml.safe_load(open("params.yaml"))["attack"]["name"]
with open(os.environ["DONE"], "a") as file:
    file.write(name + "\\n")
if os.environ.get("HOLD") == name:
    time.sleep(100)
if os.environ.get("FAIL") == name:
    sys.exit("error: failed as asked")
figures = {"acc": len(name) / 10, "asr": 1.0, "ra": 0.0}
json.dump({"backdoored": figures, "purified": {"fst": figures}}, open("reports/metrics.json", "w"))
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The real first three stages; in the place of the others one that counts, and can wait or fail."""
    folder = tmp_path / "project"
    for name in (*COPIED, "suites"):
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    stages, lock = (yaml.safe_load((ROOT / name).read_text()) for name in ("dvc.yaml", "dvc.lock"))
    first = {name: stages["stages"][name] for name in ("check_params", "prepare", "poison")}
    # As in a new clone, the lock file is that of the default run, whose outputs are not in the cache.
    lock["stages"] = {name: lock["stages"][name] for name in first}
    (folder / "dvc.lock").write_text(yaml.safe_dump(lock))
    grade = {
        "cmd": "python grade.py",
        "deps": ["data/poisoned"],
        "params": ["attack"],
        "metrics": [{"reports/metrics.json": {"cache": False}}],
    }
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {**first, "grade": grade}}))
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    (folder / "params.yaml").write_text(yaml.safe_dump(merge(params, TINY), sort_keys=False))
    (folder / "grade.py").write_text(GRADE)
    (folder / "reports").mkdir()
    (folder / "reports" / "summary.md").write_text("")
    one_seed = {"small": {"label": "200 digits", "seeds": [0], "cost": "a minute"}}
    read(folder, changed("scales", one_seed))
    for command in ("init -q", "config user.email test@example.org", "config user.name test", "add -A", "commit -qm a"):
        run(folder, "git", *command.split())
    return folder


def suite_run(folder: Path, **environment: str) -> subprocess.Popen[str]:
    """`make suite` in a process group of its own, without the Makefile's set-up of an environment."""
    return subprocess.Popen(
        [sys.executable, "suites/suite.py", "run", "tiny", "--scale", "small"],
        cwd=folder,
        env={**ENVIRONMENT, "DONE": str(folder.parent / "done"), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def state(folder: Path) -> tuple[bytes, str, str, str]:
    """What a user would notice: edited parameters, changes, branch, stash."""
    status = run(folder, "git", "status", "--porcelain", "--", ":!reports/suites")
    return (
        (folder / "params.yaml").read_bytes(),
        status,
        (folder / ".git/HEAD").read_text(),
        run(folder, "git", "stash", "list"),
    )


def test_kill_then_only_the_unfinished_run_is_repeated(project: Path) -> None:
    done = project.parent / "done"
    with (project / "params.yaml").open("a") as file:
        file.write("# an edit that is not committed\n")
    before = state(project)
    process = suite_run(project, HOLD="blended")
    deadline = time.monotonic() + 120
    while process.poll() is None and not (done.exists() and "blended" in done.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert done.read_text().split() == ["badnets", "blended"], "the second run ended before it could be killed"
    assert state(project) == before
    assert run(project, "dvc", "exp", "list", "--name-only").split() == ["tiny-small-badnets-s0"]

    process = suite_run(project)
    said = process.communicate()[0]
    assert process.returncode == 0, said
    assert "1 of 2 runs to make" in said
    assert "without your changes to params.yaml" in said
    assert "Stage 'prepare' is cached" in said
    assert "Stage 'poison' is cached" in said
    assert done.read_text().split() == ["badnets", "blended", "blended"]
    names = ["tiny-small-badnets-s0", "tiny-small-blended-s0"]
    assert sorted(run(project, "dvc", "exp", "list", "--name-only").split()) == names
    assert "tiny-small-blended-s0" in run(project, "dvc", "exp", "show", "--md")
    assert state(project) == before
    assert not (project / ".unpoison/suites/clone").exists()
    record = project / "reports/suites/tiny.runs.csv"
    assert [(each.experiment, each.data, each.metrics["backdoored.acc"]) for each in read_record(record)] == [
        ("badnets", "digits", 0.7),
        ("blended", "digits", 0.7),
    ]
    assert str(project) not in record.read_text()

    record.unlink()
    process = suite_run(project)
    assert "0 of 2 runs to make" in process.communicate()[0]
    assert process.returncode == 0
    assert done.read_text().split() == ["badnets", "blended", "blended"]
    assert all(each.seconds and each.torch and "cores" in each.device for each in read_record(record))

    # Another rate: both are run again. The one that fails keeps what it had; the other replaces it, at the new commit.
    run(project, "git", "commit", "-qm", "b", "--allow-empty")
    file = yaml.safe_load((project / "suites/tiny.yaml").read_text())
    read(project, {**file, "set": {**file["set"], "attack.poison_rate": 0.2}})
    process = suite_run(project, FAIL="badnets")
    said = process.communicate()[0]
    assert process.returncode == 1, said
    assert "error: tiny-small-badnets-s0: `dvc exp run` ended with exit status" in said
    assert said.splitlines()[-1] == "error: suites/tiny.yaml: 1 of 2 runs failed: tiny-small-badnets-s0"
    assert sorted(run(project, "dvc", "exp", "list", "-A", "--name-only").split()) == names
    table = run(project, sys.executable, "suites/suite.py", "table", "tiny")
    assert "Recorded runs of other settings than the suite has now, not counted: 1." in table
    assert (project / "reports/suites/tiny.md").read_text() == table
    assert len((project / "reports/suites/tiny.csv").read_text().splitlines()) == 5


def test_arguments_that_do_not_exist_end_with_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    for arguments, message in (
        (["run", "nonsense"], f"error: SUITE: 'nonsense' given, allowed: {', '.join(NAMES)}"),
        (["run", NAMES[0], "--scale", "huge"], "error: SCALE: 'huge' given, allowed: small, full"),
        (["run", NAMES[0], "--data", "no.tar"], "error: DATA: 'no.tar' given, which does not exist"),
        (["table", "nonsense"], "error: SUITE: 'nonsense' given"),
    ):
        monkeypatch.setattr(sys, "argv", ["suite.py", *arguments])
        with pytest.raises(SystemExit, match=message) as caught:
            program.main()
        assert "\n" not in str(caught.value)
    assert not capsys.readouterr().out
