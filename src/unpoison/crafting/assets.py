"""What is expensive to make for an attack (a network, a perturbation, optimised images), made once and kept.

An asset is found by everything that determines it: the data, the settings, and the source code that makes it. So a run
with another rate, target or secret takes what does not depend on these from the store.
"""

from __future__ import annotations

import hashlib
import inspect
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ..core.files import new_file, sha256_json
from ..core.progress import progress
from ..poisoning.trigger import Arrays, IntArray


class AssetStore:
    """A folder of assets. `folder` None keeps nothing, for one-off use."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def arrays(
        self, kind: str, determined_by: dict[str, Any], code: Sequence[ModuleType], make: Callable[[], Arrays]
    ) -> Arrays:
        """One asset, a few arrays.

        Args:
            kind: what it is, for the folder's name and the message ("clean_network").
            determined_by: JSON values: the data set's digest, settings, seed.
            code: modules whose source makes it.
            make: makes it; not called when it is there.
        """
        path = self._path(kind, determined_by, code)
        if path is None:
            return make()
        kept = _read(path.with_suffix(".npz"))
        if kept is not None:
            print(f"{kind}: taken from the store", flush=True)
            return kept
        start = time.perf_counter()
        made = make()
        _write(path.with_suffix(".npz"), made)
        print(f"{kind}: made in {time.perf_counter() - start:.1f} s", flush=True)
        return made

    def samples(
        self,
        kind: str,
        determined_by: dict[str, Any],
        code: Sequence[ModuleType],
        keys: IntArray,
        make: Callable[[IntArray], NDArray[Any]],
        *,
        batch: int,
    ) -> NDArray[Any]:
        """An asset per sample: only those of samples that have none yet are made, and a killed run keeps its batches.

        Args:
            keys: int64 [k], the samples wanted.
            make: keys [b] to an array [b, ...]; what one sample gets must not depend on the others.
            batch: samples made and written at a time.

        Returns:
            [k, ...], in the order of `keys`.
        """
        folder = self._path(kind, determined_by, code)
        found: dict[int, NDArray[Any]] = {}
        for path in sorted(folder.glob("*.npz")) if folder is not None else []:
            kept = _read(path)
            if kept is not None:
                found |= dict(zip(kept["keys"].tolist(), kept["values"], strict=True))
        missing = np.array([key for key in keys.tolist() if key not in found], np.int64)
        starts = range(0, len(missing), batch)
        for start in progress(starts, what=kind, unit="batch", total=len(starts)):
            some = missing[start : start + batch]
            values = make(some)
            found |= dict(zip(some.tolist(), values, strict=True))
            if folder is not None:
                _write(
                    folder / f"{hashlib.sha256(some.tobytes()).hexdigest()[:24]}.npz", {"keys": some, "values": values}
                )
        print(f"{kind}: {len(missing)} made, {len(keys) - len(missing)} taken from the store", flush=True)
        return np.stack([found[key] for key in keys.tolist()])

    def _path(self, kind: str, determined_by: dict[str, Any], code: Sequence[ModuleType]) -> Path | None:
        if self.folder is None:
            return None
        sources = {module.__name__: inspect.getsource(module) for module in code}
        return self.folder / kind / sha256_json({"determined_by": determined_by, "code": sources})[:24]


def _read(path: Path) -> Arrays | None:
    """The arrays of a file, or None where there is none. A damaged file is named and made again."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
        digest = arrays.pop("digest").tobytes()
    except (ValueError, KeyError, OSError, EOFError, BadZipFile):
        digest, arrays = b"", {}
    if digest != _digest(arrays):
        print(f"{path}: damaged, it is made again", flush=True)
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
