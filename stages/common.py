"""What every stage script shares: the library it uses, where artefacts lie, how a stage ends, what it cost.

A script imports this module before all others: it finds the library beside it, and says in one line what is missing.
"""

from __future__ import annotations

import os
import re
import resource
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import TracebackType

STAGES = Path(__file__).resolve().parent
LIBRARY = STAGES.parent / "src" / "unpoison"


def use_own_code() -> None:
    """Import the library from `src/` beside the stages, whatever library the environment points to, or end with one line.

    DVC hashes the code of its own working copy. In a queue, a second clone or a worktree, an installed library or
    `PYTHONPATH` is that of another copy, and its outputs would be kept under the hash of code that did not make them.
    """
    sys.path[:0] = [str(STAGES), str(LIBRARY.parent)]
    try:
        import_module("unpoison")
    except ImportError as error:
        sys.exit(f"error: {LIBRARY}: cannot be imported ({error}); allowed: a whole copy of the repository")
    own = {path.stem: path for path in STAGES.glob("*.py")} | {"unpoison": LIBRARY / "__init__.py"}
    for name, path in own.items():
        # Something may have been imported before this script was: by `sitecustomize`, or by a hook of an installation.
        module = sys.modules.get(name)
        file = getattr(module, "__file__", None)
        if module is not None and (file is None or Path(file).resolve() != path.resolve()):
            sys.exit(f"error: {name}: loaded from {file}, allowed: {path}, whose code DVC hashes; check PYTHONPATH")


def explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """`sys.excepthook`: one line for what lies in the machine or the environment, a traceback for what is a bug."""
    if issubclass(kind, KeyboardInterrupt):
        _end(f"interrupted; nothing half-written is left, and work kept in {SCRATCH} is not done again", 130)
    if isinstance(error, BrokenPipeError):
        # Python's last flush would fail in the same way.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        _end("standard output: closed before the stage had ended, allowed: open until then", 1)
    own = {path.stem for path in STAGES.glob("*.py")} | {"unpoison"}
    if isinstance(error, ImportError) and (error.name or "").partition(".")[0] not in own:
        _say(f"{sys.executable}: {error}; allowed: the environment that `make setup` makes: PATH=.venv/bin:$PATH")
    elif isinstance(error, OSError) or kind.__name__ == "SafetensorError":
        # The writer of weights hands on what the system says, as an exception of its own.
        where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        _say(f"{where}{getattr(error, 'strerror', None) or error}; no output was replaced")
    elif isinstance(error, MemoryError) or kind.__name__ == "OutOfMemoryError":
        _say(f"memory: {str(error) or 'not enough'}; allowed: less data at once, or a machine with more")
    else:
        sys.__excepthook__(kind, error, trace)


def _end(message: str, status: int) -> None:
    _say(message)
    os._exit(status)


def _say(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)


for stream in (sys.stdout, sys.stderr):
    # Names of files and classes may hold what a terminal's encoding lacks: escapes then, and no traceback.
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")
SCRATCH = Path(os.environ.get("UNPOISON_SCRATCH") or ".unpoison")
"""Unfinished and reusable work, outside what DVC tracks: it survives a kill, `dvc checkout` and `dvc exp run`."""
sys.excepthook = explain
use_own_code()

from unpoison.core.code import digest_of, source_of  # noqa: E402
from unpoison.core.errors import UserError, one_line  # noqa: E402
from unpoison.core.files import read_json, write_json  # noqa: E402

CHECKED = Path("data/checked")
BASE = Path("data/base")
POISONED = Path("data/poisoned")
ATTACKER_TRIGGERS, ATTACKER_TRAINING = Path("data/attacker/triggers"), Path("data/attacker/training")
ATTACKER_TRAINED = Path("data/attacker/trained")
"""The triggers that were trained with the victim, which their likes in `ATTACKER_TRIGGERS` are not yet."""
TRUTH = Path("data/truth")
TRIGGERED = Path("data/triggered")
FEATURES = Path("data/features")
VARIATIONS = Path("data/variations")
SCORES, INPUT_SCORES = Path("data/scores"), Path("data/input_scores")
VERDICTS = Path("data/verdicts")
BIAS = Path("data/bias")
BACKDOORED = Path("models/backdoored")
PRIOR = Path("models/prior")
STUDENT = Path("models/student")
PURIFIED = Path("models/purified")
CLEAN = Path("models/clean")
STRESS = Path("data/stress")
ROBUST = Path("models/robust")
TRAINING = Path("reports/training")
METRICS = Path("reports/metrics.json")
CURVES = Path("reports/curves")
GRADED = Path("data/graded.json")
FIGURES = Path("reports/figures")
COSTS = SCRATCH / "costs"
RECIPES = "unpoison.training.recipes"
"""The module of recipes by name: a stage depends on the recipe that it trains by, not on the others."""


