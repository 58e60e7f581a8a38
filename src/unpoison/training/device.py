"""Where and in what precision to compute. These are engines, not parameters: they come from the machine.

`UNPOISON_DEVICE` (``cpu``, ``cuda``, ``cuda:1``) overrides the choice of the device.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from ..errors import UserError


def pick_device() -> torch.device:
    """The GPU when there is one, else the CPU; or what `UNPOISON_DEVICE` says.

    On a GPU, deterministic algorithms are asked for where they exist; an operation without one only warns.
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
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    return device


def autocast(device: torch.device) -> torch.autocast:
    """bf16 where the hardware has it (GPUs, CPUs with AVX512-BF16 or AMX), fp32 elsewhere."""
    if device.type == "cuda":
        gains = torch.cuda.is_bf16_supported()
    else:
        capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        gains = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return torch.autocast(device.type, torch.bfloat16, enabled=gains)


def to_float(images: Tensor, device: torch.device) -> Tensor:
    """uint8 [n, c, h, w] to float32 in [0, 1] on the device, channels_last."""
    images = images.to(device, non_blocking=True)
    return images.to(torch.float32, memory_format=torch.channels_last).div_(255)
