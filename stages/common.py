"""What every stage script shares: where artefacts lie, how a stage ends, what it cost."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from unpoison.core.errors import UserError
from unpoison.core.files import write_json

CHECKED = Path("data/checked")
BASE = Path("data/base")
POISONED = Path("data/poisoned")
ATTACKER_TRIGGERS, ATTACKER_TRAINING = Path("data/attacker/triggers"), Path("data/attacker/training")
TRUTH = Path("data/truth")
TRIGGERED = Path("data/triggered")
FEATURES = Path("data/features")
VARIATIONS = Path("data/variations")
SCORES = Path("data/scores")
BACKDOORED = Path("models/backdoored")
PRIOR = Path("models/prior")
STUDENT = Path("models/student")
PURIFIED = Path("models/purified")
ROBUST = Path("models/robust")
TRAINING = Path("reports/training")
METRICS = Path("reports/metrics.json")
CURVES = Path("reports/curves")
GRADED = Path("data/graded.json")
# Unfinished and reusable work, outside what DVC tracks: it survives a kill, `dvc checkout` and `dvc exp run`.
SCRATCH = Path(os.environ.get("UNPOISON_SCRATCH", ".unpoison"))
COSTS = SCRATCH / "costs"


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
        if "WORLD_SIZE" not in os.environ:
            _start_processes(together)
        elif not together and os.environ["WORLD_SIZE"] != "1":
            raise UserError(f"{name}: {os.environ['WORLD_SIZE']} processes given, allowed: 1")
        outputs = main()
    except UserError as error:
        # Of several processes each says so: the first to end takes the others with it.
        sys.exit(f"error: {error}")
    if os.environ.get("RANK", "0") == "0":
        _record_cost(name, time.perf_counter() - start)
        print(f"{name}: wrote {', '.join(map(str, outputs))}", flush=True)
    leave()


def leave() -> None:
    """End the process. Taking torch's libraries down takes half a second and nothing is left to do."""
    if "WORLD_SIZE" in os.environ:
        return  # the group of processes takes leave of each other
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _start_processes(together: bool) -> None:
    """Run the stage in as many processes as `UNPOISON_PROCESSES` says, where it can use them, and end with them."""
    given = os.environ.get("UNPOISON_PROCESSES", "1")
    if not given.isdecimal() or int(given) < 1:
        raise UserError(f"UNPOISON_PROCESSES: {given!r} given, allowed: a whole number from 1")
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
    write_json(COSTS / f"{name}.json", {"seconds": round(seconds, 1), "peak_mib": round(peak / 2**20)})
