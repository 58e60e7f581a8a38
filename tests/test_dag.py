"""`dvc.yaml` against the code: a stage depends on what it runs, no defence sees the answer, imports point one way."""

from __future__ import annotations

import ast
import json
import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any

from common import code_file

import pytest
import yaml

import stage_code
from parameters import Params, load_params
from prepare import SOURCES
from stage_code import code_of_stages, write_stage_code
from unpoison import models
from unpoison.attacks import ATTACKS, SINGLE
from unpoison.core import code
from unpoison.core.code import digest_of, imports_of, source_of
from unpoison.detection import DETECTORS, INPUT_DETECTORS
from unpoison.inspection import INSPECTORS
from unpoison.purification import PURIFIERS
from unpoison.robust import ROBUST
from unpoison.variations import VARIATIONS
from unpoison.visualisation import FIGURES

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "src" / "unpoison"
STAGES: dict[str, dict[str, Any]] = {
    name: stage.get("do", stage) for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items()
}
# Tables, which import all that is in them. A stage depends on what it takes from one, so that a new entry reruns nothing.
TABLES = {
    LIBRARY / family / "__init__.py"
    for family in ("attacks", "detection", "inspection", "purification", "robust", "variations", "visualisation")
}
TABLES |= {LIBRARY / "models" / "networks.py", LIBRARY / "training" / "recipes.py"}
# Stage to the folder of its methods, the template that names one, and the methods that it can run.
FAMILIES = {
    "poison": ("attacks", "${attack.name}", ATTACKS),
    "generate_variations": ("variations", "${variations.method}", VARIATIONS),
    "detect": ("detection", "${item}", DETECTORS),
    "detect_inputs": ("detection", "${item}", INPUT_DETECTORS),
    "inspect_model": ("inspection", "${item}", INSPECTORS),
    "visualise": ("visualisation", "${item}", FIGURES),
    "purify": ("purification", "${item}", {name: method for name, method in PURIFIERS.items() if not method.by}),
    "purify_by": ("purification", "${key}", {name: method for name, method in PURIFIERS.items() if method.by}),
    "train_robust": ("robust", "${item}", {name: method for name, method in ROBUST.items() if not method.by}),
    "train_robust_by": ("robust", "${key}", {name: method for name, method in ROBUST.items() if method.by}),
}
DEFENCES = ("extract", "train_prior", "generate_variations", "distill_student", "train_robust", "purify", "detect")
DEFENCES += ("train_robust_by", "purify_by", "inspect_model", "bias")
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
    "examination": {"data", "core"},
    "detection": {"training", "compute", "models", "data", "core"},
    "inspection": {"compute", "models", "data", "core"},
    "purification": {"training", "compute", "models", "data", "core"},
    "robust": {"purification", "detection", "training", "compute", "models", "data", "core"},
    "stress": {"training", "compute", "models", "data", "core"},
    "bias": {"detection", "training", "compute", "models", "data", "core"},
    "federation": {"training", "compute", "models", "data", "core"},
    "evaluation": {"poisoning", "compute", "models", "data", "core"},
    "reporting": {"poisoning", "data", "core"},
    "visualisation": {"reporting", "poisoning", "purification", "compute", "models", "data", "core"},
    "scan": {
        "detection",
        "attacks",
        "crafting",
        "sources",
        "training",
        "compute",
        "models",
        "reporting",
        "poisoning",
        "data",
        "core",
    },
    "audit": {"detection", "sources", "reporting", "compute", "models", "data", "core"},
    "suites": {"attacks", "crafting", "poisoning", "training", "models", "reporting", "data", "core"},
    "board": {"suites", "robust", "purification", "inspection", "detection", "reporting", "core"},
}


@cache
def imported(path: Path) -> frozenset[Path]:
    """The project's files that a file imports by name."""
    package = ".".join(path.relative_to(ROOT / "src").parent.parts) if LIBRARY in path.parents else ""
    return frozenset(imports_of(path, package).values())


