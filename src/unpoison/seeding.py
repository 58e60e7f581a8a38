"""Randomness: every use has its own generator, derived from (seed, purpose) and, per sample, from the sample's key.

Nothing in the library touches a global random state, so adding a random draw in one place never shifts another.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # stages that only move images need no torch, which takes two seconds to import
    import torch


def derive(seed: int, purpose: str, *keys: int | str) -> int:
    """A 63-bit seed that depends on every argument and on nothing else (SHA-256 of their text)."""
    text = "/".join(str(part) for part in (seed, purpose, *keys))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_rng(seed: int, purpose: str, *keys: int | str) -> np.random.Generator:
    return np.random.default_rng(derive(seed, purpose, *keys))


def torch_rng(seed: int, purpose: str, *keys: int | str) -> torch.Generator:
    """A CPU generator: draws are made on the CPU and moved, so a GPU run sees the same numbers."""
    import torch

    return torch.Generator().manual_seed(derive(seed, purpose, *keys))
