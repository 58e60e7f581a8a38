"""The table of all attacks: what a line depends on, and which lines it shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attack_table
import pandas as pd
import pytest
from attack_rows import DATA, PUBLISHED, ROWS
from attack_table import Job, jobs

from unpoison.attacks import ATTACKS


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(attack_table, "SCRATCH", tmp_path / "scratch")
    monkeypatch.setattr(attack_table, "REPORTS", tmp_path / "reports")
    return tmp_path


def line(name: str, rate: float, **changes: Any) -> dict[str, Any]:
    job = Job("digits", name, ROWS[name], rate, 0)
    figures = {"acc": 0.9, "asr": 0.5, "ra": 0.4, "poisoned": rate, "seconds": 60.0, "machine": "a machine"}
    return {
        "data": "digits",
        "row": name,
        "rate": rate,
        "seed": 0,
        **figures,
        "settings": job.settings,
        "source": "",
    } | changes


def write(path: Path, *lines: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(lines).to_csv(path, index=False)


def test_rows_cover_every_attack_and_name_published_ones() -> None:
    assert {row.attack for row in ROWS.values()} == {*ATTACKS, "multi"}
    assert {row.published for row in ROWS.values()} - {""} == set(PUBLISHED)


def test_every_line_has_settings_of_its_own() -> None:
    every = [job for data in DATA for job in jobs(data, [0, 1], [])]
    assert len({job.settings for job in every}) == len(every)


def test_settings_follow_the_parameters_of_what_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: Job("digits", name, ROWS[name], 0.1, 0).settings for name in ("multi", "badnets 4x4", "sig")}
    params = attack_table.load_params(attack_table.ROOT / "params.yaml")
    params["attack"]["badnets"]["margin"] = 1  # type: ignore[index]
    monkeypatch.setattr(attack_table, "load_params", lambda _: params)
    after = {name: Job("digits", name, ROWS[name], 0.1, 0).settings for name in before}
    assert after["sig"] == before["sig"]
    assert after["multi"] != before["multi"]
    assert after["badnets 4x4"] != before["badnets 4x4"]


def test_new_lines_replace_old_ones_and_other_settings_are_left_out(places: Path) -> None:
    write(places / "reports/runs.csv", line("sig", 0.1), line("sig", 0.05), line("lc", 0.1, settings="000000000000"))
    write(places / "scratch/runs/x.csv", line("sig", 0.1, asr=0.75))
    found = attack_table.record()
    assert {(row.row, row.rate, row.asr) for row in found.itertuples()} == {("sig", 0.1, 0.75), ("sig", 0.05, 0.5)}


def test_page_says_what_was_not_run(places: Path) -> None:
    write(places / "scratch/runs/x.csv", line("sig", 0.1))
    attack_table.table(attack_table.argparse.Namespace())
    rows = {row.split(" | ")[0]: row for row in (places / "reports/index.md").read_text().splitlines()[::-1]}
    assert "| 10% | 10.00% |" in rows["| sig"]
    assert "| 0.500 |" in rows["| sig"]
    assert "| 0.983 |" in rows["| sig"]
    assert "| not run |" in rows["| blended"]
