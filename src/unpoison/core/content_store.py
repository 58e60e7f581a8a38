"""The content store: what is expensive to make (a network, a perturbation, a variation) is made once and kept.

An entry is found by everything that determines it, so a run with another rate or target takes from the store whatever does
not depend on these. Files are written under a temporary name and renamed: a killed run loses one batch at most. Each holds
a digest of itself and of its place; a damaged one is reported and its entries are made again. Several processes may share a
store: what two of them make is the same file.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .arrays import Arrays, Images, IntArray, Mask
from .errors import UserError
from .files import new_file, sha256_json, sweep
from .npy import load_arrays
from .progress import progress
from .sharded import Engine, Sharded, in_turn

# Part of every name: what an earlier version of this file has written is not looked at.
_VERSION = 2
Make = Callable[[IntArray], NDArray[Any]]
"""From positions [b] among the names asked for to their values [b, ...]."""


@dataclass(frozen=True)
class Entries:
    """The entries that were asked for, by the place where they lie.

    Attributes:
        made: number of entries made now.
        reused: number of entries that were there before.
        shards: file, or its values where nothing is kept; rows in it; their positions among the names asked for.
        make: maker of values, for a file that was there a moment ago and is not any more.
    """

    made: int
    reused: int
    shards: list[tuple[Path | NDArray[Any], IntArray, IntArray]] = field(repr=False)
    make: Make = field(repr=False)

    def blocks(self) -> Iterator[tuple[IntArray, NDArray[Any]]]:
        """Positions int64 [k] and their values [k, ...], a shard at a time; memory holds one."""
        for place, rows, positions in self.shards:
            kept = read_kept(place) if isinstance(place, Path) else {"values": place}
            # Somebody may have emptied the store since; a shard holds no more entries than are made at a time.
            yield positions, self.make(positions) if kept is None else kept["values"][rows]

    def gather(self) -> NDArray[Any]:
        """All values, in the order of the names."""
        # Shards hold what was missing in some run, so positions come in the order of runs, not of names.
        blocks = list(self.blocks())
        order = np.argsort(np.concatenate([positions for positions, _ in blocks]))
        return np.concatenate([values for _, values in blocks])[order]


class ContentStore:
    """A folder of entries. `folder` None keeps nothing, for one-off use.

    Attributes:
        folder: where entries lie.
        engine: what makes the shards of `entries` and `parts`; where nothing is kept they are made here.
    """

    def __init__(self, folder: Path | None, engine: Engine = in_turn) -> None:
        self.folder, self.engine = folder, engine
        self._parts: list[Path] = []

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
        path = self._place(kind, determined_by).with_suffix(".npz")
        kept = read_kept(path)
        if kept is not None:
            print(f"{kind}: taken from the store", flush=True)
            return kept
        start = time.perf_counter()
        made = make()
        write_kept(path, made)
        print(f"{kind}: made in {time.perf_counter() - start:.1f} s", flush=True)
        return made

    def entries(
        self,
        kind: str,
        determined_by: Mapping[str, Any],
        names: Images,
        make: Make,
        *,
        batch: int,
        shape: tuple[int, ...],
        dtype: DTypeLike,
    ) -> Entries:
        """An asset per sample: only those that the store lacks are made, and a killed run keeps its batches.

        Args:
            kind: kind of asset, for the folder's name and the progress bar.
            determined_by: JSON values that all entries depend on, as for `arrays`.
            names: n different names, uint8 [n, k]: what each depends on besides (its image's digest, its index).
            make: maker of values [b, ...] for positions [b] among the names; a value must not depend on the others.
            batch: number of entries made and written at a time.
            shape: shape of a value.
            dtype: type of the values.
        """
        folder = None if self.folder is None else self._place(kind, determined_by)
        shards: list[tuple[Path | NDArray[Any], IntArray, IntArray]] = []
        known = np.zeros(len(names), bool)
        if folder is not None and folder.is_dir():
            sweep(folder, ".*.partial")
            # What is there, in files that earlier runs wrote; then the rest, a batch and a file at a time.
            shards = _places(folder, names, known, shape, np.dtype(dtype))
        missing = np.flatnonzero(~known)
        parts = [missing[start : start + batch] for start in range(0, len(missing), batch)]
        if folder is None:
            # Values at once, as there is no file to read them from again.
            made: list[NDArray[Any] | Path] = [
                make(positions) for positions in progress(parts, what=kind, unit="shard", total=len(parts))
            ]
        else:
            # A file is named by the names in it: two runs that make the same entries write the same file.
            places = [
                folder / f"{hashlib.sha256(names[positions].tobytes()).hexdigest()[:24]}.npz" for positions in parts
            ]

            for path in places:
                # Whatever lies there is damaged or of another kind: it was not taken above.
                path.unlink(missing_ok=True)

            def shard(number: int) -> None:
                positions = parts[number]
                kept = {"names": names[positions], "values": make(positions)}
                write_kept(places[number], kept, sweeping=False)

            self.engine(Sharded(kind, len(parts), shard, lambda number: places[number].is_file()))
            made = [*places]
        shards += [(place, np.arange(len(rows)), rows) for place, rows in zip(made, parts, strict=True)]
        return Entries(len(missing), len(names) - len(missing), shards, make)

    def parts(
        self, kind: str, determined_by: Mapping[str, Any], count: int, make: Callable[[int], Arrays]
    ) -> Iterator[Arrays]:
        """The parts of an asset, which a killed run keeps: `forget_parts` when what they are for is done.

        Args:
            kind, determined_by: as for `arrays`.
            count: number of parts.
            make: maker of the part of a number from 0 on; it must not depend on the others.
        """
        if self.folder is None:
            yield from map(make, progress(range(count), what=kind, unit="shard", total=count))
            return
        folder = self._place(kind, determined_by)
        self._parts.append(folder)
        if folder.is_dir():
            sweep(folder, ".*.partial")
        places = [folder / f"{number:05d}.npz" for number in range(count)]
        for path in places:
            # Read as a whole, once: what is damaged is not there.
            if path.is_file() and read_kept(path) is None:
                path.unlink(missing_ok=True)

        def shard(number: int) -> None:
            write_kept(places[number], make(number), sweeping=False)

        self.engine(Sharded(kind, count, shard, lambda number: places[number].is_file()))
        for number, path in enumerate(places):
            kept = read_kept(path)
            yield make(number) if kept is None else kept

    def forget_parts(self) -> None:
        """Remove the parts that were asked for."""
        for folder in self._parts:
            shutil.rmtree(folder, ignore_errors=True)

    def _place(self, kind: str, determined_by: Mapping[str, Any]) -> Path:
        """The folder, or the file without its suffix, that everything which determines an asset leads to."""
        assert self.folder is not None
        return self.folder / kind / sha256_json([_VERSION, determined_by])[:24]


def _places(
    folder: Path, names: Images, known: Mask, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> list[tuple[Path | NDArray[Any], IntArray, IntArray]]:
    """The shards that hold any of the names, each name once; `known` is set for the names that are there."""
    shards: list[tuple[Path | NDArray[Any], IntArray, IntArray]] = []
    position_of = {name.tobytes(): position for position, name in enumerate(names)}
    for path in sorted(folder.glob("*.npz")):
        kept = read_kept(path)
        if kept is None or not _fits(kept, names, shape, dtype):
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


def _fits(kept: Arrays, names: Images, shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    """Whether a file holds names and values of the kinds asked for, as many of one as of the other."""
    if set(kept) != {"names", "values"}:
        return False
    theirs, values = kept["names"], kept["values"]
    return (
        (theirs.dtype, theirs.shape[1:]) == (names.dtype, names.shape[1:])
        and values.dtype == dtype
        and values.shape == (len(theirs), *shape)
    )


def read_kept(path: Path) -> Arrays | None:
    """The arrays of a file that `write_kept` wrote, or None where there is none or it is damaged, which is said."""
    if not path.is_file():
        return None
    try:
        arrays = load_arrays(path)
    except UserError:
        # Whatever is wrong with it; what it held is made again in any case.
        arrays = {}
    digest = arrays.pop("digest", np.zeros(0)).tobytes()
    if digest != _digest(path, arrays):
        print(f"{path}: damaged, what it held is made again", flush=True)
        return None
    return arrays


def write_kept(path: Path, arrays: Arrays, *, sweeping: bool = True) -> None:
    """Write arrays with a digest of them and of the file's place, to be made again where it is not right any more."""
    digest = np.frombuffer(_digest(path, arrays), np.uint8)
    with new_file(path, sweeping=sweeping) as staging, staging.open("wb") as file:
        np.savez(file, allow_pickle=False, digest=digest, **arrays)


def _digest(path: Path, arrays: Arrays) -> bytes:
    """SHA-256 of the place (file, folder and the folder's), and of the arrays' names, types, shapes and bytes."""
    # With the place, as a whole file of another asset is no damage that its arrays could tell.
    total = hashlib.sha256("/".join(path.parts[-3:]).encode())
    for name in sorted(arrays):
        total.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        total.update(np.ascontiguousarray(arrays[name]).tobytes())
    return total.digest()
