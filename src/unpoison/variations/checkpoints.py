"""Checkpoints of the prior's training: everything that a killed run needs to go on, and to end with the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.arrays import Arrays
from ..core.content_store import read_kept, write_kept
from ..core.errors import UserError

if TYPE_CHECKING:
    from torch.optim import Optimizer

# Of AdamW, for each parameter.
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")
# Where the newest one is damaged, the one before it saves most of the work.
_KEPT = 2

Row = dict[str, float]


class Checkpoints:
    """The checkpoints in a folder, a file for each step that one was written at.

    Their names hold what the training is determined by, so those of another one are not looked at. Several processes may
    train the same prior in one folder: they write the same files.
    """

    def __init__(
        self, folder: Path, determined_by: str, unet: nn.Module, average: nn.Module, optimizer: Optimizer
    ) -> None:
        self.folder, self._key = folder, determined_by[:24]
        self._networks, self._optimizer = {"unet": unet, "average": average}, optimizer

    def save(self, rows: list[Row]) -> None:
        """Write the state after the last row's step."""
        arrays = {name: value.detach().cpu().contiguous().numpy() for name, value in self._tensors().items()}
        arrays["rows"] = np.frombuffer(json.dumps(rows).encode(), np.uint8)
        try:
            write_kept(self.folder / f"{self._key}-{int(rows[-1]['step']):09d}.npz", arrays)
        except UserError as error:
            # A full disk, or the folder removed by a process that has finished: the training itself goes on.
            print(f"prior: no checkpoint written ({error})", flush=True)
        for path in self._paths()[_KEPT:]:
            path.unlink(missing_ok=True)

    def load(self) -> list[Row]:
        """Put the newest checkpoint that is whole into networks and optimiser. Returns its rows, none without one."""
        for path in self._paths():
            kept = read_kept(path)
            rows = None if kept is None else self._restored(kept)
            if rows is not None:
                print(f"prior: going on from the checkpoint at step {rows[-1]['step']}", flush=True)
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

    def _tensors(self) -> dict[str, Tensor]:
        """The tensors of networks and optimiser by name; before its first step an optimiser has none."""
        tensors = {
            f"{name}.{key}": value
            for name, network in self._networks.items()
            for key, value in network.state_dict().items()
        }
        moments: dict[int, dict[str, Tensor]] = self._optimizer.state_dict()["state"]
        return tensors | {f"moments.{i}.{key}": moments[i][key] for i in moments for key in _MOMENTS}

    def _restored(self, kept: Arrays) -> list[Row] | None:
        """Rows of the checkpoint that was put in place, None where it is another network's."""
        parameters = list(self._networks["unet"].parameters())
        shapes = {
            name: tuple(value.shape) for name, value in self._tensors().items() if not name.startswith("moments.")
        }
        for i, parameter in enumerate(parameters):
            shapes |= {f"moments.{i}.{key}": () if key == "step" else tuple(parameter.shape) for key in _MOMENTS}
        rows = kept.pop("rows")
        if {name: value.shape for name, value in kept.items()} != shapes:
            return None
        for name, network in self._networks.items():
            state = {key: torch.from_numpy(kept[f"{name}.{key}"]) for key in network.state_dict()}
            network.load_state_dict(state)
        moments: dict[int, dict[str, Any]] = {}
        for i, parameter in enumerate(parameters):
            entry = {key: torch.from_numpy(kept[f"moments.{i}.{key}"]) for key in _MOMENTS}
            # A fused step walks through memory, so the moments must lie there as the parameter does (channels_last).
            moments[i] = {k: torch.empty_like(parameter).copy_(v) if v.ndim else v for k, v in entry.items()}
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": moments, "param_groups": groups})
        return list(json.loads(rows.tobytes()))
