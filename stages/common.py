"""What every stage script shares: where artefacts lie, how parameters are read, how a stage ends."""

from __future__ import annotations

import os
import re
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from unpoison.core.errors import UserError
from unpoison.core.files import read_json, sha256_file, sha256_json, write_json
from unpoison.core.hyperparameters import check, choose

PARAMS = Path("params.yaml")
BASE = Path("data/base")
POISONED = Path("data/poisoned")
TRUTH = Path("data/truth")
VARIATIONS = Path("data/variations")
SCORES = Path("data/scores")
BACKDOORED = Path("models/backdoored")
PRIOR = Path("models/prior")
STUDENT = Path("models/student")
PURIFIED = Path("models/purified")
TRAINING = Path("reports/training")
METRICS = Path("reports/metrics.json")
CURVES = Path("reports/curves")
# Unfinished and reusable work, outside what DVC tracks: it survives a kill, `dvc checkout` and `dvc exp run`.
SCRATCH = Path(os.environ.get("UNPOISON_SCRATCH", ".unpoison"))

Params = Mapping[str, Any]


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but `1e-05`, which DVC writes for 0.00001, is a number and no text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def load_params(path: Path = PARAMS) -> Params:
    """The parameters as they are written; each stage checks its own sections."""
    try:
        params = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 (a SafeLoader)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run stages from the repository's root") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not readable as YAML ({error})") from None
    if not isinstance(params, dict):
        raise UserError(f"{path}: a {type(params).__name__} found, allowed: a block of sections")
    return params


def section(params: Params, name: str) -> dict[str, Any]:
    """A section (`detect.cd`), which must be there."""
    value: Any = params
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise UserError(f"{PARAMS}: {name}: missing, allowed: a block of keys")
        value = value[part]
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UserError(f"{PARAMS}: {name}: {value!r} given, allowed: a block of keys")
    return dict(value)


def seed_of(params: Params) -> int:
    seed = params.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise UserError(f"{PARAMS}: seed: {seed!r} given, allowed: a whole number from 0")
    return seed


def checked(params: Params, name: str, schema: Callable[..., Any], *, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """A section checked against the keyword-only arguments of `schema`; keys in `without` are left to the caller."""
    values = {key: value for key, value in section(params, name).items() if key not in without}
    return check(values, schema, where=f"{PARAMS}: {name}")


def method_arguments(
    params: Params, family: str, method: str, methods: Mapping[str, Callable[..., Any]]
) -> dict[str, Any]:
    """The checked block of one method (`detect.cd`). `seed` is not among its keys: it is the run's."""
    function = choose(method, methods, where=f"{PARAMS}: {family}.methods")
    name = f"{family}.{method}"
    if "seed" in section(params, name):
        raise UserError(f"{PARAMS}: {name}.seed: given, allowed: the run's `seed` at the top")
    return checked(params, name, function)


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
        _record_cost(name, outputs, time.perf_counter() - start)
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


def _record_cost(name: str, outputs: list[Path], seconds: float) -> None:
    """Keep the seconds and peak memory of the run that first made these bytes.

    A rerun that gives the same bytes keeps the first measurement, so a report is a function of the artefacts it shows
    and `dvc repro --force` does not change it.
    """
    files = sorted(
        file for path in outputs for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()
    )
    made = sha256_json([sha256_file(file) for file in files])
    path = SCRATCH / "costs" / f"{name}.json"
    if path.is_file() and read_json(path)["outputs"] == made:
        return
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    write_json(path, {"outputs": made, "seconds": round(seconds, 1), "peak_mib": round(peak / 2**20)})


def read_costs() -> dict[str, dict[str, Any]]:
    """Stage name to its recorded cost, for stages that ran in this working copy."""
    return {path.stem: read_json(path) for path in sorted((SCRATCH / "costs").glob("*.json"))}
