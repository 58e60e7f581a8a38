"""`dvc.yaml` against the code: dependencies are the real imports, no defence sees the answer, imports point one way."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from prepare import SOURCES
from unpoison.attacks import ATTACKS, SINGLE
from unpoison.core.code import imports_of
from unpoison.detection import DETECTORS
from unpoison.purification import PURIFIERS
from unpoison.robust import ROBUST

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "src" / "unpoison"
STAGES: dict[str, dict[str, Any]] = {
    name: stage.get("do", stage) for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items()
}
# A family's `__init__` is a table of its methods. A stage that runs one method depends on that method's file by template,
# and not on the table, so that a new method reruns no other.
TABLES = {LIBRARY / family / "__init__.py" for family in ("attacks", "detection", "purification", "robust")}
# Stage to the folder of its methods, the template that names one, and the methods that it can run.
FAMILIES = {
    "poison": ("attacks", "${attack.name}", ATTACKS),
    "detect": ("detection", "${item}", DETECTORS),
    "purify": ("purification", "${item}", PURIFIERS),
    "train_robust": ("robust", "${item}", ROBUST),
}
DEFENCES = ("extract", "train_prior", "generate_variations", "distill_student", "train_robust", "purify", "detect")
# What each folder of the library may import; the order is that of docs/pipeline.md, the lowest first.
MAY_IMPORT = {
    "core": set[str](),
    "data": {"core"},
    "sources": {"data", "core"},
    "models": {"data", "core"},
    "compute": {"models", "data", "core"},
    "training": {"compute", "models", "data", "core"},
    "poisoning": {"data", "core"},
    "crafting": {"poisoning", "training", "compute", "models", "data", "core"},
    "attacks": {"crafting", "poisoning", "training", "compute", "models", "data", "core"},
    "variations": {"compute", "data", "core"},
    "detection": {"compute", "models", "data", "core"},
    "purification": {"training", "compute", "models", "data", "core"},
    "robust": {"training", "compute", "models", "data", "core"},
    "evaluation": {"poisoning", "compute", "models", "data", "core"},
    "reporting": {"poisoning", "data", "core"},
    "suites": {"attacks", "crafting", "poisoning", "training", "models", "reporting", "data", "core"},
}


@cache
def imported(path: Path) -> frozenset[Path]:
    """The project's files that a file imports by name."""
    package = ".".join(path.relative_to(ROOT / "src").parent.parts) if LIBRARY in path.parents else ""
    files = set(imports_of(path, package).values())
    if not package:
        names = {
            alias.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        names |= {
            str(node.module) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)
        }
        files |= {script for name in names if (script := ROOT / "stages" / f"{name}.py").is_file()}
    return frozenset(files)


def closure(path: Path) -> set[Path]:
    """A file and all it imports, tables of methods left out."""
    reached: set[Path] = set()
    waiting = [path]
    while waiting:
        file = waiting.pop()
        if file not in reached and file not in TABLES:
            reached.add(file)
            waiting += imported(file)
    return reached


def listed(stage: str) -> list[str]:
    return [dep for dep in STAGES[stage]["deps"] if dep.startswith(("src/", "stages/"))]


def needed(stage: str) -> set[str]:
    """The files that a stage runs, relative to the repository; a method's own by its template."""
    files = closure(ROOT / "stages" / f"{stage}.py")
    own: set[Path] = set()
    if stage in FAMILIES:
        folder, _, methods = FAMILIES[stage]
        own = {LIBRARY / folder / f"{name}.py" for name in methods}
        files = files.union(*map(closure, own))
    names = {file.relative_to(ROOT).as_posix() for file in files - own}
    return names | ({f"src/unpoison/{folder}/{FAMILIES[stage][1]}.py"} if own else set())


def lies_under(file: str, dep: str) -> bool:
    return file == dep or file.startswith(f"{dep}/")


@pytest.mark.parametrize("stage", [name for name in STAGES if name != "check_params"])
def test_dependencies_are_what_is_imported(stage: str) -> None:
    files = needed(stage)
    missing = sorted(file for file in files if not any(lies_under(file, dep) for dep in listed(stage)))
    assert missing == [], "imported and not listed"
    unused = [dep for dep in listed(stage) if not any(lies_under(file, dep) for file in files)]
    assert unused == [], "listed and not imported"


def test_an_import_that_is_not_listed_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    # The two assertions above, with one folder taken out and one put in.
    monkeypatch.setitem(
        STAGES, "extract", {"deps": [d for d in STAGES["extract"]["deps"] if d != "src/unpoison/models"]}
    )
    with pytest.raises(AssertionError, match="imported and not listed"):
        test_dependencies_are_what_is_imported("extract")
    monkeypatch.setitem(STAGES, "purify", {"deps": [*STAGES["purify"]["deps"], "src/unpoison/variations"]})
    with pytest.raises(AssertionError, match="listed and not imported"):
        test_dependencies_are_what_is_imported("purify")


