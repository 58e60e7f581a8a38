"""Suites: the file's validation, what varies, the parameters of runs, the command line, the committed suites."""

from __future__ import annotations

import io
import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.cli_parse import to_path_overrides
from dvc.utils.hydra import apply_overrides, to_hydra_overrides

from check_params import check_all
from parameters import load_params
from suite_files import FILE, NAMES, ROOT, VARIED, changed, ran, read
from unpoison.attacks import ATTACKS, SINGLE
from unpoison.core.errors import UserError
from unpoison.core.yaml_file import parse_yaml
from unpoison.suites.__main__ import main
from unpoison.suites.git import Repository, git
from unpoison.suites.params import override, params_at, params_of, value_at
from unpoison.suites.reading import read_suite
from unpoison.suites.record import read_record, write_record
from unpoison.suites.suite import rows_of
from unpoison.suites.table import markdown, table_csv


def test_every_value_of_what_varies_is_an_experiment(tmp_path: Path) -> None:
    varied = read(tmp_path, VARIED)
    assert list(varied.experiments) == ["badnets-0.1", "badnets-0.05", "blended-0.4"]
    assert [varied.overrides("small", name)["attack.poison_rate"] for name in varied.experiments] == [0.1, 0.05, 0.4]
    published = {name: [p.figures for p in about.published.values()] for name, about in varied.experiments.items()}
    assert published == {
        "badnets-0.1": [{"acc": 0.9, "asr": 0.95}],
        "badnets-0.05": [{"acc": 0.9}],
        "blended-0.4": [{"asr": 1}],
    }
    # Stopped half way, every experiment has its first value.
    assert [(row.seed, row.experiment) for row in rows_of(varied, "small")][:4] == [
        (0, "badnets-0.1"),
        (0, "blended-0.4"),
        (0, "badnets-0.05"),
        (1, "badnets-0.1"),
    ]
    assert rows_of(varied, "full")[0].name(varied) == "tiny-full-badnets-0.1-s0"


def test_settings_follow_all_that_a_run_is_made_with(tmp_path: Path) -> None:
    def settings(file: dict[str, Any]) -> str:
        return read(tmp_path, file).settings("small", "badnets-0.1")

    before, small = settings(VARIED), VARIED["scales"]["small"]
    other = [
        settings(changed("set", {"data.name": "digits", "train.epochs": 3}, VARIED)),
        settings(changed("scales/small", {**small, "set": {"train.epochs": 4}}, VARIED)),
        settings(changed("experiments/badnets/set", {"attack.name": "badnets", "train.epochs": 5}, VARIED)),
        settings(changed("experiments/badnets/set", {"attack.name": "blended"}, VARIED)),
        read(tmp_path, VARIED).settings("small", "badnets-0.05"),
    ]
    assert len({before, *other}) == 6
    same = [
        settings(changed("set", {"data.name": "cifar10"}, VARIED)),
        settings(changed("scales/small", {**small, "label": "other words", "seeds": [7]}, VARIED)),
        settings(changed("columns", {}, VARIED)),
        settings(changed("experiments/badnets/published", {}, VARIED)),
        settings(
            changed("vary", {"attack.poison_rate": [0.2, 0.1]}, changed("experiments/badnets/published", {}, VARIED))
        ),
    ]
    assert set(same) == {before}


