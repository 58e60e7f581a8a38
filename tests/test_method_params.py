"""The methods' parameter files against their signatures: every parameter, its meaning, and what differs from its default."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.hydra import apply_overrides

from method_params import METHODS, defaults_of, family_text, meanings_of
from parameters import FAMILIES, PARAMS, read_yaml
from unpoison.attacks import ATTACKS
from unpoison.core.hyperparameters import check
from unpoison.poisoning.policy import Policy

ROOT = Path(__file__).resolve().parent.parent
EVERY = pytest.mark.parametrize("family", METHODS)
PARAMETERS: dict[str, Callable[..., Any]] = {
    f"{family}-{name}": method.parameters
    for family, (_, methods, _) in METHODS.items()
    for name, method in methods.items()
}


def written(text: str, folder: Path) -> dict[str, Any]:
    """The values of a file's text, as the stages read it."""
    path = folder / "family.yaml"
    path.write_text(text, encoding="utf-8")
    return read_yaml(path)


def published(text: str) -> dict[str, str]:
    """`method.key` to the default that a comment says is the published one."""
    defaults, method, waiting = {}, "", ""
    for line in text.splitlines():
        if heading := re.match(r"(\w+):", line):
            method = heading[1]
        elif above := re.match(r"  # published: (.*?)(; |$)", line):
            waiting = above[1]
        elif marked := re.match(r"  (\w+):(.*?  # published: (.*?)(; |$))?", line):
            if waiting or marked[3]:
                defaults[f"{method}.{marked[1]}"] = waiting or marked[3]
            waiting = ""
    return defaults


def test_attacks_that_are_committed_with_other_values_than_their_defaults() -> None:
    # A default that changed leaves the file's value as it was: whoever changes one decides on the other.
    differ = published((ROOT / FAMILIES["attacks"]).read_text(encoding="utf-8"))
    assert set(differ) == {"badnets.size", "bypass.weight", "bypass.lr", "bypass.momentum"}


@EVERY
def test_committed_file_is_what_the_signatures_give(family: str) -> None:
    path = ROOT / FAMILIES[family]
    assert path.read_text(encoding="utf-8") == family_text(family, read_yaml(path)), "run `make params`"
    assert list(read_yaml(path)) == list(METHODS[family][1])


@EVERY
def test_committed_file_marks_every_value_that_is_not_the_published_default(family: str) -> None:
    path = ROOT / FAMILIES[family]
    values, differs = read_yaml(path), {}
    for name, method in METHODS[family][1].items():
        defaults = defaults_of(method.parameters)
        assert list(values[name]) == list(defaults)
        for key, default in defaults.items():
            if values[name][key] != default:
                differs[f"{name}.{key}"] = default
    marks = published(path.read_text(encoding="utf-8"))
    assert set(marks) == set(differs)
    null = {key for key, default in differs.items() if default is None}
    assert {key for key, mark in marks.items() if mark == "null"} == null


def test_badnets_of_the_default_run_is_marked() -> None:
    text = (ROOT / FAMILIES["attacks"]).read_text(encoding="utf-8")
    assert re.search(r"^badnets:\n(  .*\n)*?  size: 4 +# published: null; ", text, re.M)


def test_scenario_has_every_key_of_the_policy_and_no_method_s() -> None:
    attack = read_yaml(ROOT / PARAMS)["attack"]
    assert set(attack) == {field.name for field in fields(Policy)} | {"name", "surrogate"}
    # Null leaves a key to the attack, which is published with a policy of its own.
    given = {key: value for key, value in attack.items() if key in Policy.__dataclass_fields__ and value is not None}
    assert check(given, Policy) == given


@EVERY
def test_defaults_survive_the_file_with_their_types(family: str, tmp_path: Path) -> None:
    text = family_text(family, {})
    assert published(text) == {}
    values = written(text, tmp_path)
    assert repr(values) == repr({name: defaults_of(method.parameters) for name, method in METHODS[family][1].items()})
    assert family_text(family, values) == text


def test_set_values_stay_and_what_is_gone_goes(tmp_path: Path) -> None:
    present = {
        "blended": {"ratio": 0.35, "alpha": 1},
        "wanet": {"size": 3},
        "sig": None,
        "ctrl": {"positions": [[1, 2]]},
    }
    text = family_text("attacks", present)
    values = written(text, tmp_path)
    assert list(values) == list(ATTACKS)
    assert values["blended"] == {"pattern": "noise", "ratio": 0.35, "test_ratio": None}
    assert values["sig"] == defaults_of(ATTACKS["sig"].parameters)
    assert published(text) == {"blended.ratio": "0.2", "ctrl.positions": "[[15, 15], [31, 31]]"}
    assert family_text("attacks", values) == text


