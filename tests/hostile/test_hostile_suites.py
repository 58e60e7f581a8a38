"""Hostile files of suites: the table's YAML, the record of its runs, and what experiments left in Git."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from hostile.harness import Accepted, Case, Refused, knock
from hostile.unwatched import answered
from suite_files import FILE, PARAMS, VARIED, changed
from unpoison.suites import experiments
from unpoison.suites.git import Repository
from unpoison.suites.params import params_of
from unpoison.suites.reading import read_suite
from unpoison.suites.record import figures_of, read_record, repair
from unpoison.suites.suite import rows_of
from unpoison.suites.table import write_table

Make = Callable[[Path], object]
SUITE = yaml.safe_dump(FILE, sort_keys=False)


def suite_door(folder: Path) -> Any:
    """The suite `tiny` and the parameters of its first run."""
    suite = read_suite("tiny", folder / "suites")
    row = rows_of(suite, "small")[0]
    params_of(suite, {**PARAMS["params.yaml"], **PARAMS}, suite.overrides(row.scale, row.experiment))
    write_table(Repository(folder), "tiny")
    return list(suite.experiments)


def text(content: str | bytes) -> Make:
    def make(folder: Path) -> None:
        (folder / "suites").mkdir()
        data = content.encode() if isinstance(content, str) else content
        (folder / "suites" / "tiny.yaml").write_bytes(data)

    return make


def with_(key: str, value: Any, file: dict[str, Any] = FILE) -> Make:
    return text(yaml.safe_dump(changed(key, value, file), sort_keys=False))


def linked(folder: Path) -> None:
    (folder / "suites").mkdir()
    (folder / "suites" / "tiny.yaml").symlink_to("/etc/passwd")


def fifo(folder: Path) -> None:
    (folder / "suites").mkdir()
    os.mkfifo(folder / "suites" / "tiny.yaml")


def _bomb(levels: int) -> str:
    lines = ["a0: &a0 [" + ", ".join("x" * 9) + "]"]
    lines += [f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * 9) + "]" for n in range(1, levels)]
    return "\n".join(lines)


def _merge_bomb(levels: int) -> str:
    lines = ["a0: &a0 {k: v}"]
    lines += [f"a{n}: &a{n} {{<<: [" + ", ".join([f"*a{n - 1}"] * 9) + "]}" for n in range(1, levels)]
    return "\n".join(lines)


BOTH = Accepted(["badnets", "blended"])
HERE = r"^suites/tiny\.yaml: "
SUITES = [
    Case("as-it-is", text(SUITE), BOTH),
    Case("carriage-returns-and-a-mark", text(b"\xef\xbb\xbf" + SUITE.replace("\n", "\r\n").encode()), BOTH),
    Case("names-of-anchors", text(SUITE.replace("tolerances:", "tolerances: &a")), BOTH),
    Case("latin-1", text(SUITE.replace("Two", "Zw\xf6lf").encode("latin-1")), Refused(HERE + "not readable as YAML")),
    Case("nul", text(SUITE.replace("Two", "T\0o")), Refused(HERE + "not readable as YAML")),
    Case("cut", text(SUITE[:300]), Refused(HERE)),
    Case("empty", text(""), Refused(HERE + "a NoneType found")),
    Case("key-twice", text(SUITE + "title: other\n"), Refused(HERE + 'not readable as YAML .*duplicate key "title"')),
    Case("alias-bomb", text(_bomb(10)), Refused(HERE + "not readable as YAML .aliases that stand for more")),
    Case("merge-bomb", text(_merge_bomb(10)), Refused(HERE + "not readable as YAML")),
    Case("alias-in-itself", text("a: &a [*a]"), Refused(HERE + r"not readable as YAML .\*a stands for no value")),
    Case("deep", text("a: " + "[" * 50_000), Refused(HERE + r"not readable as YAML .blocks in blocks")),
    Case(
        "deep-by-aliases",
        text("a: &a [[[[[[[[[[[x]]]]]]]]]]]\nb: &b [[[[[[[[[[[*a]]]]]]]]]]]"),
        Refused("blocks in blocks"),
    ),
    Case("large", text(SUITE + "#" * 200_000), Refused(HERE + "longer than 131072 bytes")),
    Case("digits-without-end", text(SUITE.replace("0.02", "9" * 5000)), Refused(HERE + "not readable as YAML")),
    Case("a-day-that-is-none", text(SUITE + "set: {a.b: 2026-13-45}\n"), Refused(HERE)),
    Case("a-date", with_("set/a.b", date(2026, 11, 25)), Refused(HERE + r"set\.a\.b: .*date")),
    Case("a-python-tag", text("title: !!python/object/apply:os.system ['touch x']"), Refused(HERE + "not readable")),
    Case("a-tag-of-bytes", text(SUITE.replace("Two attacks", "!!binary aGk=")), Refused(HERE + "title: ")),
    Case("control-characters", with_("title", "\x1b[31mred"), Refused(HERE + r"not readable as YAML .'\\x1b\[31mred'")),
    Case("half-a-pair", text(SUITE.replace("Two attacks", '"\\ud800"')), Refused(HERE + "not readable as YAML")),
    Case(
        "name-that-leads-out",
        with_("experiments", {"../x": {"set": {}}}),
        Refused(HERE + r"experiments: '\.\./x' given"),
    ),
    Case(
        "name-of-a-thousand", with_("experiments", {"a" * 1000: {"set": {}}}), Refused("given as a name, .* up to 60")
    ),
    Case(
        "value-of-two-points", with_("vary", {"attack.poison_rate": ["0..1"]}, VARIED), Refused(HERE + r"vary\.attack")
    ),
    Case("value-nan", with_("vary", {"attack.poison_rate": [float("nan")]}, VARIED), Refused(HERE + r"vary\.attack")),
    Case(
        "override-nan", with_("set/attack.poison_rate", float("nan")), Refused(HERE + r"set\.attack\.poison_rate: nan")
    ),
    Case("override-infinite", with_("set/train.lr", 1e309), Refused(HERE + r"set\.train\.lr: inf given")),
    Case("override-of-two-lines", with_("set/data.name", "a\nb"), Refused(HERE + r"set\.data\.name: 'a\\nb' given")),
    Case(
        "override-key-number",
        text(SUITE.replace("data.name: digits", "3: digits")),
        Refused(HERE + r"set\.3\.\[key\]: 3 given"),
    ),
    Case(
        "override-key-command",
        with_("set", {"a.b=1 -S x": 1}),
        Refused(HERE + "set: 'a.b=1 -S x' given, allowed: SECT"),
    ),
    Case("override-leads-out", with_("set", {"../../x.yaml:a.b": 1}), Refused("no parameter of a file")),
    Case("override-of-no-section", with_("set", {"nothing.size": 1}), Refused("no section nothing in params.yaml")),
    Case("seed-huge", with_("scales/small/seeds", [2**40]), Refused(HERE + r"scales\.small\.seeds")),
    Case("seed-negative", with_("scales/small/seeds", [-1]), Refused(HERE + r"scales\.small\.seeds")),
    Case(
        "published-percent", with_("experiments/badnets/published/none/acc", 91.3), Refused(HERE + ".*acc: 91.3 given")
    ),
    Case(
        "published-nan",
        with_("experiments/badnets/published/none/acc", float("nan")),
        Refused(HERE + ".*acc: nan given"),
    ),
    Case("published-flag", with_("experiments/badnets/published/none/acc", True), Refused(HERE + ".*acc: True given")),
    Case(
        "width-without-end", with_("columns", {"x": {"metric": "m", "form": "999999999.3f"}}), Refused(HERE + ".*form")
    ),
    Case("heading-number", with_("columns", {3: {"metric": "m"}}), Refused(HERE + r"columns\.3\.\[key\]: 3 given")),
    Case("link-out", linked, Refused(HERE + "a link that leads out")),
    Case("fifo", fifo, Refused("a pipe or device found")),
    Case("markup", with_("title", "<script> [x](http://e.example) | $y$"), BOTH),
]


# What could hang, fill the memory or lead out is read in a process of its own; of the rest a line is all there is to see.
WATCHED = (
    "as-it-is",
    "alias",
    "merge",
    "deep",
    "large",
    "digits",
    "python",
    "width",
    "link",
    "fifo",
    "leads-out",
    "nul",
    "marku",
)


def watched(case: Case) -> bool:
    return any(word in case.name for word in WATCHED)


@pytest.mark.parametrize("case", [*filter(watched, SUITES)], ids=str)
def test_suite(case: Case, tmp_path: Path) -> None:
    knock(suite_door, case, tmp_path)


def test_suites_with_one_thing_wrong(tmp_path: Path) -> None:
    answered(suite_door, [case for case in SUITES if not watched(case)], tmp_path)


HEADER = "scale,experiment,seed,settings,commit,data,device,torch,seconds,backdoored.acc,backdoored.asr"
LINES = [f"small,badnets,{seed},0123abcd,89ab4567,digits,cpu,2.0,1.5,0.{seed}5,0.5" for seed in range(3)]
RECORD = "\n".join([HEADER, *LINES]) + "\n"


def record_door(folder: Path) -> Any:
    """The recorded runs; the file stays as it is."""
    path = folder / "tiny.runs.csv"
    before = path.read_bytes()
    try:
        return [[run.experiment, run.seed, run.data, run.metrics["backdoored.acc"]] for run in read_record(path)]
    finally:
        assert path.read_bytes() == before


def record(content: str | bytes) -> Make:
    def make(folder: Path) -> None:
        (folder / "tiny.runs.csv").write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def line(number: int, old: str, new: str) -> Make:
    lines = RECORD.split("\n")
    assert old in lines[number - 1]
    lines[number - 1] = lines[number - 1].replace(old, new, 1)
    return record("\n".join(lines))


ALL = Accepted([["badnets", seed, "digits", (10 * seed + 5) / 100] for seed in range(3)])
RECORDS = [
    Case("record", record(RECORD), ALL),
    Case("record-saved-elsewhere", record(b"\xef\xbb\xbf" + RECORD.replace("\n", "\r\n").encode()), ALL),
    Case("record-of-no-runs", record(HEADER + "\n"), Accepted([])),
    Case("record-empty", record(""), Refused(r"tiny\.runs\.csv: line 1 is cut off")),
    Case("record-cut", record(RECORD[:-3]), Refused(r"line 4 is cut off, .*`python -m unpoison\.suites repair tiny`")),
    Case("record-without-its-end", record(RECORD[:-1]), Refused("line 4 is cut off")),
    Case("record-cut-in-the-header", record(RECORD[:20]), Refused("line 1 is cut off")),
    Case(
        "record-line-too-short",
        line(3, ",0.15,0.5", ""),
        Refused("line 3 is not that of a run .9 cells given, allowed: 11"),
    ),
    Case("record-line-too-long", line(3, "0.5", "0.5,1"), Refused("line 3 is not that of a run .12 cells given")),
    Case("record-line-empty", line(3, LINES[1], ""), Refused("line 3 is not that of a run .0 cells given")),
    # One quote takes the lines up to the next one into a cell.
    Case("record-quote", line(2, "cpu", '"cpu'), Refused("line 2 is not one of CSV")),
    Case(
        "record-two-quotes",
        record(RECORD.replace("cpu", '"cpu', 1).replace("1.5,0.2", '1.5",0.2')),
        Refused("line 2 is not"),
    ),
    Case("record-nul", line(3, "cpu", "c\0u"), Refused("line 3 has control characters")),
    Case("record-escape", line(3, "cpu", "\x1b[2J"), Refused("line 3 has control characters")),
    Case("record-return-within", line(3, "cpu", "c\ru"), Refused("line 3 ")),
    Case(
        "record-latin-1", record(RECORD.replace("cpu", "cp\xfc", 1).encode("latin-1")), Refused("line 2 is not UTF-8")
    ),
    Case("record-utf-16", record(RECORD.encode("utf-16")), Refused("line 1 is not UTF-8")),
    Case("record-twice", record(RECORD + LINES[1] + "\n"), Refused("line 5 is that of line 3 once more")),
    Case(
        "record-twice-otherwise",
        record(RECORD + LINES[1].replace("0.15", "0.9") + "\n"),
        Refused("line 5 is that of line 3"),
    ),
    Case(
        "record-percent",
        line(4, "0.25", "65.79"),
        Refused(r"line 4 .*backdoored\.acc: 65\.79 found, allowed: a fraction"),
    ),
    Case("record-negative", line(4, "0.25", "-0.2"), Refused(r"line 4 .*backdoored\.acc: -0\.2 found")),
    Case("record-nan", line(4, "0.25", "nan"), Refused(r"line 4 .*backdoored\.acc: 'nan' given")),
    Case("record-infinite", line(4, "0.25", "1e999"), Refused(r"line 4 .*backdoored\.acc: inf found")),
    Case("record-digits-of-another-script", line(4, "0.25", "\u0660.\u0662"), Refused(r"line 4 .*backdoored\.acc")),
    Case("record-underscore", line(4, "0.25", "0.2_5"), Refused(r"line 4 .*backdoored\.acc: '0\.2_5' given")),
    Case("record-seed", line(4, ",2,", ",-2,"), Refused("line 4 .*seed: '-2' given")),
    Case("record-seconds", line(4, "1.5", "-1.5"), Refused("line 4 .*seconds: -1.5 given")),
    Case("record-settings", line(4, "0123abcd", "0123"), Refused("line 4 .*settings: '0123' given")),
    Case("record-name-leads-out", line(4, "badnets", "../x"), Refused("line 4 .*experiment: '../x' given")),
    Case("record-columns-of-others", record(RECORD.replace("settings,", "", 1)), Refused("line 1 names other columns")),
    Case(
        "record-column-formula", record(RECORD.replace("backdoored.asr", "=asr")), Refused("line 1 names other columns")
    ),
    Case("record-column-twice", record(RECORD.replace("asr", "acc", 1)), Refused("line 1 names other columns")),
    Case("record-formula", line(2, "digits", "'=1+1"), Accepted(lambda runs: runs[0][2] == "=1+1")),
]


@pytest.mark.parametrize("case", RECORDS[:12], ids=str)
def test_record(case: Case, tmp_path: Path) -> None:
    knock(record_door, case, tmp_path)


def test_records_with_one_thing_wrong(tmp_path: Path) -> None:
    answered(record_door, RECORDS[12:], tmp_path)


def repair_door(folder: Path) -> Any:
    """What is taken away, and what is left of the record."""
    return [repair(folder / "tiny.runs.csv"), (folder / "tiny.runs.csv").read_text()]


REPAIRS = [
    Case("half-a-line", record(RECORD[:-30]), Accepted([LINES[2][:-29], RECORD[: RECORD.rindex("small")]])),
    Case("nothing", record(RECORD), Accepted(["", RECORD])),
    Case("other-damage", record(RECORD.replace("0.15", "x") + "small,bad"), Refused("line 3 is not that of a run")),
    Case("no-record", lambda folder: None, Refused("no such file")),
]


def test_repair(tmp_path: Path) -> None:
    answered(repair_door, REPAIRS, tmp_path)


def experiment_door(folder: Path) -> Any:
    """What an experiment's commit message and its metrics tell."""
    made = experiments._made((folder / "message").read_text())
    return [made.get("settings"), figures_of(json.loads((folder / "metrics").read_text()))]