BAD: list[tuple[str, Any, str]] = [
    ("titel", "x", "titel: unknown key, allowed: title, sources"),
    ("title", 3, "title: 3 given; input should be a valid string"),
    ("sources", {}, "sources: {} given, allowed: at least one"),
    ("experiments", {}, "experiments: {} given, allowed: at least one"),
    ("experiments", ["badnets"], "experiments: ['badnets'] given; input should be a valid dictionary"),
    ("experiments/Bad Nets", {}, "experiments: 'Bad Nets' given as a name, allowed: small letters"),
    ("experiments/badnets", 3, "experiments.badnets: 3 given, allowed: a block of keys"),
    ("experiments/badnets/sett", {}, "experiments.badnets.sett: unknown key, allowed: set, vary, published"),
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
        "experiments/badnets/published/none/acc",
        {0.1: 0.9},
        "published.none.acc: 0.1 given, allowed: a figure, as nothing varies",
    ),
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
    ("experiments/badnets/vary", {"a.b": [1]}, "experiments.badnets.vary: 'a.b' given, allowed: none without a `vary`"),
    ("set/data.path", "x", "set.data.path: 'x' given, allowed: `seeds` of a scale, DATA on the command line"),
    ("set/attack", {"name": "badnets"}, "set.attack: {'name': 'badnets'} given, allowed: a line of text, a number"),
    ("vary", {"seed": [1, 2]}, "vary.seed: [1, 2] given, allowed: `seeds` of a scale"),
    ("vary", {"a.b": [1], "a.c": [2]}, "vary: 'a.c' given, allowed: a.b"),
    ("vary", {"a.b": 0.1}, "vary.a.b: 0.1 given, allowed: a list of numbers or names, each once"),
    ("vary", {"a.b": []}, "vary.a.b: [] given, allowed: a list of numbers or names, each once"),
    ("vary", {"a.b": [1, 1]}, "vary.a.b: [1, 1] given, allowed: a list of numbers or names, each once"),
    ("vary", {"a.b": ["x/y"]}, "vary.a.b: ['x/y'] given, allowed: a list of numbers or names, each once"),
    ("columns", {"PSNR": {"metrics": "x"}}, "columns.PSNR.metrics: unknown key, allowed: metric, form"),
    ("columns", {"PSNR": {"metric": "x", "form": "3q"}}, "columns.PSNR.form: '3q' given, allowed: as Python's, .3f"),
    (
        "matrices",
        {"AUROC": {"metric": "a.b"}},
        "matrices.AUROC.metric: 'a.b' given, allowed: a metric's name with one *",
    ),
    (
        "matrices",
        {"AUROC": {"metric": "a.*", "published": {"x": {"source": "mine", "figures": {}}}}},
        "matrices.AUROC.published.x.source: 'mine' given, allowed: paper",
    ),
    (
        "matrices",
        {"AUROC": {"metric": "a.*", "published": {"x": {"source": "paper", "figures": {"cd": 1.2}}}}},
        "matrices.AUROC.published.x.figures.cd: 1.2 given; input should be less than or equal to 1",
    ),
    (
        "matrices",
        {"ASR": {"metric": "a.*", "rows": "methods", "published": {"x": {"source": "paper", "figures": {}}}}},
        "matrices.ASR.published: x given, allowed: with rows: attacks",
    ),
    (
        "solved",
        {"methods": "purified", "asr": 0.05, "acc_drop": 0.02},
        "solved.methods: 'purified' given, allowed: a place",
    ),
    (
        "solved",
        {"methods": "purified.*", "asr": 0.05, "acc_drop": 0.02, "columns": {"RA": {"metric": "ra", "form": "q"}}},
        "solved.columns.RA.form: 'q' given, allowed: as Python's",
    ),
    ("solved", {"methods": "purified.*", "asr": 5, "acc_drop": 0.02}, "solved.asr: 5 given; input should be less than"),
    ("taken", 1.5, "taken: 1.5 given; input should be less than or equal to 1"),
    ("tolerances", {"acc": 0.1, "asr": 0.1}, "tolerances.ra: nothing given, allowed: a number from 0 to 1"),
    ("tolerances/auroc", 0.1, "tolerances.auroc.[key]: 'auroc' given; input should be 'acc', 'asr' or 'ra'"),
    ("methods/none", {"metric": "backdoored"}, "methods.none.metric: unknown key, allowed: metrics, unpublished"),
    ("scales/Tiny", {}, "scales: 'Tiny' given as a name, allowed: small letters"),
    ("scales/small/seeds", [0, 1.5], "scales.small.seeds.1: 1.5 given; input should be a valid integer"),
    ("scales/small/seeds", [0, "one"], "scales.small.seeds.1: 'one' given; input should be a valid integer"),
    ("scales/small/seeds", [1, 1], "scales.small.seeds: [1, 1] given, allowed: whole numbers to 4294967295, each once"),
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


