"""Running the pipeline's own stages in this working copy, as `dvc exp run` does: what commands share that turn arguments into
parameters."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .core.errors import UserError
from .core.files import open_file
from .core.yaml_file import LARGEST, parse_yaml
from .reporting.escaping import say
from .suites.git import Repository, surroundings
from .suites.params import FOLDER, PARAMS, override, params_at, value_at

DVC = (sys.executable, "-m", "dvc")
ABSENT = object()
"""The value of a key that is not there."""


def working_copy() -> Path:
    """The root of the repository that the working directory is in. Raises UserError outside one."""
    return Repository.here().root


def given_path(key: str, given: str, allowed: str) -> Path:
    """The absolute path of an argument, whatever folder the command was started in.

    Args:
        key: the argument's name, for messages.
        given: what the user gave.
        allowed: what may be there, for messages.

    Raises:
        UserError: nothing there, or a path that DVC would not leave as it is.
    """
    if not given:
        raise UserError(f"{key}: none given; allowed: {allowed}")
    if not Path(given).exists():
        raise UserError(f"{key}: {given!r} given, which does not exist; allowed: {allowed}")
    path = os.path.abspath(given)
    if "${" in path:
        raise UserError(
            f"{key}: {path!r} given, allowed: a path without ${{, which DVC takes for the name of a parameter"
        )
    return Path(path)


def run_stages(overrides: Mapping[str, Any], targets: Sequence[str]) -> None:
    """Run stages with the commit's parameters and some changed. Parameters and outputs here are then those of the run.

    What an earlier run has left in the parameters is taken back, and said: a run follows from its arguments alone.

    Args:
        overrides: values by the parameter's key, as suites have them (`attack.name`, `params/detectors.yaml:cd.steps`).
        targets: stages as in `dvc.yaml`, with all that they need; none: the whole pipeline.

    Raises:
        UserError: a stage failed; its own line stands above.
    """
    root = working_copy()
    changes = [*taken_back(root, overrides), *(override(key, value) for key, value in overrides.items())]
    settings = [part for change in changes for part in ("-S", change)]
    environment = {
        **surroundings(),
        "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join([str(root / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    done = subprocess.run([*DVC, "exp", "run", *settings, *targets], cwd=root, env=environment)
    if done.returncode:
        raise UserError(
            f"`dvc exp run` ended with exit status {done.returncode}; its messages are above. The parameters of the run are "
            "still in params.yaml: `touch params.yaml && git checkout params.yaml` brings back those of the commit"
        )


def committed(path: str) -> dict[str, Any]:
    """The parameters of a file in `params/` as the commit has them, which is what `run_stages` runs with."""
    return dict(params_at(working_copy(), "HEAD")[path])


def present(key: str) -> Any:
    """The value of a parameter of the last run here, in the root of the working copy; None where there is none."""
    return value_at(_read(Path(PARAMS)), key)


def taken_back(root: Path, overrides: Mapping[str, Any]) -> list[str]:
    """Changes for `dvc exp run -S` that make the working copy's parameters those of the commit, but for the keys of `overrides`."""
    changes, said = [], []
    for path, committed in _by_file(params_at(root, "HEAD")).items():
        for parts, found, wanted in differences(_read(root / path), committed):
            key = f"{'' if path == PARAMS else f'{path}:'}{'.'.join(parts)}"
            if key in overrides:
                continue
            # A key that the commit does not have is taken out; its block may be one that an override sets as a whole.
            gone = wanted is ABSENT
            changes.append(
                f"{'' if path == PARAMS else f'{path}:'}~{'.'.join(parts)}" if gone else override(key, wanted)
            )
            said.append(f"{key} ({'absent' if found is ABSENT else repr(found)})")
    if said:
        say(f"parameters: as committed, and not as an earlier run left them: {', '.join(said)}")
    return changes


def differences(here: Any, committed: Any, parts: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Keys whose values differ, by their parts, with what is there and what was committed; `ABSENT` where a key is not there."""
    if isinstance(here, Mapping) and isinstance(committed, Mapping):
        for key in dict.fromkeys([*committed, *here]):
            yield from differences(here.get(key, ABSENT), committed.get(key, ABSENT), (*parts, str(key)))
    elif here is ABSENT or committed is ABSENT or here != committed or type(here) is not type(committed):
        yield parts, here, committed


def _read(path: Path) -> dict[str, Any]:
    with open_file(path) as file:
        return parse_yaml(file.read(LARGEST + 1), path.name)


def _by_file(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters by the path of their file, `params.yaml` among them."""
    files = {path: block for path, block in params.items() if path.startswith(f"{FOLDER}/")}
    return {PARAMS: {key: block for key, block in params.items() if key not in files}, **files}