@pytest.mark.parametrize("method", PARAMETERS.values(), ids=list(PARAMETERS))
def test_defaults_are_of_the_signature_and_pass_its_check(method: Callable[..., Any]) -> None:
    defaults = defaults_of(method)
    own = [p for p in inspect.signature(method).parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    assert list(defaults) == [p.name for p in own if p.name != "seed"]
    assert check(defaults, method) == defaults


@pytest.mark.parametrize("method", PARAMETERS.values(), ids=list(PARAMETERS))
def test_every_parameter_has_a_meaning(method: Callable[..., Any]) -> None:
    meanings = meanings_of(method)
    assert [key for key in defaults_of(method) if not meanings.get(key)] == []


@EVERY
def test_file_says_how_to_set_one_value_and_keeps_to_its_width(family: str) -> None:
    text = family_text(family, {})
    example = re.search(rf"^# dvc exp run -S {FAMILIES[family]}:(\w+)\.(\w+)=", text, re.M)
    assert example is not None
    assert example[2] in defaults_of(METHODS[family][1][example[1]].parameters)
    # A value that takes most of the line leaves its comment forty characters.
    assert [line for line in text.splitlines() if len(line) > 132 and "{" not in line] == []


ONE_VALUE = [
    (PARAMS, "seed=7"),
    (PARAMS, "attack.poison_rate=0.00001"),
    (PARAMS, "data.image_size=32"),
    (PARAMS, "distill.train.epochs=3"),
    (PARAMS, "distill.teacher=models/teacher"),
    (PARAMS, "robust.model=null"),
    (PARAMS, "report.note=a line"),
    (FAMILIES["attacks"], "badnets.location=center"),
    (FAMILIES["attacks"], "ftrojan.magnitude=20.0"),
    (FAMILIES["detectors"], "cd.steps=99"),
    (FAMILIES["purifiers"], "fst.alpha=0.9"),
    (FAMILIES["robust"], "distillation.alpha=0.9"),
]


@pytest.mark.parametrize(("path", "override"), ONE_VALUE, ids=str)
def test_dvc_changes_the_one_line_that_it_is_asked_to(path: Path, override: str, tmp_path: Path) -> None:
    # The function behind `dvc exp run -S`: it writes the whole file anew.
    copy = tmp_path / "params.yaml"
    before = (ROOT / path).read_text(encoding="utf-8")
    copy.write_text(before, encoding="utf-8")
    apply_overrides(copy, [override])
    lines = list(zip(before.splitlines(), copy.read_text(encoding="utf-8").splitlines(), strict=True))
    assert len([line for line, new in lines if line != new]) == 1


LISTS = [
    (PARAMS, "detect.methods"),
    (PARAMS, "detect.models"),
    (PARAMS, "purify.methods"),
    (PARAMS, "stress.methods"),
    (PARAMS, "stress.augment"),
    (PARAMS, "robust.methods"),
    (PARAMS, "visualise.figures"),
    (PARAMS, "visualise.models"),
    (PARAMS, "prior.channels"),
    (PARAMS, "train.milestones"),
    (PARAMS, "train.augment"),
    (PARAMS, "attack.sources"),
    (PARAMS, "attack.cover_classes"),
    (FAMILIES["attacks"], "ctrl.positions"),
    (FAMILIES["attacks"], "multi.triggers"),
    (FAMILIES["attacks"], "semantic.train_index"),
    (FAMILIES["purifiers"], "fst.augment"),
]


@pytest.mark.parametrize(("path", "key"), LISTS, ids=str)
def test_a_list_may_be_emptied_and_filled(path: Path, key: str, tmp_path: Path) -> None:
    # With a comment between key and list, DVC writes what is no YAML.
    copy = tmp_path / "params.yaml"
    copy.write_text((ROOT / path).read_text(encoding="utf-8"), encoding="utf-8")
    before = read_yaml(copy)
    for value in ([], ["a", "b"], [], None, ["c"]):
        apply_overrides(copy, [f"{key}={'null' if value is None else str(value)}"])
        section, name = key.split(".")
        assert read_yaml(copy) == {**before, section: {**before[section], name: value}}


@EVERY
def test_a_value_of_every_kind_keeps_the_form_that_dvc_writes(family: str, tmp_path: Path) -> None:
    kinds = itertools.cycle([None, "a # b", "#ff0000", "", "no", "1e5", 1e-05, 40.0, True, [], {}, "ä " * 80])
    present = {
        name: {key: next(kinds) for key in defaults_of(method.parameters)}
        for name, method in METHODS[family][1].items()
    }
    text = family_text(family, present)
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    apply_overrides(tmp_path / "params.yaml", ["++zzz=1"])
    assert (tmp_path / "params.yaml").read_text(encoding="utf-8") == f"{text}zzz: 1\n"
    assert written(text, tmp_path) == present


def test_meanings_are_first_sentences() -> None:
    def method(data: int, *, first: int = 1, second: float = 0.5, third: str = "a", seed: int = 0) -> None:
        """A method.

        Args:
            data: what it works on.
            first, second: sizes of both (Doe et al. 2020, cf. Roe et al.),
                in pixels. And more of it.
            third: `a.b` or 1.5 of it

        Returns:
            fourth: nothing of this.
        """

    assert meanings_of(method) == {
        "data": "what it works on",
        "first": "sizes of both (Doe et al. 2020, cf. Roe et al.), in pixels",
        "second": "sizes of both (Doe et al. 2020, cf. Roe et al.), in pixels",
        "third": "`a.b` or 1.5 of it",
    }
    assert defaults_of(method) == {"first": 1, "second": 0.5, "third": "a"}


def test_defaults_of_a_dataclass_are_fresh() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Parameters:
        size: int = 3
        blocks: list[int] = field(default_factory=lambda: [1, 2])

    defaults = defaults_of(Parameters)
    assert defaults == {"size": 3, "blocks": [1, 2]}
    defaults["blocks"].append(3)
    assert defaults_of(Parameters)["blocks"] == [1, 2]
