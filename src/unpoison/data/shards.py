"""Images on disk as one or several .npy files, read and written by row: memory holds a batch, never the set."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib.format import write_array_header_1_0

from ..core.arrays import Images, IntArray
from ..core.errors import UserError
from ..core.npy import load_array

SHARD_BYTES = 1 << 30
"""A set larger than this is cut into files of at most this size."""


class Shards:
    """uint8 [n, height, width, channels] over .npy files, all but the last with the same number of rows.

    Indexing with an int64 array or a slice reads those rows into a fresh array. The files are mapped for the length of
    one read only: pages of a lasting map would count as resident memory until the whole set is in it.
    """

    def __init__(self, paths: list[Path]) -> None:
        first = load_array(paths[0], np.uint8, ("n", "height", "width", "channels"), mmap=True)
        maps = [first, *(load_array(path, np.uint8, ("n", *first.shape[1:]), mmap=True) for path in paths[1:])]
        self.paths = paths
        self._rows = max(1, len(maps[0]))
        self.shape = (sum(map(len, maps)), *maps[0].shape[1:])
        # Equal sizes make a row's shard and place a division, without a table of where each shard begins.
        if any(len(images) != self._rows for images in maps[:-1]):
            raise UserError(
                f"{paths[0].parent}: shards of {[len(m) for m in maps]} images, allowed: even but for the last"
            )

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape))

    def __getitem__(self, index: IntArray | slice) -> Images:
        rows = np.arange(len(self))[index] if isinstance(index, slice) else index
        images = np.empty((len(rows), *self.shape[1:]), np.uint8)
        # Shard by shard, so that each file is mapped once whatever the order of the rows.
        shard, place = np.divmod(rows, self._rows)
        for number in np.unique(shard):
            positions = np.flatnonzero(shard == number)
            images[positions] = load_array(self.paths[number], mmap=True)[place[positions]]
        return images


class ShardWriter:
    """Files for `count` images of `shape` (height, width, channels), to be filled row by row in any order."""

    def __init__(self, folder: Path, count: int, shape: tuple[int, int, int]) -> None:
        self.folder, self.shape = folder, shape
        self.filled = np.zeros(count, bool)
        self._row_bytes = int(np.prod(shape))
        self._rows = max(1, SHARD_BYTES // self._row_bytes)
        # An empty set has one file as well, of no rows, so that its shape is on record.
        sizes = [min(self._rows, count - first) for first in range(0, count, self._rows)] or [0]
        names = ["images.npy"] if len(sizes) == 1 else [f"images-{number:05d}.npy" for number in range(len(sizes))]
        self.paths = [folder / name for name in names]
        folder.mkdir(parents=True, exist_ok=True)
        self._files: list[BinaryIO] = []
        self._offsets: list[int] = []
        for path, size in zip(self.paths, sizes, strict=True):
            # The header of a .npy file, then its full length at once: rows can be written at their places in any order.
            file = path.open("w+b")
            write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (size, *shape)})
            self._offsets.append(file.tell())
            file.truncate(file.tell() + size * self._row_bytes)
            file.flush()
            self._files.append(file)

    def write(self, rows: IntArray, images: Images) -> None:
        """Put `images` uint8 [k, height, width, channels] at `rows` int64 [k]."""
        if images.shape[1:] != self.shape or images.dtype != np.uint8:
            raise ValueError(f"{images.dtype} {images.shape[1:]} given, allowed: uint8 {self.shape}")
        # Stretches of consecutive rows of one shard go out in one call each, from the array's own memory.
        images = np.ascontiguousarray(images)
        for first, last in _runs(rows, self._rows):
            shard, row = divmod(int(rows[first]), self._rows)
            data = images[first:last].reshape(-1).data
            at = self._offsets[shard] + row * self._row_bytes
            while data:
                # One call writes at most 2 GiB, and may write less than it was given.
                done = os.pwrite(self._files[shard].fileno(), data, at)
                data, at = data[done:], at + done
        self.filled[rows] = True

    def close(self) -> IntArray:
        """Finish the files, without the rows that were never written. Returns the rows that were, in order."""
        for file in self._files:
            file.close()
        kept = np.flatnonzero(self.filled)
        if len(kept) < len(self.filled):
            self._compact(kept)
        return kept

    def _compact(self, kept: IntArray) -> None:
        # Into new files, as another number of rows is another header and other boundaries between shards; 64 MiB at a time.
        holder = self.folder / ".compact"
        old, new = Shards(self.paths), ShardWriter(holder, len(kept), self.shape)
        step = max(1, (64 << 20) // self._row_bytes)
        for first in range(0, len(kept), step):
            rows = kept[first : first + step]
            new.write(np.arange(first, first + len(rows)), old[rows])
        new.close()
        for path in self.paths:
            path.unlink()
        self.paths = [path.replace(self.folder / path.name) for path in new.paths]
        holder.rmdir()


def shard_names(files: list[str], folder: str) -> list[str]:
    """Names, among a manifest's files, of those that hold the images of a folder, in order."""
    if f"{folder}images.npy" in files:
        return [f"{folder}images.npy"]
    return sorted(name for name in files if re.fullmatch(rf"{re.escape(folder)}images-\d{{5}}\.npy", name))


def _runs(rows: IntArray, per_shard: int) -> Iterator[tuple[int, int]]:
    """Stretches of consecutive rows of one shard, as (first, last + 1) positions in `rows`."""
    if not len(rows):
        return
    # A stretch ends where the next row is not the following one, or lies in another shard.
    breaks = np.flatnonzero((np.diff(rows) != 1) | (np.diff(rows // per_shard) != 0)) + 1
    edges = [0, *breaks.tolist(), len(rows)]
    yield from pairwise(edges)
