"""The table that CI posts on a pull request."""

from __future__ import annotations

import pytest

from unpoison.core.errors import UserError
from unpoison.reporting.metrics_diff import metrics_table, read_differences

DIFFERENCES = {
    "reports/metrics.json": {
        "student.asr": {"old": 0.25, "new": 0.02, "diff": -0.23},
        "backdoored.acc": {"old": 0.94, "new": 0.94, "diff": 0.0},
        "detection.ss.auroc": {"old": None, "new": 0.7},
        "detection.ac.auroc": {"old": 0.4, "new": None},
        "backdoored.asr": {"old": 1.0, "new": 0.99999, "diff": -0.00001},
    }
}


def test_changed_first_then_by_name() -> None:
    assert metrics_table(DIFFERENCES).splitlines() == [
        "**3 of 5 metrics changed**",
        "",
        "| metric | base | this | change |",
        "|---|---:|---:|---:|",
        "| detection.ac.auroc | 0.4000 | – | gone |",
        "| detection.ss.auroc | – | 0.7000 | new |",
        "| student.asr | 0.2500 | 0.0200 | -0.2300 |",
        "| backdoored.acc | 0.9400 | 0.9400 |  |",
        "| backdoored.asr | 1.0000 | 1.0000 |  |",
    ]


def test_order_of_the_input_does_not_matter() -> None:
    turned = {name: dict(reversed(metrics.items())) for name, metrics in DIFFERENCES.items()}
    assert metrics_table(turned) == metrics_table(DIFFERENCES)


def test_nothing_to_compare() -> None:
    assert metrics_table({}) == "No metrics to compare.\n"


def test_names_and_values_of_any_kind_stand_in_their_cells() -> None:
    odd = {
        "a|b <img>": {"old": 0.5, "new": "[x](y)"},
        "flag": {"old": True, "new": True},
        "nan": {"old": float("nan"), "new": float("nan")},
        "huge": {"old": 10**400, "new": 1},
        "`c`": {"old": None, "new": "a\nb"},
    }
    assert metrics_table({"m.json": odd}).splitlines()[4:] == [
        "| \\`c\\` | – | a\\\\nb | new |",
        "| a\\|b \\<img> | 0.5000 | [x\\](y) | changed |",
        "| huge | a huge number | 1.0000 | changed |",
        "| flag | True | True |  |",
        "| nan | nan | nan |  |",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not readable as JSON"),
        ("[" * 100_000, "not readable as JSON"),
        ("1" * 5000, "not readable as JSON"),
        (b"\xff{}", "not readable as JSON"),
        ("[]", "other JSON found"),
        ('{"m": 1}', "other JSON found"),
        ('{"m": {"acc": 0.5}}', "other JSON found"),
        ('{"m": {"acc": {"old": 1}, "acc": {"old": 2}}}', "'acc' found twice in a block"),
    ],
)
def test_what_dvc_does_not_print_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_differences(text)


def test_what_dvc_prints_is_read() -> None:
    assert read_differences("") == {}
    assert read_differences('{"m": {"acc": {"old": 0.5, "new": null}}}') == {"m": {"acc": {"old": 0.5, "new": None}}}
