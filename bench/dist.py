"""Build the sdist and the wheel, and run the examples of docs/library.md from the wheel, as a stranger would: `make dist`.

What is built are the tracked files as they lie here, in a copy, so that nothing left over from an earlier build is in them. The
wheel is built from the sdist.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = Path("docs/library.md")


class BuildError(Exception):
    """Something that whoever builds can put right, in one line."""


def copy_tracked(target: Path) -> None:
    """The files of the working copy that git tracks or would, in a new folder. Raises BuildError where there are none."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(f"git: {error}; allowed: a clone of the project, and git on PATH") from None
    if not listed:
        raise BuildError(f"{ROOT}: no file that git tracks, allowed: a clone of the project")
    for path in filter(None, listed.split("\0")):
        # A file that was removed and not yet committed is listed as well.
        if (ROOT / path).is_file() and not (ROOT / path).is_symlink():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, target / path)


def build(out: Path, *, offline: bool) -> tuple[Path, Path]:
    """The sdist and the wheel, in an empty folder.

    Args:
        out: folder that is made.
        offline: whether to build with the setuptools of this environment; otherwise `build` fetches one of its own.

    Raises:
        BuildError: no `build`, or a build that failed, whose messages are above.
    """
    if not offline and importlib.util.find_spec("build") is None:
        raise BuildError(
            "build: not found, allowed: an environment with it, by `pip install -e '.[release]'`, or OFFLINE=1"
        )
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        copy_tracked(source := Path(folder) / "source")
        if offline:
            code = f"from setuptools.build_meta import build_sdist; build_sdist({str(out.resolve())!r})"
            _run([sys.executable, "-c", code], source)
            pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-index"]
            _run(
                [
                    *pip,
                    "--no-build-isolation",
                    "--no-deps",
                    "--wheel-dir",
                    str(out.resolve()),
                    str(_only(out, "*.tar.gz")),
                ]
            )
        else:
            _run([sys.executable, "-m", "build", "--outdir", str(out.resolve()), str(source)])
    return _only(out, "*.tar.gz").resolve(), _only(out, "*.whl").resolve()


def fresh_environment(folder: Path, wheel: Path, *, offline: bool) -> Path:
    """The Python of a new environment with the wheel and what it depends on.

    Args:
        folder: folder that is made.
        wheel: what is installed.
        offline: whether dependencies are those of this environment, found behind the new one's own; this environment's editable
            installation of the package is not, as a path alone does not run its hooks.
    """
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, *(["--no-deps", "--no-index"] if offline else []), str(wheel)])
    if offline:
        own = subprocess.run(
            [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        paths = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
        (Path(own) / "of_the_builder.pth").write_text("".join(f"{path}\n" for path in paths), encoding="utf-8")
    return python


def run_examples(python: Path, folder: Path) -> None:
    """The examples of the page with the environment's package, in a folder outside of the working copy."""
    for path in (PAGE, Path("bench/examples.py")):
        shutil.copyfile(ROOT / path, folder / path.name)
    # -I: neither PYTHONPATH nor the folder is looked into.
    _run([str(python), "-I", "examples.py", PAGE.name], folder)


def _run(command: list[str], folder: Path | None = None) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH" or "build" in command}
    done = subprocess.run(command, cwd=folder, env=environment)
    if done.returncode:
        raise BuildError(f"{' '.join(command)[:200]} ended with exit status {done.returncode}; its messages are above")


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise BuildError(f"{folder}: {len(found)} files like {pattern} found, allowed: one")
    return found[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder that is made or replaced")
    parser.add_argument("--offline", action="store_true", help="no registry is asked")
    given = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            files = build(Path(folder) / "dist", offline=given.offline)
            python = fresh_environment(Path(folder) / "fresh", files[1], offline=given.offline)
            (place := Path(folder) / "elsewhere").mkdir()
            run_examples(python, place)
            shutil.rmtree(given.out, ignore_errors=True)
            given.out.mkdir(parents=True)
            for file in files:
                print(f"wrote {shutil.copy(file, given.out)}")
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