def closure(paths: set[Path]) -> set[Path]:
    """Files and all that they import, tables left out; of the networks, that of the parameters."""
    reached: set[Path] = set()
    waiting = list(paths)
    while waiting:
        file = waiting.pop()
        if file == LIBRARY / "models" / "networks.py":
            waiting.append(LIBRARY / "models" / "resnet.py")
        elif file not in reached and file not in TABLES:
            reached.add(file)
            waiting += imported(file)
    return reached


def lies_under(file: str, dep: str) -> bool:
    return file == dep or file.startswith(f"{dep}/")


@cache
def params() -> Params:
    return load_params(ROOT)


@cache
def stage_codes() -> dict[str, dict[str, Any]]:
    return code_of_stages(params())


def names_of(stage: str) -> list[str]:
    """A stage by the names of its code: one, or one for each method."""
    return [f"{stage}@{method}" for method in FAMILIES[stage][2]] if stage in FAMILIES else [stage]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_its_code(stage: str) -> None:
    listed = [dep for dep in STAGES[stage]["deps"] if dep.startswith(("src", "stages", "data/checked/code"))]
    if stage == "check_params":
        assert listed == ["stages", "src/unpoison"]
        assert {"params.yaml", "params", "stages", "src/unpoison"} == set(STAGES[stage]["deps"])
        assert "data/checked/code" in STAGES[stage]["outs"]
    else:
        # What depends on it comes after `check_params`, which refuses bad parameters before an output is touched.
        name = f"{stage}@{FAMILIES[stage][1]}" if stage in FAMILIES else stage
        assert listed == [code_file(name).as_posix()]


def test_every_stage_has_code(tmp_path: Path) -> None:
    expected = [name for stage in STAGES if stage != "check_params" for name in names_of(stage)]
    assert set(stage_codes()) == set(expected)
    write_stage_code(tmp_path, params())
    written = {path: json.loads(path.read_text()) for path in tmp_path.rglob("*.json")}
    assert set(written) == {code_file(name, tmp_path) for name in (*expected, "recipes")}
    # Tuples are lists in JSON.
    assert written[code_file("train_backdoored", tmp_path)] == json.loads(json.dumps(stage_codes()["train_backdoored"]))


@pytest.mark.parametrize("stage", [name for name in STAGES if name != "check_params"])
def test_code_is_what_is_imported(stage: str) -> None:
    assert params()["model"]["name"] == params()["attack"]["surrogate"]["model"]["name"] == "resnet18"
    for name in names_of(stage):
        own = {LIBRARY / FAMILIES[stage][0] / f"{name.partition('@')[2]}.py"} if stage in FAMILIES else set[Path]()
        if stage == "detect_canary":  # all detectors in use
            own = {LIBRARY / "detection" / f"{method}.py" for method in params()["detect"]["methods"]}
        files = {module: source_of(module, ROOT / "stages") for module in stage_codes()[name]["modules"]}
        assert set(files.values()) == closure({ROOT / "stages" / f"{stage}.py", *own}), name
        for module, digest in stage_codes()[name]["modules"].items():
            file = files[module]
            assert file is not None
            assert digest == digest_of(file)


def test_a_plan_runs_its_attacks() -> None:
    # The parameters name two attacks that the plan is made of.
    with_plan = {**params(), "attack": {**params()["attack"], "name": "multi"}}
    modules = code_of_stages(with_plan)["poison@multi"]["modules"]
    assert {name for name in modules if ".attacks." in name} == {
        f"unpoison.attacks.{name}" for name in ("multi", "badnets", "blended")
    }


