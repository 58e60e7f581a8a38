"""The content-keyed store of variations: what was generated once is never generated again.

A variation is found by (image bytes, sample key) inside a folder for (prior, sampler settings, seed). Changing an attack
or its rate therefore generates only the images that changed. Work is done in shards, each written to a temporary name
and renamed, so a killed run loses one shard at most. Memory holds names and places, and a shard's images at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ..core.files import new_file, sha256_json
from ..core.progress import progress
from ..data.imageset import ImageSet, IntArray

Images = NDArray[np.uint8]
Generate = Callable[[Images, IntArray], Images]
"""(images uint8 [b, h, w, c], sample keys [b]) -> variations uint8 [b, v, h, w, c]"""


@dataclass(frozen=True)
class Outcome:
    """Where the variations of a data set lie in the store, and how they came there.

    Attributes:
        generated, reused: how many samples' variations were made now, and were there before.
        shards: file to (rows in the file, samples of the data set), both int64.
    """

    generated: int
    reused: int
    shards: dict[Path, tuple[IntArray, IntArray]] = field(repr=False)

    def blocks(self) -> Iterator[tuple[IntArray, Images]]:
        """Samples, and their variations uint8 [k, v, h, w, c], a shard at a time."""
        for path, (rows, samples) in self.shards.items():
            with np.load(path, allow_pickle=False) as shard:
                yield samples, shard["images"][rows]


def generate_all(
    data: ImageSet, determined_by: dict[str, Any], generate: Generate, *, store: Path, batch: int
) -> Outcome:
    """Put variations of every sample in the store, but for those that are there.

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
    names = [_name(image, key) for keys in data.chunks() for key, image in zip(keys, data.gather(keys), strict=True)]
    key_of = {name: key for key, name in enumerate(names)}
    shards, found = _places(folder, key_of, len(data))
    missing = np.flatnonzero(~found)
    starts = range(0, len(missing), batch)
    for start in progress(starts, what="variations", unit="shard", total=len(starts)):
        chunk = missing[start : start + batch]
        path = _write_shard(folder, [names[key] for key in chunk], generate(data.gather(chunk), chunk))
        shards[path] = np.arange(len(chunk)), chunk
    return Outcome(len(missing), len(data) - len(missing), shards)


def _places(
    folder: Path, key_of: dict[bytes, int], count: int
) -> tuple[dict[Path, tuple[IntArray, IntArray]], NDArray[np.bool_]]:
    """Which of the samples the store has and where. A damaged shard is named and left out: its images are made again."""
    shards: dict[Path, tuple[IntArray, IntArray]] = {}
    found = np.zeros(count, bool)
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
        keys = np.array([key_of.get(row.tobytes(), -1) for row in rows], np.int64)
        use = np.flatnonzero(keys >= 0)
        use = use[~found[keys[use]]]
        if len(use):
            shards[path] = use, keys[use]
            found[keys[use]] = True
    return shards, found


def _name(image: Images, key: int) -> bytes:
    return hashlib.sha256(image.tobytes() + int(key).to_bytes(8, "little")).digest()


def _write_shard(folder: Path, names: list[bytes], images: Images) -> Path:
    rows = np.frombuffer(b"".join(names), np.uint8).reshape(len(names), 32)
    digest = hashlib.sha256(rows.tobytes() + images.tobytes()).digest()
    path = folder / f"{hashlib.sha256(rows.tobytes()).hexdigest()[:24]}.npz"
    with new_file(path) as staging, staging.open("wb") as file:
        np.savez(file, names=rows, images=images, digest=np.frombuffer(digest, np.uint8))
    return path
