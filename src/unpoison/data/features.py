"""What several detectors share: a suspect model's logits and penultimate features of every training sample."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.format import write_array_header_1_0
from numpy.typing import NDArray

from ..core.arrays import IntArray
from ..core.files import check_file, load_array, new_folder, read_manifest, write_manifest

FORMAT, DESCRIPTION = "unpoison-features-1", "features.json"

Rows = NDArray[np.float32]


class MappedRows:
    """float32 [n, d] in a .npy file. It is mapped for the length of one read only, as `shards.Shards` does it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shape = load_array(path, mmap=True).shape

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, index: IntArray) -> Rows:
        rows: Rows = np.array(load_array(self.path, mmap=True)[index])
        return rows


@dataclass(frozen=True)
class Features:
    """Both are float32 and have a row per training sample; indexing with int64 [k] gives a fresh array.

    Attributes:
        logits: [n, classes].
        penultimate: [n, d], what the head takes.
    """

    logits: Rows | MappedRows
    penultimate: Rows | MappedRows


def write_features(folder: Path, batches: Iterable[tuple[Rows, Rows]], count: int, made_from: dict[str, str]) -> None:
    """Write `logits.npy`, `penultimate.npy` and `features.json`.

    Args:
        batches: logits [b, classes] and features [b, d], in the order of the samples; memory holds one batch.
        count: samples in all.
        made_from: name to digest of the artefacts that they are of.
    """
    with new_folder(folder) as staging:
        files = [(staging / f"{name}.npy").open("wb") for name in ("logits", "penultimate")]
        try:
            written = 0
            for pair in batches:
                for file, rows in zip(files, pair, strict=True):
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
    """Raises UserError for a file that is missing, changed or of another format."""
    about = read_manifest(folder, DESCRIPTION, FORMAT)
    return Features(*(MappedRows(check_file(folder, about, f"{name}.npy")) for name in ("logits", "penultimate")))
