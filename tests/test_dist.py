"""The sdist and the wheel as they are built without a network: what is in them, and the wheel elsewhere, without DVC."""

from __future__ import annotations

import email
import importlib.util
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

import unpoison

ROOT = Path(__file__).resolve().parent.parent


def load_dist() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dist", ROOT / "bench" / "dist.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


dist = load_dist()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    files: tuple[Path, Path] = dist.build(tmp_path_factory.mktemp("dist") / "out", offline=True)
    return files


def test_the_wheel_holds_the_package_and_nothing_else(built: tuple[Path, Path]) -> None:
    wheel = built[1]
    assert wheel.name == f"unpoison-{unpoison.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    about = {name for name in names if name.startswith(f"unpoison-{unpoison.__version__}.dist-info/")}
    source = ROOT / "src"
    modules = {path.relative_to(source).as_posix() for path in (source / "unpoison").rglob("*.py")}
    assert names - about == modules | {"unpoison/py.typed"}
    assert {name.rpartition("/")[2] for name in about} >= {"METADATA", "LICENSE", "RECORD", "WHEEL"}


def test_the_wheel_says_what_it_is(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as file:
        (name,) = (name for name in file.namelist() if name.endswith("/METADATA"))
        about = email.message_from_bytes(file.read(name))
    assert about["Version"] == unpoison.__version__
    assert about["License-Expression"] == "MIT"
    assert about["Description-Content-Type"] == "text/markdown"
    required = {line.partition(";")[0].strip() for line in about.get_all("Requires-Dist", []) if "extra ==" not in line}
    assert any(line.startswith("torch") for line in required)
    # The pipeline's tool is none of the library's.
    assert not [line for line in required if line.startswith(("dvc", "pytest"))]


def test_the_sdist_builds_it_and_leaves_the_rest(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "src/unpoison/api.py"} <= names
    assert "src/unpoison/py.typed" in names
    assert not [
        name for name in names if name.split("/")[0] in {"tests", "data", "models", "reports", "stages", ".dvc"}
    ]


def test_the_wheel_works_elsewhere_without_dvc(built: tuple[Path, Path], tmp_path: Path) -> None:
    python = dist.fresh_environment(tmp_path / "fresh", built[1], offline=True)
    (place := tmp_path / "elsewhere").mkdir()
    page = place / "page.md"
    page.write_text(
        "```python\nimport numpy as np\n\nfrom unpoison import api\n\n"
        "images = np.zeros((20, 16, 16, 3), np.uint8)\n"
        "attack = api.poison(api.image_set(images, np.arange(20) % 2, ['a', 'b']), 'badnets')\n"
        "print(int(attack.truth.mask.sum()))\n```\n"
    )
    environment = {**os.environ, "UNPOISON_DEVICE": "cpu"}
    command = [str(python), "-I", str(ROOT / "bench" / "examples.py"), page.name]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first, said = done.stdout.splitlines()
    # 0.1 of the 10 candidates, those of the class that is not the target.
    assert first == "1"
    assert f"unpoison {unpoison.__version__} of {tmp_path / 'fresh'}" in said


@pytest.mark.parametrize(
    ("status", "said"),
    [(0, f"error: {ROOT}: no file that git tracks, allowed: "), (1, "error: git: ")],
)
def test_what_is_no_clone_is_refused_in_one_line(status: int, said: str, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    git, out = tmp_path / "bin" / "git", tmp_path / "out"
    git.write_text(f"#!/bin/sh\nexit {status}\n")
    git.chmod(0o755)
    environment = {**os.environ, "PATH": f"{git.parent}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, str(ROOT / "bench" / "dist.py"), str(out), "--offline"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == 1
    assert not out.exists()