def test_a_stage_has_the_recipe_that_it_trains_by() -> None:
    for name, about in stage_codes().items():
        script = ROOT / "stages" / f"{name.partition('@')[0]}.py"
        reached = set().union(*map(imported, closure({script})))
        assert (about["recipe"] is not None) == (LIBRARY / "training" / "recipes.py" in reached), name
    sections = {"train": "fast", "distill": {**params()["distill"], "train": {"recipe": "fst"}}}
    changed = code_of_stages({**params(), **sections, "train": {"recipe": "fast"}})
    assert {name for name in changed if changed[name] != stage_codes()[name]} == {
        "train_backdoored",
        "distill_student",
        "train_canary",
        "train_clean",
        "bias",
        *names_of("train_robust"),
        *names_of("train_robust_by"),
    }
    assert changed["distill_student"]["recipe"]["epochs"] == 100


def networks_of(**changes: Any) -> dict[str, str]:
    """The modules of networks that each stage runs with changed parameters."""
    known = ("compact", "densenet", "preactresnet", "resnet", "vgg")
    codes = code_of_stages({**params(), **changes})
    return {
        stage: " ".join(name for name in known if f"unpoison.models.{name}" in about["modules"])
        for stage, about in codes.items()
    }


def test_a_stage_has_the_networks_that_it_runs(tmp_path: Path) -> None:
    attack = {**params()["attack"], "surrogate": {"model": {"name": "densenet121"}}}
    found = networks_of(model={"name": "vgg19_bn"}, attack=attack)
    assert found["poison@lc"] == "densenet"
    every = ("train_backdoored", "extract", "distill_student", "train_robust@abl", "purify@ft", "detect@cd", "evaluate")
    for stage in every:
        assert found[stage] == "vgg", stage
    found = networks_of(robust={**params()["robust"], "model": {"name": "preactresnet18"}})
    others = {
        "train_robust@abl": "preactresnet",
        "train_robust_by@dst": "preactresnet",
        "evaluate": "preactresnet resnet",
    }
    for stage in every:
        assert found[stage] == others.get(stage, "resnet"), stage
    # The student's, and its teacher's, which may be a model from elsewhere.
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        model = models.build("densenet121", num_classes=10, image_size=32, growth=8)
        models.save(model, Path("teacher"), classes=tuple("0123456789"), made_by={})
        for changes, student, graded in (
            ({"model": {"name": "vgg19_bn"}}, "resnet vgg", "resnet vgg"),
            ({"teacher": "teacher"}, "densenet", "densenet resnet"),
            ({"teacher": "teacher", "model": {"name": "vgg19_bn"}}, "densenet vgg", "resnet vgg"),
        ):
            found = networks_of(distill={**params()["distill"], **changes})
            others = {"distill_student": student, "evaluate": graded}
            for stage in every:
                assert found[stage] == others.get(stage, "resnet"), stage


TRAINED = {
    "train_backdoored",
    "train_canary",
    "train_clean",
    "bias",
    "distill_student",
    "train_robust",
    "train_robust_by",
    "purify",
    "purify_by",
}
TRAINED |= {"stress"}
# Purifiers whose steps are of another kind than the loop's.
OTHERWISE = {f"purify@{name}" for name in ("anp", "rnp", "i_bau", "sau", "bti_dbf", "clp", "bnp")}
# Attacks that train a network of their own by the loop.
WITH_NETWORKS = {
    f"poison@{name}" for name in ("trojan", "lc", "lf", "feature_collision", "narcissus", "flip", "input_aware")
}
# And detectors that do.
WITH_NETWORKS |= {f"detect@{name}" for name in ("abl", "fct", "frequency")}