def test_bad_values_of_what_varies(tmp_path: Path) -> None:
    other = changed("experiments/blended/vary", {"train.epochs": [1]}, VARIED)
    with pytest.raises(
        UserError, match=r"experiments\.blended\.vary: 'train\.epochs' given, allowed: attack\.poison_rate"
    ):
        read(tmp_path, other)
    other = changed("experiments/badnets/published/none/asr", {0.2: 0.9}, VARIED)
    with pytest.raises(UserError, match=r"badnets\.published\.none\.asr: 0\.2 given, allowed: 0\.1, 0\.05"):
        read(tmp_path, other)
    other = changed("methods/none", {"metrics": "backdoored"}, VARIED)
    other = changed("experiments/badnets/published/none", {"source": "paper", "asr": {0.1: 0.9}}, other)
    with pytest.raises(UserError, match=r"experiments\.badnets\.published\.none: nothing given, allowed: its figures"):
        read(tmp_path, other)


def test_overrides_of_one_value(tmp_path: Path) -> None:
    scale = {**FILE["scales"]["small"], "set": {"train.epochs": 2}, "set_for": {0.05: {"train.epochs": 9}}}
    suite = read(tmp_path, changed("scales/small", scale, VARIED))
    assert [suite.overrides("small", name)["train.epochs"] for name in ("badnets-0.1", "badnets-0.05")] == [2, 9]
    assert suite.settings("small", "badnets-0.1") != suite.settings("small", "badnets-0.05")
    for key, message in (
        (0.2, "scales.small.set_for: '0.2' given, allowed: 0.1, 0.05, 0.4"),
        (0.05, "set_for.0.05.seed"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            read(tmp_path, changed("scales/small/set_for", {key: {"seed": 1}}, VARIED))


def test_published_figures_of_a_table(tmp_path: Path) -> None:
    (tmp_path / "suites").mkdir()
    table = tmp_path / "suites" / "table.csv"
    table.write_text(
        "attack,method,rate,acc,asr,ra\nbadnets,none,0.05,0.8,0.7,0.2\nbadnets,none,0.1,0.1,0.1,0.1\n"
        "badnets,fst,0.05,0.75,0.01,0.7\nbadnets,other,0.05,0.5,0.5,0.5\nblended,none,0.1,0.6,0.6,0.6\n"
    )
    methods = {**VARIED["methods"], "fst": FILE["methods"]["fst"]}
    file = {**VARIED, "methods": methods, "published": {"source": "paper", "file": "table.csv"}}
    suite = read(tmp_path, file)
    published = {
        name: {method: known.figures for method, known in about.published.items()}
        for name, about in suite.experiments.items()
    }
    # What an experiment says itself goes before the table; its other method and another rate than 0.4 are not the suite's.
    assert published == {
        "badnets-0.1": {"none": {"acc": 0.9, "asr": 0.95}},
        "badnets-0.05": {"none": {"acc": 0.9}, "fst": {"acc": 0.75, "asr": 0.01, "ra": 0.7}},
        "blended-0.4": {"none": {"asr": 1}},
    }
    for other, message in (
        ({"published": {"source": "book", "file": "table.csv"}}, r"published\.source: 'book' given, allowed: paper$"),
        (
            {"published": {"source": "paper", "file": "../x.csv"}},
            r"published\.file: '\.\./x\.csv' given, allowed: a file",
        ),
        ({"published": {"source": "paper", "file": "none.csv"}}, r"none\.csv"),
        ({"published": {"file": "table.csv"}}, r"published\.source: nothing given"),
    ):
        with pytest.raises(UserError, match=message):
            read(tmp_path, {**file, **other})
    with pytest.raises(UserError, match=r"published: allowed with `vary`"):
        read(tmp_path, {**FILE, "published": {"source": "paper", "file": "table.csv"}})


def test_chosen_experiments(tmp_path: Path) -> None:
    suite = read(tmp_path, VARIED)
    assert [row.experiment for row in rows_of(suite, "small", ["badnets-0.05"])] == ["badnets-0.05"] * 3
    chosen = rows_of(suite, "small", ["blended-0.4", "badnets"])
    assert [row.experiment for row in chosen][:3] == ["badnets-0.1", "blended-0.4", "badnets-0.05"]
    with pytest.raises(
        UserError, match=r"EXPERIMENTS: 'trojan' given, allowed: badnets, badnets-0\.1, badnets-0\.05, blended"
    ):
        rows_of(suite, "small", ["trojan"])


def test_unreadable_and_unknown_suites(tmp_path: Path) -> None:
    for text in ("a: [", "- 1", "", b"\xff"):
        (tmp_path / "x.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(UserError, match=r"x\.yaml: "):
            read_suite("x", tmp_path)
    with pytest.raises(UserError, match="SUITE: 'y' given, allowed: x"):
        read_suite("y", tmp_path)


def test_numbers_are_read_as_dvc_reads_them(tmp_path: Path) -> None:
    (tmp_path / "suites").mkdir()
    text = yaml.safe_dump(changed("set", {"train.lr": "HERE"})).replace("HERE", "1e-05").replace("'1e-05'", "1e-05")
    (tmp_path / "suites" / "tiny.yaml").write_text(text)
    assert read_suite("tiny", tmp_path / "suites").set == {"train.lr": 1e-05}


def test_overrides_that_fit_no_parameter(tmp_path: Path) -> None:
    params, suite = load_params(ROOT), read(tmp_path, FILE)
    for key, message in (
        ("trian.epochs", r"trian\.epochs: no section trian in params\.yaml"),
        ("seed.x", r"seed\.x: no section seed in params\.yaml"),
        ("params/attacks.yaml:badnet.size", r"badnet\.size: no section badnet in params/attacks\.yaml"),
        ("params/attacks.yaml:size", r"params/attacks\.yaml:size: no parameter of a file, allowed: FILE:SECTION\.KEY"),
        ("params/attack.yaml:badnets.size", r"with a file out of params/attacks\.yaml, params/detectors\.yaml, "),
        ("purify.methods", r"purify\.methods: 1 given, allowed: a list"),
    ):
        with pytest.raises(UserError, match=message):
            params_of(suite, params, {key: 1})
    made = params_of(suite, params, {"params/attacks.yaml:badnets.new": 1, "model.final_norm": False})
    assert value_at(made, "params/attacks.yaml:badnets.new") == 1
    assert "new" not in params["params/attacks.yaml"]["badnets"]


def test_methods_that_a_run_does_not_make(tmp_path: Path) -> None:
    params, off = load_params(ROOT), {"variations.enabled": False, "purify.methods": [], "robust.methods": ["abl"]}
    for metrics, allowed in (("purified.fst", "backdoored, robust.abl"), ("student", "backdoored, robust.abl")):
        suite = read(tmp_path, changed("methods/fst/metrics", metrics))
        with pytest.raises(UserError, match=rf"methods\.fst\.metrics: '{metrics}' given, allowed: {allowed}$"):
            params_of(suite, params, off)
    params_of(read(tmp_path, changed("methods/fst/metrics", "robust.abl")), params, off)
    params_of(read(tmp_path, changed("methods/fst/metrics", "student")), params, {})


def test_parameters_of_a_commit_are_those_of_the_stages() -> None:
    commit = git(ROOT, "rev-parse", "HEAD")
    files = git(ROOT, "ls-tree", "-r", "--name-only", commit, "params.yaml", "params/").splitlines()
    params = params_at(ROOT, commit)
    assert {name for name in params if "/" in name} == set(files) - {"params.yaml"}
    assert set(params) == set(load_params(ROOT))


def test_overrides_are_what_dvc_reads() -> None:
    values = ["/a b=,:'x", "a\\", "a\\\\'b", "C:\\x", "null", "#ff0000", None, True, 1e-05, 3, ["crop", "flip"], []]
    for key, path in (("a.b", "params.yaml"), ("params/attacks.yaml:badnets.size", "params/attacks.yaml")):
        given = to_path_overrides([override(key, value) for value in values])
        assert list(given) == [path]
        read_back = to_hydra_overrides(given[path])
        assert [back.value() for back in read_back] == values
        assert {back.key_or_group for back in read_back} == {key.rpartition(":")[2]}
        assert all(back.is_force_add() for back in read_back)


@pytest.mark.parametrize("text", ["${b}", "\\${b}", "a\\\\${b}'\\", "$b", "a}b{"])
def test_a_text_reaches_the_file_as_it_is(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("a: {b: 1}\n")
    apply_overrides(path, [override("a.b", text)])
    assert parse_yaml(path.read_text(), "params.yaml") == {"a": {"b": text}}


@pytest.mark.parametrize("name", NAMES)
def test_every_suite_is_valid_against_the_parameters(name: str) -> None:
    suite, params = read_suite(name, ROOT / "suites"), load_params(ROOT)
    for scale in suite.scales:
        for experiment, about in suite.experiments.items():
            overrides = suite.overrides(scale, experiment)
            made = params_of(suite, params, overrides)
            assert {key: value_at(made, key) for key in overrides} == overrides
            assert made != params
            # Checks take time: of what varies, the first value.
            if not about.place:
                check_all(made)


def test_attacks_are_all_in_the_suite_of_attacks() -> None:
    suite = read_suite("attacks", ROOT / "suites")
    runs = [(scale, name) for scale in suite.scales for name in suite.experiments]
    of_texts = {name for name, attack in SINGLE.items() if not attack.images}
    assert {suite.overrides(*run)["attack.name"] for run in runs} == set(ATTACKS) - {"none"} - of_texts
    assert len({suite.settings(*run) for run in runs}) == len(runs)
    published = {name: {m: p.figures for m, p in about.published.items()} for name, about in suite.experiments.items()}
    assert published["ssba-0.01"] == {"none": {"asr": 0.7344}}
    assert sum(map(bool, published.values())) == 9 * 3 + 3
    made = params_of(suite, load_params(ROOT), suite.overrides("digits", "multi-0.1"))
    assert [value_at(made, f"{family}.methods") for family in ("purify", "robust", "detect")] == [[], [], []]
    assert value_at(made, "variations.enabled") is False


def test_parameters_are_checked_as_the_stage_checks_them(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    suite, params = read_suite("attacks", ROOT / "suites"), load_params(ROOT)
    runs = {"good": params_of(suite, params, suite.overrides("digits", "sig-0.1"))}
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["check_params.py", "--runs"])
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(runs)))
    runpy.run_path("stages/check_params.py", run_name="__main__")
    assert set(json.loads(capsys.readouterr().out)) == {"device", "torch"}
    runs["bad"] = params_of(suite, params, {"params/attacks.yaml:badnets.size": 400, "attack.name": "badnets"})
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(runs)))
    with pytest.raises(SystemExit, match=r"^error: bad: params/attacks\.yaml: badnets\.size: 400 given"):
        runpy.run_path("stages/check_params.py", run_name="__main__")


