"""Running the pipeline's own stages in this working copy, as `dvc exp run` does: what commands share that turn arguments into
parameters."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .core.errors import UserError
from .suites.git import Repository, surroundings
from .suites.params import override

DVC = (sys.executable, "-m", "dvc")


def working_copy() -> Path:
    """The root of the repository that the working directory is in. Raises UserError outside one."""
    return Repository.here().root


def run_stages(overrides: Mapping[str, Any], targets: Sequence[str]) -> None:
    """Run stages with changed parameters, in the working copy: `params.yaml` and the outputs there are those of the run then.

    Args:
        overrides: values by the parameter's key, as suites have them (`attack.name`, `params/detectors.yaml:cd.steps`).
        targets: stages as in `dvc.yaml`, with all that they need; none: the whole pipeline.

    Raises:
        UserError: a stage failed; its own line stands above.
    """
    root = working_copy()
    settings = [part for key, value in overrides.items() for part in ("-S", override(key, value))]
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