def experiment(message: str, metrics: str) -> Make:
    def make(folder: Path) -> None:
        (folder / "message").write_text(message)
        (folder / "metrics").write_text(metrics)

    return make


MADE = json.dumps({"settings": "0123abcd", "device": "cpu", "torch": "2", "seconds": 1.5})
GRADED = json.dumps({"backdoored": {"acc": 0.5}})


EXPERIMENTS = [
    Case("made-here", experiment(MADE, GRADED), Accepted(["0123abcd", {"backdoored.acc": 0.5}])),
    Case(
        "message-of-another", experiment('{"settings": "0123abcd"}', GRADED), Accepted([None, {"backdoored.acc": 0.5}])
    ),
    Case("message-cut", experiment(MADE[:30], GRADED), Accepted([None, {"backdoored.acc": 0.5}])),
    Case("message-deep", experiment("[" * 100_000, GRADED), Accepted([None, {"backdoored.acc": 0.5}])),
    Case("metrics-nan", experiment(MADE, '{"backdoored": {"acc": NaN}}'), Refused("backdoored.acc: nan found")),
    Case("metrics-name", experiment(MADE, '{"=1\\n": 1}'), Refused(r"'=1\\n' found as a name")),
    Case("metrics-list", experiment(MADE, "[1]"), Refused("a list found, allowed: a JSON object")),
    Case("metrics-text", experiment(MADE, '{"a": {"b": "1"}}'), Refused("a.b: '1' found, allowed: a finite number")),
    Case(
        "trigger-number",
        experiment(MADE, '{"attack": {"trigger": {"x": 1}}}'),
        Refused("attack.trigger.x: 1 found"),
    ),
]


def test_experiments(tmp_path: Path) -> None:
    answered(experiment_door, EXPERIMENTS, tmp_path)
