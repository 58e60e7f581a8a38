"""Parameters of a run: those of a commit, with the overrides of a suite in place."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from .git import git
from .suite import Overrides, Suite
from .yaml_file import read_yaml

PARAMS, FOLDER = "params.yaml", "params"
Params = Mapping[str, Any]
"""The sections of `params.yaml` by name, and the blocks of each file in `params/` by the file's path."""


def scenario_at(folder: Path, commit: str) -> Params:
    """`params.yaml` of a commit."""
    return read_yaml(git(folder, "show", f"{commit}:{PARAMS}"), PARAMS)


def params_at(folder: Path, commit: str) -> Params:
    """All parameters of a commit."""
    params = dict(scenario_at(folder, commit))
    for path in git(folder, "ls-tree", "--name-only", commit, f"{FOLDER}/").splitlines():
        if path.endswith(".yaml"):
            params[path] = read_yaml(git(folder, "show", f"{commit}:{path}"), path)
    return params


def params_of(suite: Suite, params: Params, overrides: Overrides) -> Params:
    """`params` with the overrides of a run of `suite` in place; what the values mean is not checked here.

    Raises:
        UserError: an override in a section that does not exist, or a method of the table that the run does not make.
    """
    changed: Any = deepcopy(dict(params))
    for key, value in overrides.items():
        path, *sections, last = parts_of(key)
        if path and (path not in changed or not sections):
            files = [name for name in changed if name.startswith(f"{FOLDER}/")]
            raise UserError(
                f"{key}: no parameter of a file, allowed: FILE:SECTION.KEY, with a file out of {', '.join(files)}"
            )
        block = changed[path] if path else changed
        for number, part in enumerate(sections, 1):
            block = block.get(part)
            if not isinstance(block, dict):
                raise UserError(f"{key}: no section {'.'.join(sections[:number])} in {path or PARAMS}")
        block[last] = value
    made = ["backdoored"]
    if value_at(changed, "variations.enabled") is not False:
        made.append("student")
    for family, place in (("purify", "purified"), ("robust", "robust")):
        methods = value_at(changed, f"{family}.methods")
        if not isinstance(methods, list):
            raise UserError(f"{family}.methods: {methods!r} given, allowed: a list")
        by = value_at(changed, f"{family}.by") or {}
        if not isinstance(by, Mapping):
            raise UserError(f"{family}.by: {by!r} given, allowed: artefacts by method")
        made += [f"{place}.{method}" for method in (*methods, *by)]
    for name, about in suite.methods.items():
        if about.metrics not in made:
            raise UserError(f"methods.{name}.metrics: {about.metrics!r} given, allowed: {', '.join(made)}")
    return dict(changed)


def value_at(params: Params, key: str) -> Any:
    """The value of an override's key, or None where there is none."""
    path, *sections = parts_of(key)
    value: Any = params.get(path) if path else params
    for part in sections:
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def parts_of(key: str) -> list[str]:
    """`params/attacks.yaml:badnets.size` to its file, "" for `params.yaml`, and the dotted key's parts."""
    path, _, name = key.rpartition(":")
    return [path, *name.split(".")]


def override(key: str, value: Any) -> str:
    """An override as an argument of `dvc exp run -S`.

    `++` sets a key whether the file lists it or not: a network's own argument need not be listed. It belongs to the key:
    DVC takes what is in front of a colon for the file.
    """
    path, *parts = parts_of(key)
    return f"{path}{':' if path else ''}++{'.'.join(parts)}={override_text(value)}"


def override_text(value: Any) -> str:
    """A value in the grammar of `dvc exp run -S`: a text in quotes, so that no character of it is special."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(override_text, value))}]"
    return _quoted(value) if isinstance(value, str) else json.dumps(value)


def _quoted(text: str) -> str:
    """A text in quotes. A backslash counts only in front of a quote, the end or `${`, where it and its like are doubled."""
    text = re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", text)
    text = re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + (r"\'" if found[2] else ""), text)
    return f"'{text}'"
