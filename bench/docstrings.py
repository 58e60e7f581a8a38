"""A labelled corpus out of what is installed: docstrings of NumPy, SciPy, scikit-learn and torch, and whose they are.

    python bench/docstrings.py docstrings.csv

Every function's and class's docstring up to its first section (a line of dashes, or `Args:`), read from the source files without
running any: English prose of several hands, without a download. Words that name the package itself are left out, or the task would
be to find them. Which texts there are depends on the packages' versions, which requirements.txt pins.
"""

from __future__ import annotations

import argparse
import ast
import csv
import re
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from unpoison.core.files import new_file
from unpoison.reporting.escaping import say

PACKAGES = ("numpy", "scipy", "sklearn", "torch")
LEAST_WORDS, MOST_TEXTS = 6, 1500
"""Words of a text at least, and texts of a package at most: the first ones by their paths."""
_NAMES = re.compile(
    r"\b(np|numpy|scipy|sp|sklearn|scikit|torch|pytorch|aten|cuda|estimator|estimators|tensor|tensors)\b", re.I
)
_SECTION = re.compile(
    r"\n\s*(?:\w[\w ]*\n\s*-{3,}|(?:Args|Arguments|Returns|Example|Examples|Note|Shape)s?\s*:|\.\. |>>>)"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("csv", type=Path, help="file that is written")
    path: Path = parser.parse_args().csv
    rows = [(text, package) for package in PACKAGES for text in texts_of(package)]
    with new_file(path) as staging, staging.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("text", "label"))
        writer.writerows(rows)
    say(f"{path}: {len(rows)} texts of {len(PACKAGES)} classes")


def texts_of(package: str) -> list[str]:
    """The texts of a package, each once."""
    found: dict[str, None] = {}
    for text in _docstrings(package):
        prose = " ".join(_NAMES.sub(" ", _SECTION.split(f"\n{text}", maxsplit=1)[0]).split())
        if len(prose.split()) >= LEAST_WORDS:
            found[prose] = None
            if len(found) == MOST_TEXTS:
                break
    return list(found)


def _docstrings(package: str) -> Iterator[str]:
    spec = find_spec(package)
    assert spec is not None  # all of them are required
    assert spec.origin is not None
    for path in sorted(Path(spec.origin).parent.rglob("*.py")):
        if {"tests", "testing", "_vendor", "externals"} & set(path.parts) or path.name.startswith("test_"):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # escapes in other people's docstrings
            tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield ast.get_docstring(node) or ""


if __name__ == "__main__":
    main()