def run_stage(name: str, main: Callable[[], list[Path]], *, together: bool = False) -> None:
    """Run a stage; print one line for an error a user can put right, and exit with status 1.

    Args:
        name: the stage's name as in `dvc.yaml` (`detect@cd`).
        main: does the work and returns what it wrote.
        together: whether several processes may run it together: those of `torchrun`, or as many as
            `UNPOISON_PROCESSES` says. The first one writes; the others return nothing.
    """
    start = time.perf_counter()
    try:
        if SCRATCH.exists() and not SCRATCH.is_dir():
            raise UserError(f"UNPOISON_SCRATCH: {str(SCRATCH)!r} given, which is a file; allowed: a folder")
        if not _in_group(name, together):
            _start_processes(together)
        check_code(name)
        outputs = main()
    except UserError as error:
        # Of several processes each says so: the first to end takes the others with it.
        sys.exit(f"error: {error}")
    if os.environ.get("RANK", "0") == "0":
        _record_cost(name, time.perf_counter() - start)
        say(f"{name}: wrote {', '.join(map(str, outputs))}")
    leave()


def code_file(stage: str, checked: Path = CHECKED) -> Path:
    """The file with the code of a stage: its name as in `dvc.yaml` (`detect@cd`); `poison@NAME` for each attack."""
    return checked / "code" / f"{stage.replace('@', '/')}.json"


def check_code(stage: str) -> None:
    """Raises UserError where DVC runs a stage whose code is not what `check_params` found, before the stage does anything.

    It was edited since: DVC would keep the outputs under digests of code that did not make them.
    """
    # Run by hand, or a stage without such a file: `check_params`, which writes them, and `poison`, which first looks up its attack.
    if "DVC_STAGE" not in os.environ or not code_file(stage).exists():
        return
    noted = read_json(code_file(stage))
    modules = dict(noted["modules"])
    if noted["recipe"] is not None:
        modules |= read_json(code_file("recipes"))["modules"]
    for module, digest in modules.items():
        file = source_of(module, STAGES)
        if file is None or digest_of(file) != digest:
            raise UserError(
                f"{file or module}: changed since `check_params` ran, allowed: the code that it noted; "
                "run `dvc repro` again"
            )


def say(text: str) -> None:
    """Print a line of a stage, whatever the names in it hold."""
    print(one_line(text), flush=True)


def leave() -> None:
    """End the process. Taking torch's libraries down takes half a second and nothing is left to do."""
    if "WORLD_SIZE" in os.environ:
        return  # the group of processes takes leave of each other
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # closed from the start
            stream.flush()
    os._exit(0)


def _in_group(name: str, together: bool) -> bool:
    """Whether `torchrun` started this process, as one of several or of one."""
    size = os.environ.get("WORLD_SIZE")
    if size is None:
        return False
    for key, first in (("WORLD_SIZE", 1), ("RANK", 0)):
        value = os.environ.get(key, "nothing")
        if not _is_number(value, first) or (key == "RANK" and int(value) >= int(size)):
            raise UserError(f"{key}: {value!r} given, allowed: what torchrun sets; or unset WORLD_SIZE")
    if not together and size != "1":
        raise UserError(f"{name}: {size} processes given, allowed: 1")
    return True


def _is_number(text: str, first: int) -> bool:
    """Whether a text is a whole number from `first` to 9999: with more digits than that it would be a slip."""
    return re.fullmatch("[0-9]{1,4}", text) is not None and int(text) >= first


def _start_processes(together: bool) -> None:
    """Run the stage in as many processes as `UNPOISON_PROCESSES` says, where it can use them, and end with them."""
    given = os.environ.get("UNPOISON_PROCESSES", "1")
    if not _is_number(given, 1):
        raise UserError(f"UNPOISON_PROCESSES: {given!r} given, allowed: a whole number from 1 to 9999")
    if together and int(given) > 1:
        threads = max(1, (os.cpu_count() or 1) // int(given))
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.run import main as torchrun

        try:
            torchrun(["--standalone", "--nproc-per-node", given, *sys.argv])
        except ChildFailedError:
            sys.exit(1)  # the process that failed has said why
        sys.exit()


def _record_cost(name: str, seconds: float) -> None:
    """Keep a stage's seconds and peak memory for `make costs`. They differ from run to run, so no artefact holds them."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    try:
        write_json(COSTS / f"{name}.json", {"seconds": round(seconds, 1), "peak_mib": round(peak / 2**20)})
    except (OSError, UserError) as error:
        # The stage has ended well: what it cost is not worth failing for.
        say(f"{name}: its cost is not recorded ({error})")
