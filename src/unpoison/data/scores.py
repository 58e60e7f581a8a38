"""Scores: what a detector returns, one per training sample, higher = more suspicious for every detector."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import BeforeValidator

from ..core.arrays import Arrays, Pixels
from ..core.errors import UserError
from ..core.files import new_folder
from ..core.hyperparameters import Fraction, NonNegative, Whole
from ..core.manifest import Manifest, check_file, read_manifest, write_manifest
from ..core.npy import check_array, load_array, load_arrays

FORMAT, DESCRIPTION = "unpoison-scores-2", "scores.json"


def _pair(value: Any) -> Any:
    # JSON knows no tuple: the assumption was written as a list.
    return tuple(value) if isinstance(value, list) else value


class ScoresManifest(Manifest):
    """What `scores.json` holds: a detector's name and arguments, and the fields of `Scores` that are no arrays."""

    method: str
    parameters: dict[str, Any]
    count: Whole
    forward_passes: NonNegative
    caption: str
    assumption: Annotated[tuple[str, Fraction], BeforeValidator(_pair)] | None


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


def load_scores(folder: Path, *, method: str | None = None, count: int | None = None) -> Scores:
    """The scores in a folder.

    Args:
        folder: folder of the artefact.
        method: detector that they must be of; None: any.
        count: number of samples that they must be for; None: any.

    Raises:
        UserError: a file is missing, changed or of another format; scores of another detector or number of samples, or
            that are not finite.
    """
    about = read_manifest(folder, DESCRIPTION, FORMAT, ScoresManifest)
    for key, found, wanted in (("method", about.method, method), ("count", about.count, count)):
        if wanted is not None and found != wanted:
            raise UserError(f"{folder / DESCRIPTION}: {key}: {str(found)[:80]!r} found, allowed: {wanted!r}")
    path = check_file(folder, about, "scores.npy")
    values = load_array(path, np.float32, (about.count,))
    if not np.isfinite(values).all():
        raise UserError(f"{path}: {int((~np.isfinite(values)).sum())} scores are not finite; allowed: finite ones")
    assumption = None if about.assumption is None else Assumption(*about.assumption)
    return Scores(
        values, about.forward_passes, _aux(check_file(folder, about, "aux.npz"), about.count), about.caption, assumption
    )


def _aux(path: Path, count: int) -> Arrays:
    """The arrays for figures: none, or masks and the samples they are of."""
    aux = load_arrays(path)
    if not aux:
        return aux
    if set(aux) != {"index", "masks"}:
        raise UserError(
            f"{path}: arrays {', '.join(map(repr, sorted(aux)))[:200]} found, allowed: none, or index and masks"
        )
    index, masks = aux["index"], aux["masks"]
    check_array(path, index.dtype, index.shape, np.int64, ("k",))
    check_array(path, masks.dtype, masks.shape, None, (len(index), "height", "width"))
    if len(np.unique(index)) != len(index) or (len(index) and not 0 <= index.min() <= index.max() < count):
        raise UserError(f"{path}: index: allowed: samples 0 to {count - 1}, each once")
    if masks.dtype.kind != "f" or not ((masks >= 0) & (masks <= 1)).all():
        raise UserError(f"{path}: masks: allowed: real numbers of 0 to 1")
    return aux
