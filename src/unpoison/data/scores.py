"""What a detector returns: one score per training sample, higher = more suspicious for every detector."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import UserError
from ..core.files import check_file, load_array, new_folder, read_json, write_manifest

DESCRIPTION = "scores.json"


@dataclass(frozen=True)
class Scores:
    """Scores and their cost.

    Attributes:
        values: float32 [n], higher = more suspicious, finite.
        forward_passes: network passes per sample; a backward pass counts as two (to the weights) or one (to the input).
        aux: arrays for figures (CD's masks).
    """

    values: NDArray[np.float32]
    forward_passes: float
    aux: dict[str, NDArray[Any]] = field(default_factory=dict)


def save_scores(scores: Scores, folder: Path, *, method: str, parameters: dict[str, Any]) -> None:
    """Write `scores.npy`, `aux.npz` and `scores.json`.

    Raises:
        UserError: a score is not finite, which would make every metric meaningless.
    """
    bad = int((~np.isfinite(scores.values)).sum())
    if bad:
        raise UserError(f"detect.{method}: {bad} of {len(scores.values)} scores are not finite; allowed: finite ones")
    with new_folder(folder) as staging:
        np.save(staging / "scores.npy", scores.values.astype(np.float32))
        np.savez(staging / "aux.npz", allow_pickle=False, **scores.aux)
        about = {"format": "unpoison-scores-1", "method": method, "parameters": parameters, "count": len(scores.values)}
        write_manifest(staging, DESCRIPTION, {**about, "forward_passes": scores.forward_passes})


def load_scores(folder: Path) -> Scores:
    about = read_json(folder / DESCRIPTION)
    if about.get("format") != "unpoison-scores-1":
        raise UserError(f"{folder / DESCRIPTION}: format {about.get('format')!r} found, allowed: 'unpoison-scores-1'")
    values = load_array(check_file(folder, about, "scores.npy"))
    with np.load(check_file(folder, about, "aux.npz"), allow_pickle=False) as archive:
        return Scores(values, about["forward_passes"], dict(archive))
