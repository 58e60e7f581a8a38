"""The process that a stage runs in: the library is the one beside it, and what goes wrong around it is said in one line."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import common

import pytest
import yaml

from tiny import ENVIRONMENT, ROOT, run
from unpoison.core.errors import UserError, one_line

# A stage that says which library it uses, and does what its argument asks for.
STAGE = """
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from common import SCRATCH, run_stage
import numpy as np
import parameters
import unpoison
from unpoison.core.files import new_file


def main():
    print(unpoison.__file__, parameters.HERE)
    if "line" in sys.argv:
        print("gr\\u00f6\\u00dfe \\x1b[31m")
    if "interrupt" in sys.argv:
        raise KeyboardInterrupt
    if "write" in sys.argv:
        with new_file(Path("out.npy")) as staging, staging.open("wb") as file:
            np.save(file, np.zeros(100_000))
    if "bug" in sys.argv:
        raise ZeroDivisionError("a bug")
    return [Path("out\\u00df\\x1b")]


if __name__ == "__main__":
    run_stage("small", main)
"""


def make_copy(folder: Path) -> Path:
    """A working copy with as much of the library as `common` needs, and the stage above."""
    (folder / "stages").mkdir(parents=True)
    shutil.copy(ROOT / "stages/common.py", folder / "stages")
    (folder / "stages/small.py").write_text(STAGE, encoding="utf-8")
    (folder / "stages/parameters.py").write_text(f"HERE = {folder.name!r}\n", encoding="utf-8")
    library = ROOT / "src/unpoison"
    (folder / "src/unpoison").mkdir(parents=True)
    shutil.copy(library / "__init__.py", folder / "src/unpoison")
    shutil.copytree(library / "core", folder / "src/unpoison/core", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two working copies."""
    folder = tmp_path_factory.mktemp("copies")
    return make_copy(folder / "own"), make_copy(folder / "other")


def small(
    folder: Path, *arguments: str, options: tuple[str, ...] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *options, "stages/small.py", *arguments]
    given = {**ENVIRONMENT, "PYTHONPATH": "", "UNPOISON_SCRATCH": str(folder.parent / "scratch"), **environment}
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=given, encoding="utf-8", errors="replace"
    )


def refused(done: subprocess.CompletedProcess[str], *parts: str, status: int = 1) -> None:
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    for part in parts:
        assert part in done.stderr


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONPATH": "{other}/src:{other}/stages:{other}"},
        {"PYTHONPATH": "{other}/src", "PYTHONSAFEPATH": "1"},
        {"PYTHONPATH": "{own}:{other}/stages", "PYTHONSAFEPATH": "1"},
    ],
)
def test_the_library_is_the_one_beside_the_stage(copies: tuple[Path, Path], environment: Mapping[str, str]) -> None:
    own, other = copies
    done = small(own, **{key: value.format(own=own, other=other) for key, value in environment.items()})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"{own}/src/unpoison/__init__.py own"


@pytest.mark.parametrize(
    ("imported", "named"),
    [("unpoison", "unpoison"), ("parameters", "parameters"), ("namespace", "unpoison")],
)
def test_code_of_another_copy_that_is_there_already_is_refused(
    copies: tuple[Path, Path], imported: str, named: str, tmp_path: Path
) -> None:
    # As an installation may do that imports the library when Python starts.
    own, other = copies
    place = str(other / ("src" if imported == "unpoison" else "stages"))
    if imported == "namespace":
        (tmp_path / "empty/unpoison").mkdir(parents=True)
        place = str(tmp_path / "empty")
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.path.insert(0, {place!r})\nimport {named}\n")
    done = small(own, PYTHONPATH=str(tmp_path))
    refused(done, f"error: {named}: loaded from", f"allowed: {own}/")
    assert done.stdout == ""


def test_a_stage_without_its_library_is_refused(copies: tuple[Path, Path], tmp_path: Path) -> None:
    own, other = copies
    shutil.copytree(own / "stages", tmp_path / "stages")
    refused(small(tmp_path, PYTHONPATH=str(other / "src")), "error: unpoison: loaded from", str(other))
    refused(small(tmp_path, options=("-S",)), "src/unpoison: cannot be imported")


def test_a_python_without_the_libraries_is_named(copies: tuple[Path, Path]) -> None:
    # Neither site-packages nor `.venv`: what a `python` of the system's is, where the environment is not active.
    refused(small(copies[0], options=("-S", "-E")), sys.executable, "No module named 'numpy'", "`make setup`")