def test_arguments_that_do_not_exist_end_with_one_line(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / "docs")  # anywhere in the working copy
    for arguments, message in (
        (["run", "nonsense"], f"error: SUITE: 'nonsense' given, allowed: {', '.join(NAMES)}"),
        (["run", "attacks", "--scale", "huge"], "error: SCALE: 'huge' given, allowed: digits, cpu"),
        (["run", "attacks", "--data", "no.tar"], "error: DATA: 'no.tar' given, which does not exist"),
        (["table", "nonsense"], "error: SUITE: 'nonsense' given"),
        (["sheet", "attacks", "--experiments", "sigg"], "error: --experiments: 'sigg' given, allowed: badnets, "),
    ):
        with pytest.raises(SystemExit, match=message) as caught:
            main(arguments)
        assert "\n" not in str(caught.value)
    assert not capsys.readouterr().out


def test_outside_a_repository(capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"^error: git rev-parse --show-toplevel: fatal: not a git repository"):
        main(["table", "attacks"])


def test_git_that_is_not_there_or_says_what_is_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init", "-q")
    with pytest.raises(UserError, match=r"^git rev-parse --verify HEAD: fatal: Needed a single revision$"):
        git(tmp_path, "rev-parse", "--verify", "HEAD")
    (tmp_path / "params.yaml").write_bytes(b"a: \xff")
    git(tmp_path, "add", "-A")
    with pytest.raises(UserError, match=r"^git show :params\.yaml: what it prints is not UTF-8 from byte 3 on$"):
        git(tmp_path, "show", ":params.yaml")
    # Within a hook Git's variables name the repository of the hook, whatever folder is asked for.
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert git(tmp_path, "ls-files") == "params.yaml"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"^git ls-files: no program `git` found"):
        git(tmp_path, "ls-files")


