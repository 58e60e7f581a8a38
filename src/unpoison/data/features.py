"""Features: a suspect model's logits and penultimate features of every image of a set, which several detectors share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.format import write_array_header_1_0
from numpy.typing import NDArray

from ..core.arrays import IntArray
from ..core.errors import UserError
from ..core.files import new_folder
from ..core.hyperparameters import Whole
from ..core.manifest import Manifest, check_file, read_manifest, write_manifest
from ..core.npy import load_array

FORMAT, DESCRIPTION = "unpoison-features-1", "features.json"

Rows = NDArray[np.float32]
# Rows that are looked at together, 16 MiB of a thousand features.
_ROWS = 4096


class FeaturesManifest(Manifest):
    """What `features.json` holds: the number of samples."""

    count: Whole


class MappedRows:
    """Rows float32 [n, d] in a .npy file, which is mapped for the length of one read only, as by `shards.Shards`.

    Raises:
        UserError: other than `count` rows, or a value that is not finite.
    """

    def __init__(self, path: Path, count: int) -> None:
        self.path = path
        mapped = load_array(path, np.float32, (count, "d"), mmap=True)
        self.shape = mapped.shape
        for start in range(0, count, _ROWS):
            if not np.isfinite(mapped[start : start + _ROWS]).all():
                raise UserError(
                    f"{path}: values that are not finite, allowed: those of a model whose training converged"
                )

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, index: IntArray) -> Rows:
        # Copied while the file is mapped; a view would keep the map, and its pages in memory with it.
        rows: Rows = np.array(load_array(self.path, mmap=True)[index])
        return rows


@dataclass(frozen=True)
class Features:
    """Features of n images. Indexing either with int64 [k] gives a fresh array.

    Attributes:
        logits: logits, float32 [n, classes].
        penultimate: input of the network's head, float32 [n, d].
    """

    logits: Rows | MappedRows
    penultimate: Rows | MappedRows


def write_features(folder: Path, batches: Iterable[tuple[Rows, Rows]], count: int, made_from: dict[str, str]) -> None:
    """Write `logits.npy`, `penultimate.npy` and `features.json`.

    Args:
        folder: folder that is made or replaced.
        batches: logits [b, classes] and features [b, d], in the order of the samples; memory holds one batch.
        count: number of samples in all.
        made_from: digest by name of each artefact they were made from.

    Raises:
        ValueError: another number of samples than announced.
        UserError: a value is not finite.
    """
    with new_folder(folder) as staging:
        files = [(staging / f"{name}.npy").open("wb") for name in ("logits", "penultimate")]
        try:
            written = 0
            for pair in batches:
                for file, rows in zip(files, pair, strict=True):
                    if not np.isfinite(rows).all():
                        raise UserError(
                            f"{folder}: features that are not finite, as of a model whose training diverged"
                        )
                    # The header needs the number of columns, which the first batch tells.
                    if not written:
                        shape = (count, rows.shape[1])
                        write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
                    file.write(np.ascontiguousarray(rows, "<f4").tobytes())
                written += len(pair[0])
        finally:
            for file in files:
                file.close()
        if written != count:
            raise ValueError(f"{folder}: {count} samples announced, {written} written")
        write_manifest(staging, DESCRIPTION, {"format": FORMAT, "count": count, "made_from": made_from})


def read_features(folder: Path) -> Features:
    """The features in a folder, read from disk as they are used.

    Raises:
        UserError: a file is missing, changed or of another format; other sizes than announced; values that are not finite.
    """
    about = read_manifest(folder, DESCRIPTION, FORMAT, FeaturesManifest)
    files = (check_file(folder, about, f"{name}.npy") for name in ("logits", "penultimate"))
    return Features(*(MappedRows(path, about.count) for path in files))
