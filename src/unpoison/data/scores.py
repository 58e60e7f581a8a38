"""Scores: what a detector returns, one per sample it was given, higher = more suspicious for every detector."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import BeforeValidator

from ..core.arrays import Arrays, IntArray, Mask, Pixels
from ..core.errors import ParameterError, UserError
from ..core.files import new_folder
from ..core.hyperparameters import Fraction, NonNegative, Whole
from ..core.manifest import Manifest, Size, check_describes, check_file, read_manifest, write_manifest
from ..core.npy import check_array, check_masks, load_array, load_arrays
from .imageset import ImageSet
from .ranks import rising

FORMAT, DESCRIPTION = "unpoison-scores-3", "scores.json"


def _pair(value: Any) -> Any:
    # JSON knows no tuple: the assumption was written as a list.
    return tuple(value) if isinstance(value, list) else value


class ScoresManifest(Manifest):
    """What `scores.json` holds: a detector's name and arguments, and the fields of `Scores` that are no arrays.

    Attributes:
        count: size of the training set.
        scored: number of its samples that were scored; None: all.
    """

    method: str
    parameters: dict[str, Any]
    count: Whole
    scored: Size | None = None
    forward_passes: NonNegative
    rule: str
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
        index: samples of the training set that were scored, int64 [n], in rising order; None: all.
        flagged: mask of the samples [n] that the method's own rule takes for poison, without the truth; None where there
            is no such rule, or where it does not apply.
        rule: that rule in words, for the report ("entropy below that of 1 % of the trusted images").
    """

    values: Pixels
    forward_passes: float
    aux: Arrays = field(default_factory=dict)
    caption: str = ""
    assumption: Assumption | None = None
    index: IntArray | None = None
    flagged: Mask | None = None
    rule: str = ""

    def within(self, index: IntArray) -> Scores:
        """The scores of a set that is the samples `index` [n] of a larger one, with the numbers these have there."""
        aux = {**self.aux, "index": index[self.aux["index"]]} if self.aux else {}
        return replace(self, aux=aux, index=index)


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What a detector said of training samples, for methods that build on it.

    Attributes:
        data: the k samples that were scored, with their labels as received.
        values: their scores, float32 [k], higher = more suspicious.
        index: their numbers in the training set, int64 [k], in rising order; None: all of it.
        flagged: mask of those [k] that the detector's own rule takes for poison; None where it has none.
        detector: its name, for messages.
    """

    data: ImageSet
    values: Pixels
    index: IntArray | None = None
    flagged: Mask | None = None
    detector: str = "the detector"


def isolate(scored: Scored, clean_share: float, poison_share: float) -> tuple[ImageSet, ImageSet]:
    """The samples that look clean and those that look poisoned: the sets of `ends`."""
    clean, poison = ends(scored, clean_share, poison_share)
    return scored.data.subset(clean), scored.data.subset(poison)


def ends(scored: Scored, clean_share: float, poison_share: float) -> tuple[IntArray, IntArray]:
    """Which samples have the lowest scores and which the highest, as indices by rising score.

    Of n samples these are int(n * share), whatever the scores: equal ones are in the order of `ranks.tie_break`.

    Args:
        scored: n samples with their scores.
        clean_share, poison_share: shares of the samples.

    Raises:
        ParameterError: a share of no sample, or shares that overlap.
    """
    count = len(scored.values)
    for key, share in (("clean_share", clean_share), ("poison_share", poison_share)):
        if not int(count * share):
            raise ParameterError(
                f"{key}: {share} given, allowed: at least {least_share(count)}, one of the {count} samples"
            )
    clean, poison = int(count * clean_share), int(count * poison_share)
    if clean + poison > count:
        raise ParameterError(
            f"poison_share: {poison_share} given, allowed: at most {1 - clean_share:g}, what clean_share leaves"
        )
    order = rising(scored.values)
    return order[:clean], order[count - poison :]


def least_share(count: int) -> str:
    """The smallest share of so many samples that is one of them, rounded up to two digits."""
    share = 1 / count
    digits = 1 - math.floor(math.log10(share))
    return f"{math.ceil(round(share * 10**digits, 6)) / 10**digits:.2g}"


def save_scores(
    scores: Scores,
    folder: Path,
    *,
    method: str,
    parameters: dict[str, Any],
    made_from: dict[str, str] | None = None,
    count: int | None = None,
) -> None:
    """Write `scores.npy`, `aux.npz` and `scores.json`; `flagged.npy` where a rule flags; of a part of the set `index.npy`.

    Args:
        scores: scores of a detector.
        folder: folder that is made or replaced.
        method: name of the detector.
        parameters: its arguments.
        made_from: digest by name of each artefact that was scored.
        count: size of the training set; None: as many as there are scores.

    Raises:
        UserError: a score is not finite, or all are the same but for rounding, which would make every metric meaningless.
    """
    _check_scores(method, scores.values)
    with new_folder(folder) as staging:
        np.save(staging / "scores.npy", scores.values.astype(np.float32))
        np.savez(staging / "aux.npz", allow_pickle=False, **scores.aux)
        about = {
            "format": FORMAT,
            "method": method,
            "parameters": parameters,
            "count": len(scores.values) if count is None else count,
            "forward_passes": scores.forward_passes,
            "rule": scores.rule,
            "caption": scores.caption,
            "made_from": made_from or {},
        }
        if scores.flagged is not None:
            np.save(staging / "flagged.npy", scores.flagged.astype(np.bool_))
        if scores.index is not None:
            np.save(staging / "index.npy", scores.index.astype(np.int64))
            about["scored"] = len(scores.index)
        write_manifest(staging, DESCRIPTION, {**about, "assumption": scores.assumption})


def _check_scores(method: str, values: Pixels) -> None:
    """Raises UserError for scores that rank nothing."""
    if bad := int((~np.isfinite(values)).sum()):
        raise UserError(f"{method}: {bad} of {len(values)} scores are not finite; allowed: finite ones")
    low, high = float(values.min()), float(values.max())
    # Differences of a few units in the last place are the order of a sum, not of the samples.
    if high - low <= 8 * np.finfo(np.float32).eps * max(abs(low), abs(high)):
        raise UserError(
            f"{method}: scores of {low:g} to {high:g} for all {len(values)} samples, which rank nothing; allowed: scores that "
            "differ by more than rounding"
        )


def load_scores(folder: Path, *, method: str | None = None, count: int | None = None) -> Scores:
    """The scores in a folder.

    Args:
        folder: folder of the artefact.
        method: detector that they must be of; None: any.
        count: size of the training set that they must be of; None: any.

    Raises:
        UserError: a file is missing, changed or of another format; scores of another detector or training set, or that are
            not finite; samples that are not in it.
    """
    about = read_manifest(folder, DESCRIPTION, FORMAT, ScoresManifest)
    check_describes(folder / DESCRIPTION, about, method=method, count=count)
    path = check_file(folder, about, "scores.npy")
    size = about.count if about.scored is None else about.scored
    values = load_array(path, np.float32, (size,))
    if not np.isfinite(values).all():
        raise UserError(f"{path}: {int((~np.isfinite(values)).sum())} scores are not finite; allowed: finite ones")
    assumption = None if about.assumption is None else Assumption(*about.assumption)
    index = None if about.scored is None else _index(check_file(folder, about, "index.npy"), about.scored, about.count)
    aux = _aux(check_file(folder, about, "aux.npz"), about.count, index)
    flagged = None
    if "flagged.npy" in about.files:
        flagged = load_array(check_file(folder, about, "flagged.npy"), np.bool_, (size,))
    return Scores(values, about.forward_passes, aux, about.caption, assumption, index, flagged, about.rule)


def _index(path: Path, scored: int, count: int) -> IntArray:
    """The samples that were scored."""
    index = load_array(path, np.int64, (scored,))
    if (np.diff(index) <= 0).any() or not 0 <= index[0] <= index[-1] < count:
        raise UserError(f"{path}: allowed: samples 0 to {count - 1} in rising order, each once")
    return index


def _aux(path: Path, count: int, scored: IntArray | None) -> Arrays:
    """The arrays for figures: none, or masks and the samples they are of, out of those that were scored."""
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
    if scored is not None and not np.isin(index, scored).all():
        raise UserError(f"{path}: index: allowed: samples that were scored")
    check_masks(path, masks)
    return aux