def test_a_damaged_record_changes_nothing_and_is_repaired(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite, repository = read(tmp_path, FILE), Repository(tmp_path)
    monkeypatch.setattr(Repository, "here", classmethod(lambda _: repository))
    record, page = repository.report("tiny.runs.csv"), repository.report("tiny.md")
    write_record(record, [ran(suite, "badnets", seed, *[0.5] * 6) for seed in (0, 1)])
    main(["table", "tiny"])
    whole, before = record.read_bytes(), page.read_bytes()
    capsys.readouterr()
    for damaged in (
        whole[:-10],
        whole.replace(b"0.5", b"50", 1),
        whole.replace(b"cpu", b'"cpu', 1),
        b"",
        whole + whole,
    ):
        record.write_bytes(damaged)
        with pytest.raises(SystemExit, match=r"^error: .*tiny\.runs\.csv: line \d+ "):
            main(["table", "tiny"])
        assert (record.read_bytes(), page.read_bytes()) == (damaged, before)
    record.write_bytes(whole[:-10])
    main(["repair", "tiny"])
    assert "reports/suites/tiny.runs.csv: taken away: small,badnets,1," in capsys.readouterr().out
    assert record.read_bytes() == whole[: whole[:-1].rindex(b"\n") + 1]
    main(["repair", "tiny"])
    assert "no line is cut off" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"^error: SUITE: '\.\./tiny' given, allowed: tiny$"):
        main(["repair", "../tiny"])


def test_names_of_data_in_commands_are_quoted_and_in_cells_are_text(tmp_path: Path) -> None:
    suite = read(tmp_path, FILE)
    hostile = "folder $(touch x)`|<img src=x>"
    page = markdown(suite, [ran(suite, "badnets", 0, *[0.5] * 6, data=hostile)])
    assert "`make suite SUITE=tiny SCALE=small DATA='$(touch x)'\\|<img src=x>'`" in page
    assert r"| small scale: 200 digits; folder \$(touch x)\`\|\<img src=x> | badnets |" in page
    formula = ran(suite, "badnets", 0, *[0.5] * 6, data="=1+1")
    assert ",'=1+1,badnets," in table_csv(suite, [formula])
    write_record(tmp_path / "x.runs.csv", [formula])
    assert ",'=1+1," in (tmp_path / "x.runs.csv").read_text()
    assert read_record(tmp_path / "x.runs.csv") == [formula]
