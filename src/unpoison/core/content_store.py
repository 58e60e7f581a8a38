"""The content store: what is expensive to make (a network, a perturbation, a variation) is made once and kept.

An entry is found by everything that determines it, so a run with another rate or target takes from the store whatever does
not depend on these. Files are written under a temporary name and renamed: a killed run loses one batch at most. Each holds
a digest of itself; a damaged one is reported and its entries are made again.
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
    """The entries that were asked for, by the place where they lie.

    Attributes:
        made: number of entries made now.
        reused: number of entries that were there before.
        shards: file, or its values where nothing is kept; rows in it; their positions among the names asked for.
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
        # Shards hold what was missing in some run, so positions come in the order of runs, not of names.
        blocks = list(self.blocks())
        order = np.argsort(np.concatenate([positions for positions, _ in blocks]))
        return np.concatenate([values for _, values in blocks])[order]


class ContentStore:
    """A folder of entries. `folder` None keeps nothing, for one-off use."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def arrays(self, kind: str, determined_by: Mapping[str, Any], make: Callable[[], Arrays]) -> Arrays:
        """One asset of a few arrays, made where it is not there.

        Args:
            kind: kind of asset ("clean_network"), for the folder's name and the message.
            determined_by: JSON values: the data set's digest, settings, seed, the code (`core.code.code_of`).
            make: maker of the asset; not called where it is there.
        """
        if self.folder is None:
            return make()
        # 24 hexadecimal digits are 96 bits: enough that no two assets share a name, and short enough to read in a listing.
        path = (self.folder / kind / sha256_json(determined_by)[:24]).with_suffix(".npz")
        kept = _read(path)
        if kept is not None:
            print(f"{kind}: taken from the store", flush=True)
            return kept
        _sweep(path.parent, f".{path.name}.*.partial")
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
            kind: kind of asset, for the folder's name and the progress bar.
            determined_by: JSON values that all entries depend on, as for `arrays`.
            names: n different names, uint8 [n, k]: what each depends on besides (its image's digest, its index).
            make: maker of values [b, ...] for positions [b] among the names; a value must not depend on the others.
            batch: number of entries made and written at a time.
        """
        folder = None if self.folder is None else self.folder / kind / sha256_json(determined_by)[:24]
        shards: list[tuple[Path | NDArray[Any], IntArray, IntArray]] = []
        known = np.zeros(len(names), bool)
        if folder is not None and folder.is_dir():
            _sweep(folder, ".*.partial")
            # What is there, in files that earlier runs wrote; then the rest, a batch and a file at a time.
            shards = _places(folder, names, known)
        missing = np.flatnonzero(~known)
        starts = range(0, len(missing), batch)
        for start in progress(starts, what=kind, unit="batch", total=len(starts)):
            positions = missing[start : start + batch]
            values = make(positions)
            place: Path | NDArray[Any] = values
            # A file is named by the names in it: two runs that make the same entries write the same file.
            if folder is not None:
                place = folder / f"{hashlib.sha256(names[positions].tobytes()).hexdigest()[:24]}.npz"
                _write(place, {"names": names[positions], "values": values})
            shards.append((place, np.arange(len(positions)), positions))
        return Entries(len(missing), len(names) - len(missing), shards)


def _sweep(folder: Path, pattern: str) -> None:
    """Remove files that a killed run left half-written."""
    for leftover in folder.glob(pattern):
        leftover.unlink(missing_ok=True)


def _places(folder: Path, names: Images, known: Mask) -> list[tuple[Path | NDArray[Any], IntArray, IntArray]]:
    """The shards that hold any of the names, each name once; `known` is set for the names that are there."""
    shards: list[tuple[Path | NDArray[Any], IntArray, IntArray]] = []
    position_of = {name.tobytes(): position for position, name in enumerate(names)}
    for path in sorted(folder.glob("*.npz")):
        kept = _read(path)
        if kept is None:
            continue
        # -1 for entries that nobody asked for now: samples that an earlier run had poisoned.
        positions = np.array([position_of.get(name.tobytes(), -1) for name in kept["names"]], np.int64)
        rows = np.flatnonzero(positions >= 0)
        # A name may lie in two files, of runs that made it side by side; the first is as good as the second.
        rows = rows[~known[positions[rows]]]
        # Only rows and positions are kept in memory, values are read again when they are asked for.
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
    except (ValueError, KeyError, OSError, EOFError, BadZipFile, RuntimeError):
        # A RuntimeError, where a damaged flag reads as a password or as a compression that is not supported.
        # No digest is empty, so this counts as damaged below.
        digest, arrays = b"", {}
    if digest != _digest(arrays):
        print(f"{path}: damaged, what it held is made again", flush=True)
        return None
    return arrays


def _write(path: Path, arrays: Arrays) -> None:
    with new_file(path) as staging, staging.open("wb") as file:
        np.savez(file, allow_pickle=False, digest=np.frombuffer(_digest(arrays), np.uint8), **arrays)


def _digest(arrays: Arrays) -> bytes:
    """SHA-256 of the arrays' names, types, shapes and bytes."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        total.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        total.update(np.ascontiguousarray(arrays[name]).tobytes())
    return total.digest()
