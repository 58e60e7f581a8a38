"""Device, precision and compilation. They are engines, not parameters: the machine decides them.

`UNPOISON_DEVICE` (``cpu``, ``cuda``, ``cuda:1``) overrides the choice of the device, `UNPOISON_PRECISION` (``fp32``) that of the
precision, and `UNPOISON_COMPILE` (``0``, ``1``) that of compiling the training.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from ..core.errors import UserError

Function = TypeVar("Function", bound=Callable[..., Any])


def pick_device() -> torch.device:
    """The GPU where there is one, else the CPU; or what `UNPOISON_DEVICE` says.

    On a GPU, deterministic algorithms are asked for where they exist; an operation without one only warns.

    Raises:
        UserError: a device that does not exist here, or one GPU for several processes.
    """
    given = os.environ.get("UNPOISON_DEVICE", "cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(given)
    except RuntimeError:
        raise UserError(f"UNPOISON_DEVICE: {given!r} given, allowed: cpu, cuda, cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"UNPOISON_DEVICE: {given!r} given, allowed: cpu, cuda, cuda:N")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"UNPOISON_DEVICE: {given!r} given, but torch finds no GPU; allowed here: cpu")
        # cuBLAS is deterministic with a workspace of its own per stream only, and reads this variable when it starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        together = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if device.index is None:
            # Each of several processes has a GPU of its own.
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        elif together > 1:
            raise UserError(f"UNPOISON_DEVICE: {given!r} given, allowed with {together} processes: cpu, cuda")
        if max(device.index, together - 1) >= torch.cuda.device_count():
            raise UserError(
                f"{device} for {together} processes given, allowed: GPUs 0 to {torch.cuda.device_count() - 1}, one each"
            )
        torch.cuda.set_device(device)
    else:
        _keep_freed_memory()
    return device


@cache
def _keep_freed_memory() -> None:
    """Let glibc keep what is freed: it returns large blocks at once, and every activation is then mapped in anew.

    The gain is in bench/results/allocator.csv. Without glibc, nothing happens.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        threshold, trim = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
        # glibc before 2.35 takes no more than 32 MiB. Setting either of the two ends glibc's own adjustment of both.
        if libc.mallopt(threshold, 1 << 30) or libc.mallopt(threshold, 32 << 20):
            libc.mallopt(trim, 2**31 - 1)


def compiled(function: Function) -> Function:
    """`function` of the training loop, which takes batches of one size: compiled where `UNPOISON_COMPILE` asks for it.

    Raises:
        UserError: another value of `UNPOISON_COMPILE` than 0 and 1.
    """
    return cast(Function, torch.compile(function, dynamic=False)) if _compiling() else function


def uncompiled(function: Function) -> Function:
    """`function`, which a compiled one calls and that cannot be compiled itself. Raises as `compiled`."""
    # Only where it is needed: this imports torch's compiler, which takes two seconds.
    return cast(Function, torch.compiler.disable(function)) if _compiling() else function


def _compiling() -> bool:
    given = os.environ.get("UNPOISON_COMPILE", "0")
    if given not in ("0", "1"):
        raise UserError(f"UNPOISON_COMPILE: {given!r} given, allowed: 0, 1")
    return given == "1"


def autocast(device: torch.device) -> torch.autocast:
    """Context of mixed precision: bf16 where the hardware has it (GPUs, CPUs with AVX512-BF16 or AMX), else fp32.

    Raises:
        UserError: another value of `UNPOISON_PRECISION` than auto and fp32.
    """
    given = os.environ.get("UNPOISON_PRECISION", "auto")
    if given not in ("auto", "fp32"):
        raise UserError(f"UNPOISON_PRECISION: {given!r} given, allowed: auto, fp32")
    # bf16 has the range of fp32, so losses need no scaling as they do in fp16. Emulated, it only costs time.
    if device.type == "cuda":
        gains = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        gains = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return torch.autocast(device.type, torch.bfloat16, enabled=gains and given == "auto")


def full_precision(device: torch.device) -> torch.autocast:
    """Context of fp32 within that of mixed precision, for losses and small matrices: bf16 has three digits."""
    return torch.autocast(device.type, enabled=False)


def _precision(device: torch.device) -> str:
    return "bf16 autocast" if autocast(device)._enabled else "fp32"


def machine() -> str:
    """Device, precision, exactness and torch's version, in words, for a report."""
    device = pick_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} CPU cores"
    exact = "deterministic algorithms where they exist" if device.type == "cuda" else "deterministic"
    return f"{name}, {_precision(device)}, {exact}, torch {torch.__version__}"


def hardware() -> dict[str, str]:
    """Device of the stages, with its model, the cores and the precision, and torch's version, for a record of runs."""
    device = pick_device()
    # The cores this process may use, which can be fewer than the machine has.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cpu = f"{_cpu_model()}, {cores} cores, {torch.get_num_threads()} threads"
    name = f"cuda: {torch.cuda.get_device_name(device)}; host {cpu}" if device.type == "cuda" else f"cpu: {cpu}"
    return {"device": f"{name}, {_precision(device)}", "torch": torch.__version__}


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.is_file() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def batch_size(image_size: tuple[int, int], at_32: int) -> int:
    """Images per forward pass: `at_32` of up to 32 px, and of larger ones as many as have no more pixels."""
    return max(1, min(at_32, at_32 * 32 * 32 // (image_size[0] * image_size[1])))


def to_float(images: Tensor, device: torch.device) -> Tensor:
    """Images uint8 [n, c, h, w] as float32 in [0, 1] on the device, channels_last."""
    # Moved first, a quarter of the bytes; divided in place, as the copy is ours.
    images = images.to(device, non_blocking=True)
    return images.to(torch.float32, memory_format=torch.channels_last).div_(255)
