"""What a detector returns: one score per training sample, higher = more suspicious for every detector."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..core.arrays import Arrays, Pixels
from ..core.errors import UserError
from ..core.files import check_file, load_array, new_folder, read_manifest, write_manifest

FORMAT, DESCRIPTION = "unpoison-scores-2", "scores.json"


class Assumption(NamedTuple):
    """What a detector takes for granted of the poison, in words, and the share of a class from which that is wrong."""

    text: str
    least_share: float


@dataclass(frozen=True)
class Scores:
    """Scores and their cost.

    Attributes:
        values: float32 [n], higher = more suspicious, finite.
        forward_passes: network passes per sample; a backward pass counts as two (to the weights) or one (to the input).
        aux: arrays for figures: `masks` [k, h, w] in [0, 1] and `index` [k], the samples they are of.
        caption: what a figure of the masks shows.
        assumption: what the detector assumes of the poison; None: nothing that a share of a class could break.
    """

    values: Pixels
    forward_passes: float
    aux: Arrays = field(default_factory=dict)
    caption: str = ""
    assumption: Assumption | None = None


def save_scores(
    scores: Scores, folder: Path, *, method: str, parameters: dict[str, Any], made_from: dict[str, str] | None = None
) -> None:
    """Write `scores.npy`, `aux.npz` and `scores.json`.

    Args:
        method, parameters: the detector and its arguments.
        made_from: name to digest of the artefacts that were scored.

    Raises:
        UserError: a score is not finite, which would make every metric meaningless.
    """
    bad = int((~np.isfinite(scores.values)).sum())
    if bad:
        raise UserError(f"{method}: {bad} of {len(scores.values)} scores are not finite; allowed: finite ones")
    with new_folder(folder) as staging:
        np.save(staging / "scores.npy", scores.values.astype(np.float32))
        np.savez(staging / "aux.npz", allow_pickle=False, **scores.aux)
        about = {"format": FORMAT, "method": method, "parameters": parameters, "count": len(scores.values)}
        about |= {"forward_passes": scores.forward_passes, "caption": scores.caption, "made_from": made_from or {}}
        write_manifest(staging, DESCRIPTION, {**about, "assumption": scores.assumption})


def load_scores(folder: Path) -> Scores:
    """Raises UserError for a file that is missing, changed or of another format."""
    about = read_manifest(folder, DESCRIPTION, FORMAT)
    values = load_array(check_file(folder, about, "scores.npy"))
    assumption = None if about["assumption"] is None else Assumption(*about["assumption"])
    with np.load(check_file(folder, about, "aux.npz"), allow_pickle=False) as archive:
        return Scores(values, about["forward_passes"], dict(archive), about["caption"], assumption)
