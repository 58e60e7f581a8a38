"""The commands of the pipeline, as DVC would run them, without a new start of Python for each: copies of one process run them.

python tests/one_process.py    # in a project; then `dvc commit --force` records what was made

Importing torch takes two seconds, and a run has thirteen stages. Each copy runs its script as `python SCRIPT ARGUMENTS` does.
"""

from __future__ import annotations

import os
import runpy
import shlex
import subprocess
import sys
from pathlib import Path


def commands() -> list[list[str]]:
    """The commands of all stages, in DVC's order."""
    done = subprocess.run(["dvc", "repro", "--dry", "--force"], check=True, capture_output=True, text=True)
    return [shlex.split(line[1:]) for line in done.stdout.splitlines() if line.startswith("> ")]


def main() -> None:
    # In place of this script's folder: the first entry is the one of the script that runs.
    sys.path[0] = str(Path("stages").resolve())
    listed = commands()
    assert len(listed) > 10, listed
    import check_params  # noqa: F401  what most stages import
    import evaluate  # noqa: F401
    import report  # noqa: F401

    for program, script, *arguments in listed:
        assert program == "python", program
        process = os.fork()
        if process == 0:
            sys.argv = [script, *arguments]
            runpy.run_path(script, run_name="__main__")
            os._exit(0)
        _, status = os.waitpid(process, 0)
        if status:
            sys.exit(f"error: {script} {' '.join(arguments)}: status {os.waitstatus_to_exitcode(status)}")


if __name__ == "__main__":
    main()
