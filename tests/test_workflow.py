"""Runs in the working copy: what an earlier run has left in the parameters is taken back, paths are looked at first."""

from __future__ import annotations

from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides

from tiny import run
from unpoison.core.errors import UserError
from unpoison.core.yaml_file import parse_yaml
from unpoison.workflow import committed, given_path, taken_back

COMMITTED = {
    "params.yaml": "seed: 0\ntrain: {lr: 0.1, augment: [flip]}\npurify: {by: {}}\nmodel: {width: 16}\nreceived:\n"
    "report: {level: medium}\n",
    "params/detectors.yaml": "strip: {overlays: 24}\nss: {centre: reserve}\n",
}
LEFT = {
    "params.yaml": "seed: 1\ntrain: {lr: 0.5, augment: []}\npurify: {by: {dbr: scores/ss}}\nmodel: {width: 16, nope: 1}\n"
    "report: {level: high}\n",
    "params/detectors.yaml": "strip: {overlays: 100}\nss: {centre: class}\n",
}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A commit's parameters, and others in the working copy."""
    (tmp_path / "params").mkdir()
    write(tmp_path, COMMITTED)
    run(tmp_path, "git", "init", "-q")
    run(tmp_path, "git", "add", "-A")
    run(tmp_path, "git", "-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "-qm", "first")
    write(tmp_path, LEFT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, files: dict[str, str]) -> None:
    for path, text in files.items():
        (folder / path).write_text(text)


def test_the_parameters_are_the_commits(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = taken_back(repository, {"report.level": "low", "params/detectors.yaml:ss.centre": "class"})
    for change in changes:
        path, colon, own = change.rpartition(":")
        apply_overrides(repository / (path if colon else "params.yaml"), [own])
    expected = {path: parse_yaml(text, path) for path, text in COMMITTED.items()}
    # What the run itself sets is left to it.
    expected["params.yaml"]["report"]["level"] = "high"
    expected["params/detectors.yaml"]["ss"]["centre"] = "class"
    assert {path: parse_yaml((repository / path).read_text(), path) for path in COMMITTED} == expected
    said = capsys.readouterr().out
    assert said.startswith("parameters: as committed, and not as an earlier run left them: seed (1), train.lr (0.5)")
    assert "model.nope (1)" in said
    assert "params/detectors.yaml:strip.overlays (100)" in said


def test_nothing_to_take_back_is_not_spoken_of(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(repository, COMMITTED)
    assert taken_back(repository, {}) == []
    assert capsys.readouterr().out == ""


def test_committed(repository: Path) -> None:
    assert committed("params/detectors.yaml")["strip"] == {"overlays": 24}


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "a${b}").mkdir()
    assert given_path("DATA", "photos", "a folder") == tmp_path / "photos"
    with pytest.raises(UserError, match=r"DATA: none given; allowed: a folder"):
        given_path("DATA", "", "a folder")
    with pytest.raises(UserError, match=r"DATA: '.*a\$\{b\}' given, allowed: a path without \$\{"):
        given_path("DATA", "a${b}", "a folder")
