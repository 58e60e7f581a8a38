"""Checkpoints of a training: everything that a killed run needs to go on, and to end with the same bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..core.arrays import Arrays
from ..core.content_store import read_kept, write_kept
from ..core.errors import UserError

# Where the newest one is damaged, the one before it saves most of the work.
_KEPT = 2

Row = dict[str, float]


class Checkpoints:
    """The checkpoints in a folder, a file for each step or epoch that one was written at.

    Their names hold what the training is determined by, so those of another one are not looked at. Several processes may run
    the same training in one folder: they write the same files.
    """

    def __init__(self, folder: Path, determined_by: str, *, what: str, unit: str) -> None:
        """Checkpoints of a training.

        Args:
            folder: folder that they lie in.
            determined_by: digest of everything that the training depends on.
            what: name of the training, for messages.
            unit: key of the rows that counts: `step` or `epoch`.
        """
        self.folder, self._key, self._what, self._unit = folder, determined_by[:24], what, unit

    def save(self, tensors: Mapping[str, Tensor], rows: list[Row]) -> None:
        """Write the state after the last row.

        Args:
            tensors: what the training works on, by name: networks, moments of optimisers, states of generators.
            rows: its record so far.
        """
        arrays = {name: value.detach().cpu().contiguous().numpy() for name, value in tensors.items()}
        arrays["rows"] = np.frombuffer(json.dumps(rows).encode(), np.uint8)
        try:
            write_kept(self.folder / f"{self._key}-{int(rows[-1][self._unit]):09d}.npz", arrays)
        except UserError as error:
            # A full disk, or the folder removed by a process that has finished: the training itself goes on.
            print(f"{self._what}: no checkpoint written ({error})", flush=True)
        for path in self._paths()[_KEPT:]:
            path.unlink(missing_ok=True)

    def load(self, tensors: Mapping[str, Tensor]) -> list[Row]:
        """Put the newest checkpoint that is whole into the tensors. Returns its rows, none without one."""
        for path in self._paths():
            kept = read_kept(path)
            rows = None if kept is None else _restored(tensors, kept)
            if rows is not None:
                at = f"{self._unit} {int(rows[-1][self._unit])}"
                print(f"{self._what}: going on from the checkpoint at {at}", flush=True)
                return rows
        return []

    def remove(self) -> None:
        """Remove the checkpoints of a training that has ended, and the folder unless another process writes there."""
        for path in self._paths():
            path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _paths(self) -> list[Path]:
        """The files, newest first."""
        return sorted(self.folder.glob(f"{self._key}-*.npz"), reverse=True)


def _restored(tensors: Mapping[str, Tensor], kept: Arrays) -> list[Row] | None:
    """Rows of the checkpoint that was put in place, None where it is another network's."""
    rows = kept.pop("rows")
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    if {name: value.shape for name, value in kept.items()} != shapes:
        return None
    with torch.no_grad():
        for name, value in tensors.items():
            value.copy_(torch.from_numpy(kept[name]))
    return list(json.loads(rows.tobytes()))
