"""The table that CI posts on a pull request."""

from __future__ import annotations

from unpoison.reporting.metrics_diff import metrics_table

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