def test_lines_that_the_terminal_cannot_show_are_escaped(copies: tuple[Path, Path]) -> None:
    done = small(copies[0], "line", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert "gr\\xf6\\xdfe" in done.stdout
    assert done.stdout.splitlines()[-1] == "small: wrote out\\xdf\\x1b"


def test_an_interrupt_a_full_disk_and_a_closed_pipe_are_one_line(copies: tuple[Path, Path], tmp_path: Path) -> None:
    own, _ = copies
    refused(small(own, "interrupt"), "interrupted", status=130)
    full = subprocess.run(
        ["sh", "-c", 'ulimit -f 16; exec "$0" stages/small.py write', sys.executable],
        cwd=own,
        capture_output=True,
        text=True,
        env={**ENVIRONMENT, "PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1"},
    )
    refused(full)
    assert not list(own.glob("*out.npy*"))
    reader, writer = os.pipe()
    os.close(reader)
    closed = subprocess.run(
        [sys.executable, "stages/small.py"],
        cwd=own,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, "PYTHONPATH": ""},
    )
    os.close(writer)
    refused(closed, "standard output: closed")


def test_a_bug_keeps_its_traceback(copies: tuple[Path, Path]) -> None:
    assert "Traceback" in small(copies[0], "bug").stderr


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ModuleNotFoundError("No module named 'torch'", name="torch"), "No module named 'torch'; allowed: the env"),
        (
            OSError(errno.ENOSPC, "No space left on device", "data/x"),
            "error: data/x: No space left on device; no output",
        ),
        (OSError(errno.EROFS, "Read-only file system"), "error: Read-only file system; no output"),
        (OSError("100000 requested and 16 written"), "error: 100000 requested and 16 written; no output"),
        (MemoryError(), "error: memory: not enough"),
        (type("SafetensorError", (Exception,), {})("I/O error:\nno space"), "error: I/O error: no space; no output"),
    ],
)
def test_faults_of_the_machine_are_one_line(error: Exception, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    common.explain(type(error), error, None)
    said = capsys.readouterr().err
    assert line in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        (
            {"UNPOISON_PROCESSES": "9" * 5000},
            r"^error: UNPOISON_PROCESSES: '999.* given, allowed: a whole number from 1",
        ),
        ({"UNPOISON_PROCESSES": "0"}, r"UNPOISON_PROCESSES: '0' given"),
        ({"UNPOISON_PROCESSES": "٣"}, r"UNPOISON_PROCESSES: '٣' given"),
        ({"WORLD_SIZE": "two"}, r"WORLD_SIZE: 'two' given, allowed: what torchrun sets"),
        ({"WORLD_SIZE": ""}, r"WORLD_SIZE: '' given"),
        ({"WORLD_SIZE": "2"}, r"RANK: 'nothing' given"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, r"RANK: '2' given"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, r"small: 2 processes given, allowed: 1"),
    ],
)
def test_bad_variables_are_one_line(environment: Mapping[str, str], line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(SystemExit, match=line) as caught:
        common.run_stage("small", lambda: pytest.fail("ran"))
    assert len(str(caught.value)) < 2000


def test_a_scratch_folder_that_is_a_file_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scratch").write_text("")
    monkeypatch.setattr(common, "SCRATCH", tmp_path / "scratch")
    with pytest.raises(SystemExit, match=r"UNPOISON_SCRATCH: '.*scratch' given, which is a file; allowed: a folder"):
        common.run_stage("small", lambda: pytest.fail("ran"))


def test_a_cost_that_cannot_be_kept_fails_no_finished_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small.json").mkdir()
    monkeypatch.setattr(common, "COSTS", tmp_path)
    monkeypatch.setattr(common, "leave", lambda: None)
    common.run_stage("small", lambda: [Path("out")])
    first, last = capsys.readouterr().out.splitlines()
    assert "its cost is not recorded" in first
    assert last == "small: wrote out"
    assert [path.name for path in tmp_path.iterdir()] == ["small.json"]


def test_messages_are_one_printable_line() -> None:
    for text in (
        "a\nb",
        "\x1b[2J",
        "a\x00b",
        "\udcff" * 9000,
        "ä" * 9000,
        "\x07" * 3000,
        "x" * 10**6,
        "\u202ea",
        "😀" * 999,
    ):
        line = one_line(text)
        assert line.isprintable()
        assert len(line.encode()) < 2000
    assert one_line("params.yaml:\n   bad  value\r\n") == "params.yaml: bad  value"
    assert one_line("a\x1b") == "a\\x1b"
    assert one_line("b" * 5000 + "end").endswith("end")
    assert str(UserError("a\tb")) == "a\\tb"


def test_an_experiment_in_a_folder_of_its_own_uses_its_own_code(tmp_path: Path) -> None:
    # DVC copies the commit elsewhere for `--temp` and for queues; the environment still points to the working copy.
    folder = make_copy(tmp_path / "clone")
    stage = {"cmd": "python stages/small.py", "deps": ["stages", "src"]}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"small": stage}}))
    (folder / "params.yaml").write_text("seed: 0\n")
    run(folder, "git", "init", "-q")
    run(folder, "dvc", "init", "-q")
    for command in ("config user.email test@example.org", "config user.name test", "add -A", "commit -qm all"):
        run(folder, "git", *command.split())
    said = run(folder, "dvc", "exp", "run", "--temp")
    (line,) = [line for line in said.splitlines() if line.endswith("/src/unpoison/__init__.py clone")]
    assert not line.startswith(f"{folder}/src")
    assert ".dvc" in line