def those(expected: set[str]) -> set[str]:
    """The names of stages' code; a stage alone stands for all its methods."""
    return {name for name in stage_codes() if {name, name.partition("@")[0]} & expected}


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("unpoison.training.loop", TRAINED | WITH_NETWORKS),
        ("unpoison.training.recipes", set()),
        ("unpoison.detection.cd", {"detect@cd", "detect_inputs@cd", "detect_canary", "bias"}),
        ("unpoison.detection", set()),
        ("unpoison.inspection.mm_bd", {"inspect_model@mm_bd"}),
        ("unpoison.inspection", set()),
        ("unpoison.attacks.lf", {"poison@lf"}),
        ("unpoison.attacks", set()),
        ("unpoison.models.vgg", set()),
        (
            "unpoison.models.resnet",
            TRAINED
            | {
                "poison",
                "extract",
                "detect",
                "detect_inputs",
                "detect_canary",
                "inspect_model",
                "evaluate",
                "visualise",
            },
        ),
        ("unpoison.models.networks", set()),
        ("unpoison.sources.build", {"prepare"}),
        ("unpoison.reporting.sections", {"report"}),
        ("unpoison.visualisation.neurons", {"visualise@neurons"}),
        ("unpoison.visualisation", set()),
        ("unpoison.stress.retuning", {"stress"}),
        ("unpoison.federation.rounds", {"train_backdoored", "train_clean"}),
        ("unpoison.federation.krum", {"train_backdoored", "train_clean"}),
        ("training", TRAINED - {"purify", "purify_by", "stress"}),
        ("robust_networks", {"distill_student", "train_robust", "train_robust_by"}),
        ("common", set(STAGES)),
        ("stage_code", set()),
    ],
)
def test_an_edit_reruns_what_runs_it(module: str, expected: set[str]) -> None:
    left_out = OTHERWISE if module == "unpoison.training.loop" else set()
    assert {name for name, about in stage_codes().items() if module in about["modules"]} == those(expected) - left_out


def test_comments_and_new_entries_rerun_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library, stages = tmp_path / "unpoison", tmp_path / "stages"
    skipped = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(LIBRARY, library, ignore=skipped)
    shutil.copytree(ROOT / "stages", stages, ignore=skipped)
    for path in [*library.rglob("*.py"), *stages.glob("*.py")]:
        path.write_text(f"# A comment.\n\n{path.read_text()}\n\n# Another one.\n")
    for path in (library / "models/networks.py", library / "detection/__init__.py", library / "training/recipes.py"):
        path.write_text(f"{path.read_text()}\nfrom . import new\n")
        (path.parent / "new.py").write_text("NEW = True\n")
    # And an edit of code, which is seen.
    with (library / "training/loop.py").open("a") as file:
        file.write("\n\ndef new():\n    return 1\n")
    monkeypatch.setattr(code, "ROOT", library)
    monkeypatch.setattr(stage_code, "STAGES", stages)
    changed = {name for name, about in code_of_stages(params()).items() if about != stage_codes()[name]}
    assert changed == those(TRAINED | WITH_NETWORKS) - OTHERWISE


def test_every_training_is_kept_by_the_cache() -> None:
    # DVC keeps no run of a stage that has an output outside its cache, but for plots and metrics.
    for name in set(STAGES) - {"evaluate", "report"}:
        assert [out for out in STAGES[name]["outs"] if not isinstance(out, str)] == [], name


@pytest.mark.parametrize("stage", DEFENCES)
def test_defences_cannot_see_the_answer(stage: str) -> None:
    answers = ["data/truth", "data/attacker", "data/triggered", "data/base/test", "reports", "data/checked/attack.json"]
    answers += ["data/checked/without/control.json"]
    # And what is made of the truth, of the test split, or of the training set as it was before the attack.
    answers += ["data/stress", "data/problems", "models/clean"]
    code = ("poison", "stamp_test.json", "stress.json", "visualise", "evaluate.json", "report.json")
    answers += [f"data/checked/code/{name}" for name in code]
    for dep in STAGES[stage]["deps"]:
        for answer in answers:
            assert not lies_under(dep, answer), dep
            assert not lies_under(answer, dep), f"{dep} holds {answer}"
    for entry in STAGES[stage].get("params", []):
        for key in [entry] if isinstance(entry, str) else entry:
            assert not key.startswith(("attack", "params/attacks")), key
    folders = ("attacks", "crafting", "poisoning", "stress", "evaluation", "reporting", "visualisation")
    for name in names_of(stage):
        for module in stage_codes()[name]["modules"]:
            assert not module.startswith(tuple(f"unpoison.{folder}" for folder in folders)), module


