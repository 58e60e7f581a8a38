"""Randomness: every use has its own generator, derived from (seed, purpose) and, for work per sample, the sample's key.

Nothing in the library touches a global random state, so a random draw added in one place never shifts another.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # stages that only move images need no torch, which takes two seconds to import
    import torch


def derive(seed: int, purpose: str, *keys: int | str) -> int:
    """A seed of 63 bits that depends on every argument and on nothing else: from the SHA-256 of their text."""
    # A non-negative int64, which every library takes as a seed. Python's own hash of a text differs between processes.
    text = "/".join(str(part) for part in (seed, purpose, *keys))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_rng(seed: int, purpose: str, *keys: int | str) -> np.random.Generator:
    """A NumPy generator for one purpose."""
    return np.random.default_rng(derive(seed, purpose, *keys))


def torch_rng(seed: int, purpose: str, *keys: int | str) -> torch.Generator:
    """A torch generator for one purpose, on the CPU: numbers are drawn there and moved, so a GPU sees the same ones."""
    import torch

    return torch.Generator().manual_seed(derive(seed, purpose, *keys))


def uniform(seed: int, purpose: str, keys: NDArray[np.int64], draws: int) -> NDArray[np.float64]:
    """`draws` numbers in [0, 1) per key, float64 [len(keys), draws], each row a function of (seed, purpose, key) alone.

    For work on many samples, where a generator for each would take longer than the work: SplitMix64 (Steele, Lea &
    Flood 2014) with the row's and the column's number as its counter.
    """
    # Arithmetic modulo 2^64 throughout. The counter starts at 1 and is spread by the golden ratio's increment; the seed is
    # the state it starts from.
    wide = np.uint64
    row: NDArray[np.uint64] = keys.astype(np.uint64)[:, None]
    column: NDArray[np.uint64] = np.arange(draws, dtype=np.uint64)
    mixed = row * wide(draws) + column + wide(1)
    mixed = mixed * wide(0x9E3779B97F4A7C15) + wide(derive(seed, purpose, draws))
    # SplitMix64's two multiplicative steps; of the last xor the upper 53 bits fill a float64's mantissa.
    mixed = (mixed ^ (mixed >> wide(30))) * wide(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> wide(27))) * wide(0x94D049BB133111EB)
    return ((mixed ^ (mixed >> wide(31))) >> wide(11)).astype(np.float64) * 2.0**-53
