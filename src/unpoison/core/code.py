"""The code that a result depends on: digests of a module and of all that it imports from this project.

What is kept between runs (`content_store`), or restored from disk and run (`poisoning.trigger`), is found or checked by
them. Comments, docstrings and layout do not count: they change nothing that runs.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

PACKAGE = "unpoison"
ROOT = Path(__file__).resolve().parent.parent


def code_of(*modules: str) -> dict[str, str]:
    """Digests by module name: of the modules named, which must be imported, and of all project modules they import in turn."""
    paths: dict[str, Path] = {}
    for name in modules:
        file = sys.modules[name].__file__
        assert file is not None, f"{name} has no source"
        _collect(name, Path(file), paths)
    return {name: digest_of(path) for name, path in sorted(paths.items())}


@cache
def digest_of(path: Path) -> str:
    """SHA-256 of a source file's syntax tree without docstrings."""
    # Comments and layout are not part of the tree; a docstring is its body's first statement.
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and _documented(node):
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


@cache
def imports_of(path: Path, package: str) -> Mapping[str, Path]:
    """Files by name of the project's modules that a file imports, wherever in it the import stands.

    A package's `__init__` counts where something of its own is imported, but not for standing above a module: otherwise
    the tables of methods would make every method depend on all others.

    Args:
        path: a source file.
        package: dotted name of the package it lies in, "" for a script.
    """
    modules: dict[str, Path] = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # One dot is the package itself, every further one the package above.
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            # `from package import name` means a module of the package, or else something that its `__init__` defines.
            names = [f"{base}.{alias.name}" for alias in node.names]
            wanted = [name if _file_of(name) is not None else base for name in names]
        else:
            continue
        modules |= {name: file for name in wanted if (file := _file_of(name)) is not None}
    return modules


def _collect(name: str, path: Path, paths: dict[str, Path]) -> None:
    """Add a module and all that it imports to `paths`."""
    if name in paths:
        return
    # Noted before its imports are followed: modules that import each other would never end.
    paths[name] = path
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for imported, file in imports_of(path, package).items():
        _collect(imported, file, paths)


def _file_of(module: str) -> Path | None:
    """The file of a module of this project; None for another's, or for no module."""
    first, _, rest = module.partition(".")
    if first != PACKAGE:
        return None
    place = ROOT.joinpath(*filter(None, rest.split(".")))
    for file in (place.with_suffix(".py"), place / "__init__.py"):
        if rest and file.is_file():
            return file
    return ROOT / "__init__.py" if not rest else None


def _documented(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a body begins with a docstring."""
    first = node.body[0] if node.body else None
    return isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
