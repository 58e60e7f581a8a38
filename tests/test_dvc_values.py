"""Values that DVC reads before any stage runs: an error of its own in one line, or `check_params` comes first and says it.

`dvc exp run -S` writes the value, loads the pipeline and checks its graph before it runs `check_params`; so does this file, in
this process. `test_pipeline.py` runs the command itself on some of them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.utils.hydra import apply_overrides

from tiny import ROOT


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What DVC reads of a working copy."""
    for name in ("dvc.yaml", "params.yaml", ".dvc/config"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "params", tmp_path / "params")
    with (tmp_path / ".dvc/config").open("a") as file:
        file.write("    no_scm = true\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(project: Path, override: str) -> list[str]:
    """The names of all stages with one value changed, the first one first."""
    apply_overrides(project / "params.yaml", [override])
    with Repo(project) as repo:
        repo.index.check_graph()
        return [stage.addressing for stage in repo.index.stages]


REACHED = [
    "data.path=null",
    "data.path=2024",
    "data.path=true",
    "data.path=0.5",
    "data.reserve=0.05",
    "data.reserve_path=null",
    "data.reserve_path=data/source",
    "attack.name=null",
    "attack.name=3",
    "attack.name=''",
    "detect.methods=[cd,null]",
    "detect.methods=[3]",
    "detect.methods=[]",
    "detect.methods=[nonsense]",
    "purify.by={}",
    "++purify.by.dbr=scores/fct",
    "++purify.by={dbr:scores/cd,nc_unlearn:verdicts/neural_cleanse}",
    "++purify.by.dbr=scores/../truth",
    "++purify.by.nonsense=null",
    "++robust.model.name=torchvision:mobilenet_v2",
    "++distill.model={name:vgg19_bn,width:8}",
    "distill.teacher=/somewhere/else",
    "distill.teacher=null",
    "report.note=null",
]
REFUSED = [
    ("data.path=''", "both a dependency and an output in stage: prepare"),
    ("data.path=[a]", "stages.prepare.deps"),
    ("~data.path", "Could not find 'data.path'"),
    ("data=null", "data.path"),
    ("attack.name=[badnets]", "stages.poison.deps"),
    ("attack=badnets", "attack.name"),
    ("detect.methods=cd", "stages.detect.foreach' in 'dvc.yaml': expected list/dictionary, got str"),
    ("detect.methods=null", "stages.detect.foreach' in 'dvc.yaml': expected list/dictionary, got NoneType"),
    ("purify.methods=1", "stages.purify.foreach' in 'dvc.yaml': expected list/dictionary, got int"),
    ("robust.methods=true", "stages.train_robust.foreach' in 'dvc.yaml': expected list/dictionary, got bool"),
    ("detect.methods=[[cd]]", "stages.detect"),
    ("purify.methods={ft:1}", "Invalid `--set-param` value"),
    ("robust.methods=[..]", "overlap"),
    ("purify.by=null", "stages.purify_by.foreach' in 'dvc.yaml': expected list/dictionary, got NoneType"),
    ("purify.by={dbr:scores/cd}", "Invalid `--set-param` value"),
    ("++purify.by.dbr=[scores]", "stages.purify_by@dbr.deps' in 'dvc.yaml'"),
    ("++purify.by.fst=scores/cd", "output 'models/purified/fst' is specified in"),
    ("detect=cd", "detect.methods"),
    ("distill.teacher=''", "both a dependency and an output in stages: "),
    ("distill.teacher=models/student", "both a dependency and an output in stage: distill_student"),
]


@pytest.mark.parametrize("override", REACHED)
def test_check_params_is_reached(project: Path, override: str) -> None:
    assert load(project, override)[0] == "check_params"


@pytest.mark.parametrize(("teacher", "trained_here"), [("./models/backdoored/", True), ("models/teacher", False)])
def test_the_student_follows_its_teacher(project: Path, teacher: str, trained_here: bool) -> None:
    apply_overrides(project / "params.yaml", [f"distill.teacher={teacher}"])
    with Repo(project) as repo:
        (student,) = (stage for stage in repo.index.stages if stage.addressing == "distill_student")
        before = {stage.addressing for stage in repo.index.graph.successors(student)}
    assert before == {"check_params", "prepare", "generate_variations", *(["train_backdoored"] if trained_here else [])}


@pytest.mark.parametrize(("override", "line"), REFUSED)
def test_dvc_says_what_is_wrong(project: Path, override: str, line: str) -> None:
    # Of any other exception DVC's command says "unexpected error".
    with pytest.raises(DvcException, match=line):
        load(project, override)
