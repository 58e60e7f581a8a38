"""Scores: what a detector returns, one per training sample, higher = more suspicious for every detector."""

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
    """An assumption of a detector about the poison.

    Attributes:
        text: the assumption in words, for the report ("takes poison for a small outlying part of a class").
        least_share: share of poison in a class from which on it does not hold.
    """

    text: str
    least_share: float


@dataclass(frozen=True)
class Scores:
    """Scores of n samples and their cost.

    Attributes:
        values: score of each sample, float32 [n], higher = more suspicious, finite.
        forward_passes: network passes per sample; a backward pass counts as two (to the weights) or one (to the input).
        aux: arrays for figures: `masks` [k, h, w] in [0, 1] of the samples `index` [k].
        caption: caption for a figure of the masks.
        assumption: assumption about the poison that a share of a class could break; None without one.
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
        scores: scores of a detector.
        folder: folder that is made or replaced.
        method: name of the detector.
        parameters: its arguments.
        made_from: digest by name of each artefact that was scored.

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
    """The scores in a folder.

    Raises:
        UserError: a file is missing, changed or of another format.
    """
    about = read_manifest(folder, DESCRIPTION, FORMAT)
    values = load_array(check_file(folder, about, "scores.npy"))
    # JSON knows no named tuple: the assumption comes back as a list.
    assumption = None if about["assumption"] is None else Assumption(*about["assumption"])
    with np.load(check_file(folder, about, "aux.npz"), allow_pickle=False) as archive:
        return Scores(values, about["forward_passes"], dict(archive), about["caption"], assumption)
