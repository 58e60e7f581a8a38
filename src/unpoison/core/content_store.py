"""The content store: what is expensive to make (a network, a perturbation, a variation) is made once and kept.

An entry is found by everything that determines it, so a run with another rate or target takes from the store what does not
depend on these. Files are written under a temporary name and renamed: a killed run loses one batch at most. Each holds a
digest of itself; a damaged one is named and its entries are made again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from .arrays import Arrays, Images, IntArray, Mask
from .files import new_file, sha256_json
from .progress import progress


@dataclass(frozen=True)
class Entries:
    """Where the entries that were asked for lie, and how they came there.

    Attributes:
        made, reused: how many were made now, and how many were there before.
        shards: (file, or its values where nothing is kept; rows in it, positions among the names asked for).
    """

    made: int
    reused: int
    shards: list[tuple[Path | NDArray[Any], IntArray, IntArray]] = field(repr=False)

    def blocks(self) -> Iterator[tuple[IntArray, NDArray[Any]]]:
        """Positions int64 [k] and their values [k, ...], a shard at a time; memory holds one."""
        for place, rows, positions in self.shards:
            if isinstance(place, Path):
                with np.load(place, allow_pickle=False) as shard:
                    yield positions, shard["values"][rows]
            else:
                yield positions, place[rows]

    def gather(self) -> NDArray[Any]:
        """All values, in the order of the names."""
        blocks = list(self.blocks())
        order = np.argsort(np.concatenate([positions for positions, _ in blocks]))
        return np.concatenate([values for _, values in blocks])[order]


class ContentStore:
    """A folder of entries. `folder` None keeps nothing, for one-off use."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def arrays(self, kind: str, determined_by: Mapping[str, Any], make: Callable[[], Arrays]) -> Arrays:
        """One asset, a few arrays.

        Args:
            kind: what it is, for the folder's name and the message ("clean_network").
            determined_by: JSON values: the data set's digest, settings, seed, the code (`core.code.code_of`).
            make: makes it; not called when it is there.
        """
        if self.folder is None:
            return make()
        path = (self.folder / kind / sha256_json(determined_by)[:24]).with_suffix(".npz")
        kept = _read(path)
        if kept is not None:
            print(f"{kind}: taken from the store", flush=True)
            return kept
        start = time.perf_counter()
        made = make()
        _write(path, made)
        print(f"{kind}: made in {time.perf_counter() - start:.1f} s", flush=True)
        return made

    def entries(
        self,
        kind: str,
        determined_by: Mapping[str, Any],
        names: Images,
        make: Callable[[IntArray], NDArray[Any]],
        *,
        batch: int,
    ) -> Entries:
        """An asset per sample: only those that the store lacks are made, and a killed run keeps its batches.

        Args:
            kind: what they are.
            determined_by: as for `arrays`: what all entries depend on.
            names: uint8 [n, k], n different names: what each depends on besides (its image's digest, its index).
            make: positions [b] among the names to values [b, ...]; what one gets must not depend on the others.
            batch: how many are made and written at a time.
        """
        folder = None if self.folder is None else self.folder / kind / sha256_json(determined_by)[:24]
        shards: list[tuple[Path | NDArray[Any], IntArray, IntArray]] = []
        known = np.zeros(len(names), bool)
        if folder is not None and folder.is_dir():
            _sweep(folder)
            shards = _places(folder, names, known)
        missing = np.flatnonzero(~known)
        starts = range(0, len(missing), batch)
        for start in progress(starts, what=kind, unit="batch", total=len(starts)):
            positions = missing[start : start + batch]
            values = make(positions)
            place: Path | NDArray[Any] = values
            if folder is not None:
                place = folder / f"{hashlib.sha256(names[positions].tobytes()).hexdigest()[:24]}.npz"
                _write(place, {"names": names[positions], "values": values})
            shards.append((place, np.arange(len(positions)), positions))
        return Entries(len(missing), len(names) - len(missing), shards)


def _sweep(folder: Path) -> None:
    """Remove what a killed run left half-written."""
    for leftover in folder.glob(".*.partial"):
        leftover.unlink(missing_ok=True)


def _places(folder: Path, names: Images, known: Mask) -> list[tuple[Path | NDArray[Any], IntArray, IntArray]]:
    """The shards that hold any of the names, each name once; `known` is set for those that are there."""
    shards: list[tuple[Path | NDArray[Any], IntArray, IntArray]] = []
    position_of = {name.tobytes(): position for position, name in enumerate(names)}
    for path in sorted(folder.glob("*.npz")):
        kept = _read(path)
        if kept is None:
            continue
        positions = np.array([position_of.get(name.tobytes(), -1) for name in kept["names"]], np.int64)
        rows = np.flatnonzero(positions >= 0)
        rows = rows[~known[positions[rows]]]
        if len(rows):
            shards.append((path, rows, positions[rows]))
            known[positions[rows]] = True
    return shards


def _read(path: Path) -> Arrays | None:
    """The arrays of a file, or None where there is none or it is damaged."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
        digest = arrays.pop("digest").tobytes()
    except (ValueError, KeyError, OSError, EOFError, BadZipFile):
        digest, arrays = b"", {}
    if digest != _digest(arrays):
        print(f"{path}: damaged, what it held is made again", flush=True)
        return None
    return arrays


def _write(path: Path, arrays: Arrays) -> None:
    with new_file(path) as staging, staging.open("wb") as file:
        np.savez(file, allow_pickle=False, digest=np.frombuffer(_digest(arrays), np.uint8), **arrays)


def _digest(arrays: Arrays) -> bytes:
    total = hashlib.sha256()
    for name in sorted(arrays):
        total.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        total.update(np.ascontiguousarray(arrays[name]).tobytes())
    return total.digest()
