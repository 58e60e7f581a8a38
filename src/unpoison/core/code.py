"""The code that a result depends on: digests of a module and of all that it imports from this project.

What is kept between runs (`content_store`), or restored from disk and run (`poisoning.trigger`), is found or checked by
them, and a stage depends on those of its script. Comments, docstrings and layout do not count: they change nothing that runs.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = "unpoison"
ROOT = Path(__file__).resolve().parent.parent


def code_of(
    *modules: str, scripts: Path | None = None, tables: Mapping[str, Sequence[str]] | None = None
) -> dict[str, str]:
    """Digests by module name, sorted: of the modules named, and of all project modules that they import in turn.

    Args:
        modules: names of modules of the project, of imported ones from elsewhere, or of scripts.
        scripts: folder of the scripts; a script also imports those beside it.
        tables: modules that do not count, and in whose place others do: a table of methods imports all of them, and what
            runs is one.
    """
    paths: dict[str, Path] = {}
    for name in modules:
        file = source_of(name, scripts) or Path(str(sys.modules[name].__file__))
        _collect(name, file, paths, tables or {})
    return {name: digest_of(path) for name, path in sorted(paths.items())}


def source_of(module: str, scripts: Path | None = None) -> Path | None:
    """The file of a module of this project, or of a script in the folder `scripts`; None for another's, or for no module."""
    first, _, rest = module.partition(".")
    if first != PACKAGE:
        # A script has no dot in its name: `from common import CHECKED` asks for `common.CHECKED` first.
        script = None if rest or scripts is None else scripts / f"{first}.py"
        return script if script is not None and script.is_file() else None
    place = ROOT.joinpath(*filter(None, rest.split(".")))
    for file in (place.with_suffix(".py"), place / "__init__.py"):
        if rest and file.is_file():
            return file
    return ROOT / "__init__.py" if not rest else None


@cache
def digest_of(path: Path) -> str:
    """SHA-256 of a source file's syntax tree without docstrings."""
    # Comments and layout are not part of the tree.
    parts: list[str] = []
    _write(ast.parse(path.read_text(encoding="utf-8")), parts)
    return hashlib.sha256("".join(parts).encode()).hexdigest()


@cache
def imports_of(path: Path, package: str) -> Mapping[str, Path]:
    """Files by name of the project's modules, and of scripts beside a script, that a file imports, wherever in it.

    A package's `__init__` counts where something of its own is imported, but not for standing above a module: otherwise
    the tables of methods would make every method depend on all others.

    Args:
        path: a source file.
        package: dotted name of the package it lies in, "" for a script.
    """
    modules: dict[str, Path] = {}
    scripts = None if package else path.parent
    for node in _statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # One dot is the package itself, every further one the package above.
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            # `from package import name` means a module of the package, or else something that its `__init__` defines.
            names = [f"{base}.{alias.name}" for alias in node.names]
            wanted = [name if source_of(name, scripts) is not None else base for name in names]
        else:
            continue
        modules |= {name: file for name in wanted if (file := source_of(name, scripts)) is not None}
    return modules


def _collect(name: str, path: Path, paths: dict[str, Path], tables: Mapping[str, Sequence[str]]) -> None:
    """Add a module and all that it imports to `paths`; of a table only what stands in its place."""
    if name in tables:
        imports = {module: file for module in tables[name] if (file := source_of(module)) is not None}
    elif name in paths:
        return
    else:
        # Noted before its imports are followed: modules that import each other would never end.
        paths[name] = path
        imports = dict(imports_of(path, name if path.name == "__init__.py" else name.rpartition(".")[0]))
    for imported, file in imports.items():
        _collect(imported, file, paths, tables)


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """The statements within a module or a statement, at any depth; expressions, which are most of a tree, are not looked at."""
    for name in ("body", "orelse", "finalbody", "handlers", "cases"):
        for statement in getattr(node, name, ()):
            yield statement
            yield from _statements(statement)


def _write(node: Any, parts: list[str]) -> None:
    """Append a syntax tree as text, the same in every version of Python, unlike `ast.dump`, and without docstrings."""
    if isinstance(node, list):
        parts.append("[")
        for item in node:
            # A statement that is a text and nothing else describes what it stands in, or the name above it.
            if not (isinstance(item, ast.Expr) and _is_text(item.value)):
                _write(item, parts)
        parts.append("]")
    elif isinstance(node, ast.AST):
        parts += [type(node).__name__, "("]
        for name in node._fields:
            value = getattr(node, name, None)
            # Newer versions have further fields, which are empty for code that older ones can read.
            if value is not None and value != []:
                parts += [name, "="]
                _write(value, parts)
        parts.append(")")
    else:
        parts += [ascii(node), ","]


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
