"""Run inside a checkout of the code to be measured: are these parameters valid, and what would they run on?

Standard input: a JSON object of each run's name to its parameters. Standard output: a JSON object of `device` and `torch`.
It is a program of its own so that the code that checks is the code that will run, whatever lies in the working copy.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path

import torch

from check_params import check_all
from common import Params
from unpoison.compute.device import pick_device
from unpoison.core.errors import UserError


def check_runs(runs: dict[str, Params]) -> None:
    """Raises UserError for the first run whose parameters would stop a stage, with the run's name in front."""
    for name, params in runs.items():
        try:
            check_all(params)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None


def hardware() -> dict[str, str]:
    """The device that stages will use, with its model and the cores, and torch's version."""
    device = pick_device()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cpu = f"{_cpu_model()}, {cores} cores, {torch.get_num_threads()} threads"
    name = f"cuda: {torch.cuda.get_device_name(device)}; host {cpu}" if device.type == "cuda" else f"cpu: {cpu}"
    return {"device": name, "torch": torch.__version__}


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.is_file() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    try:
        check_runs(json.load(sys.stdin))
        print(json.dumps(hardware()))
    except UserError as error:
        sys.exit(f"error: {error}")
