"""Verdicts: what an inspector says of a model, class by class."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..core.arrays import Arrays, Mask, Pixels
from ..core.errors import UserError
from ..core.files import new_folder
from ..core.hyperparameters import NonNegative
from ..core.manifest import Manifest, Size, check_describes, check_file, read_manifest, write_manifest
from ..core.npy import check_array, check_masks, load_array, load_arrays

FORMAT, DESCRIPTION = "unpoison-verdict-1", "verdict.json"


class VerdictManifest(Manifest):
    """What `verdict.json` holds: an inspector's name and arguments, and the fields of `Verdict` that are no arrays.

    Attributes:
        classes: number of classes.
    """

    method: str
    parameters: dict[str, Any]
    classes: Size
    forward_passes: NonNegative
    rule: str
    caption: str


@dataclass(frozen=True)
class Verdict:
    """What an inspector says of each of a model's k classes.

    Attributes:
        anomaly: how far each class stands out as the target of a backdoor, float32 [k], higher = more suspicious, finite.
        flagged: mask of the classes [k] that the method's own rule takes for targets; none: the model counts as clean.
        rule: that rule in words, for the report.
        forward_passes: images that passed the network in all; a backward pass to the input counts as one more.
        caption: caption for pictures of the patches.
        aux: arrays for pictures, of each class a patch: `masks` [k, h, w], real numbers in [0, 1], and `patterns` uint8
            [k, c, h, w]; or none.
    """

    anomaly: Pixels
    flagged: Mask
    rule: str
    forward_passes: float
    caption: str = ""
    aux: Arrays = field(default_factory=dict)


def save_verdict(
    verdict: Verdict, folder: Path, *, method: str, parameters: dict[str, Any], made_from: dict[str, str] | None = None
) -> None:
    """Write `anomaly.npy`, `flagged.npy`, `aux.npz` and `verdict.json`.

    Args:
        verdict: verdict of an inspector.
        folder: folder that is made or replaced.
        method: name of the inspector.
        parameters: its arguments.
        made_from: digest by name of each artefact that was looked at.

    Raises:
        UserError: an index is not finite.
    """
    if bad := int((~np.isfinite(verdict.anomaly)).sum()):
        raise UserError(
            f"{method}: the index of {bad} of {len(verdict.anomaly)} classes is not finite; allowed: finite ones"
        )
    with new_folder(folder) as staging:
        np.save(staging / "anomaly.npy", verdict.anomaly.astype(np.float32))
        np.save(staging / "flagged.npy", verdict.flagged.astype(np.bool_))
        np.savez(staging / "aux.npz", allow_pickle=False, **verdict.aux)
        about = {
            "format": FORMAT,
            "method": method,
            "parameters": parameters,
            "classes": len(verdict.anomaly),
            "forward_passes": verdict.forward_passes,
            "rule": verdict.rule,
            "caption": verdict.caption,
            "made_from": made_from or {},
        }
        write_manifest(staging, DESCRIPTION, about)


def load_verdict(folder: Path, *, method: str | None = None, classes: int | None = None) -> Verdict:
    """The verdict in a folder.

    Args:
        folder: folder of the artefact.
        method: inspector that it must be of; None: any.
        classes: number of classes that it must be of; None: any.

    Raises:
        UserError: a file is missing, changed or of another format; a verdict of another inspector or number of classes; an
            index that is not finite; patches that are none.
    """
    about = read_manifest(folder, DESCRIPTION, FORMAT, VerdictManifest)
    check_describes(folder / DESCRIPTION, about, method=method, classes=classes)
    path = check_file(folder, about, "anomaly.npy")
    anomaly = load_array(path, np.float32, (about.classes,))
    if bad := int((~np.isfinite(anomaly)).sum()):
        raise UserError(f"{path}: {bad} indices are not finite; allowed: finite ones")
    flagged = load_array(check_file(folder, about, "flagged.npy"), np.bool_, (about.classes,))
    aux = _aux(check_file(folder, about, "aux.npz"), about.classes)
    return Verdict(anomaly, flagged, about.rule, about.forward_passes, about.caption, aux)


def suspected_and_control(verdict: Verdict) -> tuple[int, int] | None:
    """The class whose reversed trigger is the most suspicious, and one to compare it with: the next one above the median index.

    Returns:
        Two numbers of classes; None where the verdict holds no patches, or of fewer than two classes.
    """
    if "masks" not in verdict.aux or len(verdict.anomaly) < 2:
        return None
    order = np.argsort(verdict.anomaly, kind="stable")
    # Of two classes the lower one is the control; of more there is always one at the median beside the highest.
    return int(order[-1]), int(order[(len(order) - 1) // 2])


def _aux(path: Path, classes: int) -> Arrays:
    """The arrays for pictures: none, or a mask and a pattern of the same size for each class."""
    aux = load_arrays(path)
    if not aux:
        return aux
    if set(aux) != {"masks", "patterns"}:
        raise UserError(
            f"{path}: arrays {', '.join(map(repr, sorted(aux)))[:200]} found, allowed: none, or masks and patterns"
        )
    masks, patterns = aux["masks"], aux["patterns"]
    check_array(path, masks.dtype, masks.shape, None, (classes, "height", "width"))
    check_array(path, patterns.dtype, patterns.shape, np.uint8, (classes, "channels", *masks.shape[1:]))
    check_masks(path, masks)
    return aux
