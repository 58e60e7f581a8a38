"""The content-keyed store of variations: what was generated once is never generated again.

A variation is found by (image bytes, sample key) inside a folder for (prior, sampler settings, seed). Changing an attack
or its rate therefore generates only the images that changed. Work is done in shards, each written to a temporary name
and renamed, so a killed run loses one shard at most.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ..data.files import new_file, sha256_json
from ..data.imageset import ImageSet, IntArray
from ..training.progress import progress

Generate = Callable[[NDArray[np.uint8], IntArray], NDArray[np.uint8]]
"""(images uint8 [b, h, w, c], sample keys [b]) -> variations uint8 [b, v, h, w, c]"""


@dataclass(frozen=True)
class Outcome:
    """variations uint8 [n, v, h, w, c] in the order of the data set, and where they came from."""

    images: NDArray[np.uint8]
    generated: int
    reused: int


def generate_all(
    data: ImageSet, determined_by: dict[str, Any], generate: Generate, *, store: Path, batch: int
) -> Outcome:
    """Variations of every sample, from the store where they are there.

    Args:
        data: the images; a sample's key is its index.
        determined_by: everything else a variation depends on (JSON values): prior's digest, settings, seed.
        generate: called with at most `batch` images at a time; the result for one image must not depend on the others.
        store: the folder of the store.
        batch: images per shard.
    """
    folder = store / sha256_json(determined_by)[:16]
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".*.partial"):
        leftover.unlink()
    found = _read_shards(folder)
    keys = np.arange(len(data))
    names = [_name(image, key) for key, image in _rows(data, keys)]
    missing = np.array([key for key in keys if names[key] not in found], dtype=np.int64)
    chunks = [missing[start : start + batch] for start in range(0, len(missing), batch)]
    for chunk in progress(chunks, what="variations", unit="shard", total=len(chunks)):
        made = generate(data.gather(chunk), chunk)
        shard = [names[key] for key in chunk]
        _write_shard(folder, shard, made)
        found.update(zip(shard, made, strict=True))
    images = np.stack([found[name] for name in names])
    return Outcome(images, generated=len(missing), reused=len(data) - len(missing))


def _rows(data: ImageSet, keys: IntArray) -> list[tuple[int, NDArray[np.uint8]]]:
    return list(zip(keys.tolist(), data.gather(keys), strict=True))


def _name(image: NDArray[np.uint8], key: int) -> bytes:
    return hashlib.sha256(image.tobytes() + int(key).to_bytes(8, "little")).digest()


def _write_shard(folder: Path, names: list[bytes], images: NDArray[np.uint8]) -> None:
    rows = np.frombuffer(b"".join(names), np.uint8).reshape(len(names), 32)
    digest = hashlib.sha256(rows.tobytes() + images.tobytes()).digest()
    path = folder / f"{hashlib.sha256(rows.tobytes()).hexdigest()[:24]}.npz"
    with new_file(path) as staging, staging.open("wb") as file:
        np.savez(file, names=rows, images=images, digest=np.frombuffer(digest, np.uint8))


def _read_shards(folder: Path) -> dict[bytes, NDArray[np.uint8]]:
    """All variations in the folder. A damaged shard is named and left out: its images are generated again."""
    found: dict[bytes, NDArray[np.uint8]] = {}
    for path in sorted(folder.glob("*.npz")):
        try:
            with np.load(path, allow_pickle=False) as shard:
                rows, images, digest = shard["names"], shard["images"], shard["digest"].tobytes()
            intact = hashlib.sha256(rows.tobytes() + images.tobytes()).digest() == digest
        except (ValueError, KeyError, OSError, EOFError, BadZipFile):
            intact = False
        if not intact:
            print(f"{path}: damaged, its images are generated again", flush=True)
            continue
        found.update(zip((row.tobytes() for row in rows), images, strict=True))
    return found
