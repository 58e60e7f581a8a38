"""The table's arithmetic and its pages, the record, and the committed ones."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from suite_files import FILE, NAMES, ROOT, VARIED, changed, ran, read
from unpoison.core.errors import UserError
from unpoison.reporting import figures
from unpoison.suites.curves import _numbers, curves_of
from unpoison.suites.reading import read_suite
from unpoison.suites.record import figures_of, merged, read_record, write_record
from unpoison.suites.suite import Suite
from unpoison.suites.table import counted, lines, markdown, table_csv


@pytest.fixture
def tiny(tmp_path: Path) -> Suite:
    return read(tmp_path, FILE)


@pytest.fixture
def varied(tmp_path: Path) -> Suite:
    return read(tmp_path, VARIED)


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
    assert full.why == "`make suite SUITE=tiny SCALE=full`"


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
    assert "- badnets: `attack.name=badnets`, `params/attacks.yaml:badnets.size=3`\n" in page
    assert "- 2 of 6 runs: 1.0 to 1.0 min each, 2.0 min in all" in page
    assert "- hardware: cpu: X, 2 cores, 2 threads" in page
    assert "none of 2 runs made; what they cost: a year" in page
    rows = list(csv.DictReader(table_csv(tiny, runs).splitlines()))
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


def test_table_of_what_varies_has_its_values_and_further_columns(varied: Suite) -> None:
    runs = [
        replace(run, metrics={**run.metrics, "attack.trigger.*.psnr": psnr})
        for run, psnr in (
            (ran(varied, "badnets-0.1", 0, 0.9, 0.75, 0.2), 20.0),
            (ran(varied, "badnets-0.1", 1, 0.9, 0.75, 0.2), 22.0),
            (ran(varied, "blended-0.4", 0, 0.9, 0.75, 0.2), 30.25),
        )
    ]
    page = markdown(varied, runs)
    assert "| scale | attack | poison_rate | method |" in page
    assert "| ours ACC / ASR / RA | PSNR, dB | cover | n |" in page
    assert "- badnets: `attack.name=badnets`; `attack.poison_rate` 0.1, 0.05\n" in page
    first, other, blended = (row.split(" | ") for row in page.splitlines() if row.startswith("| small scale"))
    assert first[1:4] == ["badnets", "0.1", "none"]
    assert first[7:10] == ["21.0 ± 1.4", "–", "2 of 3"]
    assert first[10:] == ["+0.000 / -0.200 / –", "no tolerance", " |"]
    assert (other[2], other[-2]) == ("0.05", "not run")
    assert (blended[2], blended[7]) == ("0.4", "30.2")
    assert "Published figures stand for orientation, no tolerance is set." in page
    rows = list(csv.DictReader(table_csv(varied, runs).splitlines()))
    assert (rows[0]["value"], rows[0]["mean_attack.trigger.*.psnr"], rows[0]["std_attack.cover"]) == ("0.1", "21", "")


def test_a_matrix_leaves_out_attacks_that_did_not_take(tmp_path: Path) -> None:
    published = {"mean of 7 attacks": {"source": "paper", "figures": {"cd": 0.5}}}
    matrices = {"FPR": {"metric": "detection.*.fpr", "lower_is_better": True, "published": published}}
    suite = read(tmp_path, {**VARIED, "matrices": matrices, "taken": 0.5})
    runs = [
        replace(run, metrics={**run.metrics, **{f"detection.{name}.fpr": value for name, value in figures.items()}})
        for run, figures in (
            (ran(suite, "badnets-0.1", 0, 0.9, 0.75, 0.2), {"cd": 0.1, "ac": 0.3}),
            (ran(suite, "badnets-0.1", 1, 0.9, 0.85, 0.2), {"cd": 0.3, "ac": 0.5}),
            (ran(suite, "badnets-0.05", 0, 0.9, 0.49, 0.2), {"cd": 0.9, "ac": 0.9}),
            (ran(suite, "blended-0.4", 0, 0.9, 0.5, 0.2), {"cd": 0.4}),
        )
    ]
    page = markdown(suite, runs).split("### FPR: 200 digits; digits\n\n")[1]
    assert page.splitlines() == [
        "| attack | poison_rate | ASR | ac | cd |",
        "|---|---:|---:|---:|---:|",
        "| badnets | 0.1 | 0.800 | 0.400 | 0.200 |",
        "| badnets † | 0.05 | 0.490 | 0.900 | 0.900 |",
        "| blended | 0.4 | 0.500 | – | 0.400 |",
        "| **mean** of 2 |  |  | 0.400 | 0.300 |",
        "| **worst** of 2 |  |  | 0.400 | 0.400 |",
        "| mean of 7 attacks (`paper`) |  |  | – | 0.500 |",
        "",
        "† ASR below 0.5: the attack did not take. Such rows are in neither mean nor worst case.",
    ]
    assert "### FPR" not in markdown(suite, [replace(run, metrics={"backdoored.acc": 0.9}) for run in runs])


def test_the_control_stands_beside_the_asr_of_the_victim(tmp_path: Path) -> None:
    matrices = {f"ASR by {rows}": {"metric": "robust.*.asr", "rows": rows} for rows in ("attacks", "methods")}
    suite = read(tmp_path, {**VARIED, "matrices": matrices})
    runs = [
        replace(run, metrics={**run.metrics, **figures})
        for run, figures in (
            (ran(suite, "badnets-0.1", 0, 0.9, 0.8, 0.2), {"robust.abl.asr": 0.25, "clean.asr": 0.5}),
            # Of an earlier run, which had none.
            (ran(suite, "blended-0.4", 0, 0.9, 0.8, 0.2), {"robust.abl.asr": 0.75}),
        )
    ]
    page = markdown(suite, runs)
    assert page.split("### ASR by attacks: 200 digits; digits\n\n")[1].splitlines()[:5] == [
        "| attack | poison_rate | ASR | control | abl |",
        "|---|---:|---:|---:|---:|",
        "| badnets | 0.1 | 0.800 | 0.500 | 0.250 |",
        "| blended | 0.4 | 0.800 | – | 0.750 |",
        "| **mean** of 2 |  |  |  | 0.500 |",
    ]
    assert page.split("### ASR by methods: 200 digits; digits\n\n")[1].splitlines()[2:5] == [
        "| ASR of the victim | 0.800 | 0.800 |  |  |",
        "| ASR of the control | 0.500 | – |  |  |",
        "| abl | 0.250 | 0.750 | 0.500 | 0.250 |",
    ]
    assert "Control: a network like the victim's" in page


def test_solved_attacks_are_counted_and_methods_go_down_the_page(tmp_path: Path) -> None:
    solved = {
        "methods": "purified.*",
        "asr": 0.05,
        "acc_drop": 0.02,
        "columns": {"retuned ASR": {"metric": "retuned_asr"}},
    }
    matrices = {"ASR": {"metric": "purified.*.asr", "lower_is_better": True, "rows": "methods"}}
    suite = read(tmp_path, {**VARIED, "matrices": matrices, "solved": solved, "taken": 0.5})
    figures = {
        # Solved to the hundredth, but for the ACC of ft and the ASR of the second attack; the third did not take.
        "badnets-0.1": {"fst": (0.88, 0.05, 0.9), "ft": (0.879, 0.0, 0.1)},
        "blended-0.4": {"fst": (0.88, 0.06, 0.7), "ft": (0.9, 0.0, None)},
        "badnets-0.05": {"fst": (0.9, 0.0, 0.0), "ft": (0.9, 0.0, 0.0)},
    }
    runs = []
    for experiment, methods in figures.items():
        run = ran(suite, experiment, 0, 0.9, 0.4 if experiment == "badnets-0.05" else 1.0, 0.0)
        found = {
            f"purified.{name}.{key}": value
            for name, values in methods.items()
            for key, value in zip(("acc", "asr", "retuned_asr"), values, strict=True)
            if value is not None
        }
        runs.append(replace(run, metrics={**run.metrics, **found}))
    page = markdown(suite, runs)
    assert page.split("### Attacks solved: 200 digits; digits\n\n")[1].splitlines()[:4] == [
        "| method | solved | ACC | ASR | retuned ASR |",
        "|---|---:|---:|---:|---:|",
        "| ft | 1 of 2 | 0.889 | 0.000 | 0.100 |",
        "| fst | 1 of 2 | 0.880 | 0.055 | 0.800 |",
    ]
    assert page.split("### ASR: 200 digits; digits\n\n")[1].splitlines()[:5] == [
        "| method | badnets 0.1 | badnets † 0.05 | blended 0.4 | **mean** of 2 | **worst** of 2 |",
        "|---|---:|---:|---:|---:|---:|",
        "| ASR of the victim | 1.000 | 0.400 | 1.000 |  |  |",
        "| fst | 0.050 | 0.000 | 0.060 | 0.055 | 0.060 |",
        "| ft | 0.000 | 0.000 | 0.000 | 0.000 | 0.000 |",
    ]


def test_an_attack_that_goes_on_under_another_label_is_not_solved(tmp_path: Path) -> None:
    solved = {"methods": "robust.*", "asr": 0.05, "acc_drop": 0.02, "ra_drop": 0.2}
    suite = read(tmp_path, {**VARIED, "solved": solved, "taken": 0.5})
    run = ran(suite, "badnets-0.1", 0, 0.9, 1.0, 0.0)
    ras = {"pdb": 0.1, "abl": 0.7, "nab": 0.69}
    figures = {
        f"robust.{name}.{key}": value
        for name, ra in ras.items()
        for key, value in (("acc", 0.9), ("asr", 0.0), ("ra", ra))
    }
    page = markdown(
        suite, [replace(run, metrics={**run.metrics, **figures, "robust.dst.acc": 0.9, "robust.dst.asr": 0.0})]
    )
    rows = page.split("### Attacks solved")[1].splitlines()[4:8]
    assert [row.split(" | ")[:2] for row in rows] == [
        ["| abl", "1 of 1"],
        ["| dst", "0 of 1"],
        ["| nab", "0 of 1"],
        ["| pdb", "0 of 1"],
    ]
    assert "of the ACC lost that `none` has, and RA at most 0.2 below the method's own ACC. Means" in page


def test_a_run_without_asr_is_graded_by_its_acc(tiny: Suite) -> None:
    run = ran(tiny, "badnets", 0, *[0.91] * 6)
    line = lines(tiny, [replace(run, metrics={"backdoored.acc": 0.91})])[0]
    assert (line.runs, line.mean, line.difference, line.verdict) == (1, {"acc": 0.91}, {"acc": 0.0}, "deviates")


def test_record_keeps_lines_of_runs_made_elsewhere(tiny: Suite, tmp_path: Path) -> None:
    path = tmp_path / "reports" / "tiny.runs.csv"
    assert read_record(path) == []
    elsewhere = ran(tiny, "blended", 2, *[0.25] * 6, scale="full")
    old, new = ran(tiny, "badnets", 0, *[0.5] * 6), ran(tiny, "badnets", 0, *[0.75] * 6)
    without = replace(ran(tiny, "badnets", 1, *[0.5] * 6), seconds=None, device="", metrics={"backdoored.acc": 1.0})
    other = replace(old, data="folder a.tar", metrics={"attack.trigger.*.psnr": 27.294054, "attack.tested": 18000.0})
    write_record(path, [old, elsewhere, other])
    write_record(path, merged(read_record(path), [without, new]))
    assert read_record(path) == [elsewhere, new, without, other]
    before = path.read_bytes()
    write_record(path, reversed(read_record(path)))
    assert path.read_bytes() == before
    path.write_text(path.read_text().replace("badnets,0,", "badnets,zero,"))
    with pytest.raises(UserError, match=r"tiny\.runs\.csv: line 3 is not that of a run"):
        read_record(path)


def test_record_holds_the_mean_of_several_triggers() -> None:
    triggers = {"0_badnets": {"psnr": 20.0, "ssim": 0.5}, "1_semantic": {"ssim": 1.0}}
    metrics = {"attack": {"cover": 0, "trigger": triggers}, "purified": {"ft": {"acc": 1}}, "x": 0.5}
    flat = {"attack.cover": 0.0, "attack.trigger.*.ssim": 0.75, "purified.ft.acc": 1.0, "x": 0.5}
    assert figures_of(metrics) == flat
    assert figures_of({"backdoored": {"acc": 0.5}}) == {"backdoored.acc": 0.5}


@pytest.mark.parametrize("name", NAMES)
def test_every_recorded_run_is_counted_and_the_pages_are_those_of_the_record(name: str) -> None:
    suite, place = read_suite(name, ROOT / "suites"), ROOT / "reports" / "suites"
    runs = read_record(place / f"{name}.runs.csv")
    assert counted(suite, runs) == runs
    assert (place / f"{name}.md").read_text() == markdown(suite, runs)
    assert (place / f"{name}.csv").read_text() == table_csv(suite, runs)
    recorded = {metric for run in runs for metric in run.metrics}
    assert {column.metric for column in suite.columns.values()} <= recorded


def test_curves_of_what_a_suite_varies(tmp_path: Path) -> None:
    methods = {"none": {"metrics": "backdoored"}, "fst": {"metrics": "purified.fst", "unpublished": "none"}}
    suite = read(tmp_path, {**VARIED, "methods": {**VARIED["methods"], "fst": methods["fst"]}})
    runs = []
    for experiment, acc in (("badnets-0.1", 0.8), ("badnets-0.05", 0.7), ("blended-0.4", 0.6)):
        runs.append(ran(suite, experiment, 0, 0.9, 1.0, 0.0, acc, acc / 2, 0.0))
    values = _numbers(suite)
    assert values == {"0.05": 0.05, "0.1": 0.1, "0.4": 0.4}
    curves = curves_of(suite, values, [line for line in lines(suite, runs) if line.runs])
    assert list(curves) == ["badnets", "blended"]
    nan = pytest.approx(float("nan"), nan_ok=True)
    assert curves["badnets"][0].tolist() == [0.7, 0.8, nan]
    assert curves["blended"][1].tolist() == [nan, nan, 0.3]
    assert figures.against(suite.vary, list(values.values()), curves).startswith(b"\x89PNG")
    with pytest.raises(
        UserError, match=r"^suites/tiny\.yaml: vary: nothing given, allowed for curves: one with numbers$"
    ):
        _numbers(read(tmp_path, FILE))
