"""Which project files a stage script really runs: the transitive closure of its imports, read from the source."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# These packages' __init__ is a table of methods. A stage that runs one method depends on that method's file and not on
# the table or its siblings, so that adding a detector does not rerun the others.
TABLES = {"unpoison.detection", "unpoison.purification"}


def files_of(script: str) -> set[str]:
    """Paths, relative to the repository, of `script` and all it imports from the project."""
    found: set[str] = set()
    _visit(ROOT / script, found)
    return found


def _visit(path: Path, found: set[str]) -> None:
    name = path.relative_to(ROOT).as_posix()
    if name in found:
        return
    found.add(name)
    for module in _imports(path):
        for file in _files(module):
            _visit(file, found)


def _imports(path: Path) -> set[str]:
    modules: set[str] = set()
    package = path.relative_to(ROOT / "src").parent.parts if "src" in path.parts else ()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module or ""]))
            modules |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return modules


def _files(module: str) -> list[Path]:
    """The files that importing a module runs: its own and its packages' `__init__`, tables left out."""
    stage = ROOT / "stages" / f"{module}.py"
    if stage.is_file():
        return [stage]
    parts = module.split(".")
    if parts[0] != "unpoison":
        return []
    files = []
    for end in range(1, len(parts) + 1):
        where = ROOT / "src" / Path(*parts[:end])
        if ".".join(parts[:end]) not in TABLES and (where / "__init__.py").is_file():
            files.append(where / "__init__.py")
    if (own := ROOT / "src" / Path(*parts[:-1], f"{parts[-1]}.py")).is_file():
        files.append(own)
    return files