def test_stress_tests_are_no_defence() -> None:
    assert "data/truth" in STAGES["stress"]["deps"]
    assert "stress" not in DEFENCES
    assert "data/truth" in STAGES["visualise"]["deps"]
    assert "visualise" not in DEFENCES
    # The clean model sees nothing of the attack.
    assert not [dep for dep in STAGES["train_clean"]["deps"] if dep.startswith(("data/truth", "data/poisoned"))]


def test_no_training_sees_the_test() -> None:
    for stage in (
        "poison",
        "train_backdoored",
        "train_clean",
        "bias",
        "train_prior",
        "distill_student",
        "train_robust",
        "train_robust_by",
        "purify",
        "purify_by",
    ):
        assert not [dep for dep in STAGES[stage]["deps"] if lies_under("data/base/test", dep)], stage


def test_prepare_depends_on_its_source() -> None:
    assert {"${data.path}/", "${data.reserve_path}/"} <= set(STAGES["prepare"]["deps"])


def test_every_stage_script_is_a_stage() -> None:
    shared = {
        "canary",
        "common",
        "federated",
        "kept_rounds",
        "parameters",
        "training",
        "by_artefact",
        "robust_methods",
        "robust_networks",
        "robust_training",
        "purifying",
        "method_params",
        "not_applicable",
        "received",
        "sizes",
        "stage_code",
        "stress_settings",
        "teacher",
        "texts",
        "without",
    }
    assert {path.stem for path in (ROOT / "stages").glob("*.py")} - shared == set(STAGES)
    assert all(stage["desc"] for stage in STAGES.values())


def test_no_stage_knows_a_method_by_name() -> None:
    # Distillation has a stage of its own, and `none` is the absence of a method.
    methods = {*SINGLE, "multi", *DETECTORS, *INSPECTORS, *PURIFIERS, *ROBUST} - {"distillation"}
    for path in (ROOT / "stages").glob("*.py"):
        texts = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert not methods & texts, path


def test_every_import_is_written_out() -> None:
    # Any other would not be in the code that a stage depends on.
    for path in LIBRARY.rglob("*.py"):
        for word in ("import_module", "__import__", "runpy"):
            assert word not in path.read_text(), f"{path}: {word}"


def test_library_knows_no_configuration() -> None:
    for path in LIBRARY.rglob("*.py"):
        text = path.read_text()
        forbidden = ["import dvc", "torch.save"]
        if path.name != "confined.py":  # the process in which checkpoints of torch are read
            forbidden.append("torch.load")
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


def test_nothing_imports_the_librarys_door() -> None:
    # It imports every family: whatever imported it would run again with each of them.
    door = LIBRARY / "api.py"
    assert imported(door)
    for path in (*LIBRARY.rglob("*.py"), *(ROOT / "stages").glob("*.py")):
        assert door not in imported(path), path


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
        ("detection", {*DETECTORS, *INSPECTORS}),
        ("purification", set(PURIFIERS)),
        ("robust", set(ROBUST)),
        ("variations", set(VARIATIONS)),
        ("data", set(SOURCES)),
    ],
)
def test_method_tables_in_the_docs_are_true(page: str, names: set[str]) -> None:
    assert {row[0].split("`")[1] for row in table_of(page)} == names


def test_the_table_of_folders_in_the_docs_is_true() -> None:
    lines = (ROOT / "docs" / "pipeline.md").read_text().splitlines()
    rows = {line.split("`")[1]: line.split(" | ")[2] for line in lines if re.match(r"\| `[a-z]+/` \|", line)}
    real = {}
    for folder in MAY_IMPORT:
        reached = {folder_of(file) for path in (LIBRARY / folder).rglob("*.py") for file in imported(path)}
        real[f"{folder}/"] = ", ".join(name for name in reversed(MAY_IMPORT) if name in reached - {folder, ""}) or "–"
    assert {name: cell.strip(" |") for name, cell in rows.items()} == real
