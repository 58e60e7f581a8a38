"""The default run's figures, read from the committed metrics, and (slow) from a run of one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common import load_params

ROOT = Path(__file__).resolve().parent.parent
METRICS: dict[str, Any] = json.loads((ROOT / "reports" / "metrics.json").read_text())


def check(metrics: dict[str, Any]) -> None:
    backdoored, student, fst = metrics["backdoored"], metrics["student"], metrics["purified"]["fst"]
    assert backdoored["acc"] >= 0.93
    assert backdoored["asr"] >= 0.98
    assert student["asr"] <= 0.03
    assert student["acc"] >= backdoored["acc"] - 0.04
    assert fst["asr"] <= 0.10
    assert fst["acc"] >= backdoored["acc"] - 0.04
    for detector in ("cd", "strip"):
        assert metrics["detection"][detector]["auroc"] >= 0.90


def test_committed_metrics_reach_the_figures() -> None:
    check(METRICS)


def test_committed_metrics_are_of_the_methods_in_params() -> None:
    params = load_params(ROOT / "params.yaml")
    assert set(METRICS["detection"]) == set(params["detect"]["methods"])
    assert set(METRICS["purified"]) == set(params["purify"]["methods"])


@pytest.mark.slow
def test_a_run_of_ones_own_reaches_the_figures(tmp_path: Path) -> None:
    from test_pipeline import make_project

    check(json.loads((make_project(tmp_path / "clone", {}) / "reports" / "metrics.json").read_text()))
