"""`dvc.yaml` against the code: dependencies are the real imports, and no defence sees the answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from import_graph import files_of
from prepare import SOURCES
from unpoison.detection import DETECTORS
from unpoison.purification import PURIFIERS

ROOT = Path(__file__).resolve().parent.parent
STAGES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
FAMILIES = {"detect": ("detection", DETECTORS), "purify": ("purification", PURIFIERS)}
DEFENCES = ("train_prior", "generate_variations", "distill_student", "purify", "detect")


@pytest.mark.parametrize("stage", [name for name in STAGES if name != "check_params"])
def test_dependencies_are_what_is_imported(stage: str) -> None:
    listed = {dep for dep in STAGES[stage]["deps"] if dep.startswith(("src/", "stages/"))}
    expected = files_of(f"stages/{stage}.py")
    if stage in FAMILIES:
        folder, methods = FAMILIES[stage]
        own = {f"src/unpoison/{folder}/{method}.py" for method in methods}
        for file in own:
            expected |= files_of(file)
        expected = (expected - own) | {f"src/unpoison/{folder}/${{item.method}}.py"}
    assert listed == expected


@pytest.mark.parametrize("stage", DEFENCES)
def test_defences_cannot_see_the_answer(stage: str) -> None:
    deps, params = STAGES[stage]["deps"], STAGES[stage].get("params", [])
    for dep in deps:
        assert not dep.startswith(("data/truth", "data/base/test", "reports", "src/unpoison/evaluation"))
        assert dep not in ("data", "data/base", "params.yaml")
        assert "attacks" not in dep
    assert not [key for key in params if key.startswith("attack")]


def test_prepare_depends_on_its_source() -> None:
    assert "${data.path}" in STAGES["prepare"]["deps"]


def test_every_stage_script_is_a_stage() -> None:
    scripts = {path.stem for path in (ROOT / "stages").glob("*.py")} - {"common"}
    assert scripts == set(STAGES)
    assert all(stage["desc"] for stage in STAGES.values())


def test_library_knows_no_configuration() -> None:
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text()
        for word in ("import yaml", "import dvc", 'params.yaml")', "torch.load", "torch.save", "import pickle"):
            if (path.name, word) == ("pickles.py", "import pickle"):
                continue  # the restricted reader of CIFAR's archives
            assert word not in text, f"{path}: {word}"


def test_families_do_not_import_each_other() -> None:
    families = {"attacks", "variations", "detection", "purification", "robust", "evaluation", "reporting"}
    below = {"training", "models", "data"}
    for family in families | below:
        for path in (ROOT / "src" / "unpoison" / family).glob("*.py"):
            reached = {
                Path(file).parts[2] for file in files_of(path.relative_to(ROOT).as_posix()) if "unpoison/" in file
            }
            assert not reached & (families - {family}), path
    for path in (ROOT / "src" / "unpoison" / "data").glob("*.py"):
        assert "models" not in path.read_text().split('"""')[2]


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("detection", set(DETECTORS)),
        ("purification", set(PURIFIERS)),
        ("data", set(SOURCES)),
    ],
)
def test_method_tables_in_the_docs_are_true(page: str, names: set[str]) -> None:
    rows = [line for line in (ROOT / "docs" / f"{page}.md").read_text().splitlines() if line.startswith("| `")]
    assert {row.split("`")[1] for row in rows} == names