def test_everything_is_checked_first() -> None:
    for name, stage in STAGES.items():
        assert ("data/checked/params.json" in stage["deps"]) == (name != "check_params"), name
    assert {"params.yaml", "params", "stages", "src/unpoison"} == set(STAGES["check_params"]["deps"])


@pytest.mark.parametrize("stage", DEFENCES)
def test_defences_cannot_see_the_answer(stage: str) -> None:
    answers = ["data/truth", "data/attacker", "data/triggered", "data/base/test", "reports", "data/checked/attack.json"]
    answers += [f"src/unpoison/{folder}" for folder in ("attacks", "crafting", "poisoning", "evaluation", "reporting")]
    for dep in STAGES[stage]["deps"]:
        for answer in answers:
            assert not lies_under(dep, answer), dep
            assert not lies_under(answer, dep), f"{dep} holds {answer}"
    for entry in STAGES[stage].get("params", []):
        for key in [entry] if isinstance(entry, str) else entry:
            assert not key.startswith(("attack", "params/attacks")), key


def test_no_training_sees_the_test() -> None:
    for stage in ("poison", "train_backdoored", "train_prior", "distill_student", "train_robust", "purify"):
        assert not [dep for dep in STAGES[stage]["deps"] if lies_under("data/base/test", dep)], stage


def test_prepare_depends_on_its_source() -> None:
    assert "${data.path}/" in STAGES["prepare"]["deps"]


def test_every_stage_script_is_a_stage() -> None:
    shared = {"common", "parameters", "training", "robust_training", "method_params", "sizes"}
    assert {path.stem for path in (ROOT / "stages").glob("*.py")} - shared == set(STAGES)
    assert all(stage["desc"] for stage in STAGES.values())


def test_no_stage_knows_a_method_by_name() -> None:
    # Distillation has a stage of its own, and `none` is the absence of a method.
    methods = {*SINGLE, "multi", *DETECTORS, *PURIFIERS, *ROBUST} - {"distillation"}
    for path in (ROOT / "stages").glob("*.py"):
        texts = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert not methods & texts, path


def test_library_knows_no_configuration() -> None:
    for path in LIBRARY.rglob("*.py"):
        text = path.read_text()
        forbidden = ["import dvc", "torch.load", "torch.save"]
        if path.name != "pickles.py":  # the restricted reader of CIFAR's archives
            forbidden.append("import pickle")
        if path.parent.name != "suites":  # the runner of suites reads their files
            forbidden += ["import yaml", '"params.yaml']
        if path.parent.name != "suites" and path.name != "yaml_file.py":
            forbidden.append("ruamel")
        for word in forbidden:
            assert word not in text, f"{path}: {word}"


def folder_of(path: Path) -> str:
    parts = path.relative_to(LIBRARY).parts
    return parts[0] if len(parts) > 1 else ""


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_point_one_way(folder: str) -> None:
    for path in (LIBRARY / folder).rglob("*.py"):
        reached = {folder_of(file) for file in imported(path)} - {folder, ""}
        assert reached <= MAY_IMPORT[folder], f"{path}: {sorted(reached - MAY_IMPORT[folder])}"


def test_every_folder_has_its_place() -> None:
    assert {path.parent.name for path in LIBRARY.glob("*/__init__.py")} == set(MAY_IMPORT)
    for place, (folder, below) in enumerate(MAY_IMPORT.items()):
        assert below <= set(list(MAY_IMPORT)[:place]), f"{folder} would climb"


def test_no_circle_of_imports() -> None:
    done: set[Path] = set()

    def visit(path: Path, above: tuple[Path, ...]) -> None:
        assert path not in above, " -> ".join(file.stem for file in (*above, path))
        if path not in done:
            for file in imported(path):
                visit(file, (*above, path))
            done.add(path)

    for path in LIBRARY.rglob("*.py"):
        visit(path, ())


def table_of(page: str) -> list[list[str]]:
    """The cells of the rows of a page's tables that begin with a name in backquotes."""
    lines = (ROOT / "docs" / f"{page}.md").read_text().splitlines()
    return [line.strip("| ").split(" | ") for line in lines if line.startswith("| `")]


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("detection", set(DETECTORS)),
        ("purification", set(PURIFIERS)),
        ("robust", set(ROBUST)),
        ("data", set(SOURCES)),
    ],
)
def test_method_tables_in_the_docs_are_true(page: str, names: set[str]) -> None:
    assert {row[0].strip("`") for row in table_of(page)} == names


def test_the_table_of_folders_in_the_docs_is_true() -> None:
    lines = (ROOT / "docs" / "pipeline.md").read_text().splitlines()
    rows = {line.split("`")[1]: line.split(" | ")[2] for line in lines if re.match(r"\| `[a-z]+/` \|", line)}
    real = {}
    for folder in MAY_IMPORT:
        reached = {folder_of(file) for path in (LIBRARY / folder).rglob("*.py") for file in imported(path)}
        real[f"{folder}/"] = ", ".join(name for name in reversed(MAY_IMPORT) if name in reached - {folder, ""}) or "–"
    assert {name: cell.strip(" |") for name, cell in rows.items()} == real
