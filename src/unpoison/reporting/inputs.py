"""What a report is made from, looked at before anything is drawn: each error is one line that names the file.

Digests and manifests vouch for most artefacts. Metrics, curves and losses have none, so that what is shown of them is
checked here: no figure that is not finite or out of its range reaches a page.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from annotated_types import Ge, Len

from ..core.arrays import Pixels
from ..core.errors import UserError, file_of
from ..core.files import open_file, read_json
from ..core.manifest import typed
from ..core.npy import load_array
from ..data.imageset import ImageSet
from ..data.scores import Scores
from ..data.verdicts import Verdict
from .escaping import visible
from .metrics import block_at

_MADE_BY = {
    "privacy": Annotated[dict[Literal["epsilon", "delta", "noise", "clip"], Annotated[float, Ge(0)]], Len(4)],
    "federation": dict[str, Any],
}
"""What `model.json` says of a training that the page takes apart; all else of it is shown as it is."""


def check_made_by(path: Path, made_by: Mapping[str, Any]) -> None:
    """Raises UserError where a model's description, `path`, says of its training what cannot be."""
    with file_of(path):
        for key in _MADE_BY.keys() & made_by.keys():
            typed(f"made_by.{key}", made_by[key], _MADE_BY[key])


def sampler_of(path: Path, variations: ImageSet, data: ImageSet) -> dict[str, Any]:
    """Settings of the variations, which are several for each sample, as many for one as for the other."""
    with file_of(path):
        sampler = dict(block_at(read_json(path), "sampler"))
    if not len(variations) or len(variations) % len(data) or variations.base.shape[1:] != data.base.shape[1:]:
        raise UserError(
            f"{path}: variations {list(variations.base.shape)} found, allowed: as many for each of the {len(data)} training "
            f"samples, {list(data.base.shape[1:])}"
        )
    return sampler


def check_masks(path: Path, scores: Scores, data: ImageSet) -> None:
    """Raises UserError where a detector's masks are not of the images' size."""
    masks = scores.aux.get("masks")
    if masks is not None and masks.shape[1:] != data.image_size:
        raise UserError(
            f"{path}: masks {list(masks.shape)} found, allowed: of the images' size, {list(data.image_size)}"
        )


def check_patches(path: Path, verdict: Verdict, data: ImageSet) -> None:
    """Raises UserError where an inspector's patches are not of the images' size and channels."""
    patterns = verdict.aux.get("patterns")
    if patterns is not None and patterns.shape[1:] != (data.channels, *data.image_size):
        raise UserError(
            f"{path}: patterns {list(patterns.shape)} found, allowed: of the images' channels and size, "
            f"{[data.channels, *data.image_size]}"
        )


def read_curve(path: Path, columns: Sequence[str], *, shares: Sequence[str] = ()) -> pd.DataFrame:
    """The columns of a table of figures.

    Args:
        path: CSV file with a header.
        columns: names of columns that it must have.
        shares: names of those that are fractions in [0, 1].

    Raises:
        UserError: another table, or a figure in one of these columns that is not finite or out of its range.
    """
    try:
        # A row that is too long would be skipped with a warning, or its first cell taken for the name of the row.
        with open_file(path) as file, warnings.catch_warnings():
            warnings.simplefilter("error")
            table = pd.read_csv(file, index_col=False, encoding="utf-8")
    except UserError:
        raise
    # pandas has no common ancestor for what a damaged file can make of it.
    except (ValueError, Warning, OverflowError) as error:
        raise UserError(f"{path}: not readable as a table ({error})") from None
    if absent := [column for column in columns if column not in table]:
        raise UserError(
            f"{path}: columns {visible(', '.join(map(str, table.columns))[:200])} found, {absent[0]} is missing"
        )
    for column in dict.fromkeys((*columns, *shares)):
        check_column(path, table[column], share=column in shares)
    return table


def check_column(path: Path, column: pd.Series[Any], *, share: bool) -> None:
    """Raises UserError where a column holds anything but finite numbers, or a share that is none."""
    if not len(column):
        return
    values = np.array([_number(cell) for cell in column])
    wrong = ~np.isfinite(values) | (share & ((values < 0) | (values > 1)))
    if wrong.any() or column.dtype.kind not in "iuf":
        place = int(np.argmax(wrong))
        allowed = "fractions from 0 to 1" if share else "finite numbers"
        # The header is line 1.
        raise UserError(
            f"{path}: line {place + 2}: {column.name}: {str(column.iloc[place])[:40]!r} found, allowed: {allowed}"
        )


def _number(cell: Any) -> float:
    """A cell's number, NaN where it holds none that a float can."""
    try:
        return float("nan") if isinstance(cell, bool | np.bool_) else float(cell)
    except (ValueError, OverflowError):
        return float("nan")


def read_roc(path: Path) -> pd.DataFrame:
    """The ROC curves: `fpr`, rising from 0 to 1, and a column per detector."""
    table = read_curve(path, ["fpr"], shares=["fpr"])
    for name in table.columns:
        check_column(path, table[name], share=True)
    rates = table["fpr"].to_numpy()
    if not len(rates) or (np.diff(rates) < 0).any():
        raise UserError(f"{path}: fpr: {len(rates)} rates found, allowed: at least one, in rising order")
    return table


def read_intervals(path: Path) -> pd.DataFrame:
    """The ends of the bootstrap intervals, two rows of fractions: `level` and a column for each."""
    table = read_curve(path, ["level"], shares=["level"])
    for name in table.columns:
        check_column(path, table[name], share=True)
    if len(table) != 2:
        raise UserError(f"{path}: {len(table)} rows found, allowed: 2, the ends of each interval")
    return table


def read_line(path: Path) -> pd.DataFrame:
    """ACC and ASR between purified models and the backdoored one: `t`, rising, `METHOD.acc` and `METHOD.asr`; often no row."""
    table = read_curve(path, ["t"], shares=["t"])
    for name in table.columns:
        check_column(path, table[name], share=True)
    if (np.diff(table["t"].to_numpy(float)) <= 0).any():
        raise UserError(f"{path}: t: allowed: places in rising order, each once")
    return table


def read_rounds(path: Path) -> pd.DataFrame:
    """ACC and ASR of the victim after rounds of a federation: `round`, rising, `acc` and `asr`; of most runs no row."""
    table = read_curve(path, ["round"])
    for name in table.columns.drop("round"):
        check_column(path, table[name], share=True)
    if (np.diff(table["round"].to_numpy(float)) <= 0).any():
        raise UserError(f"{path}: round: allowed: numbers in rising order, each once")
    return table


def read_losses(path: Path, data: ImageSet) -> Pixels:
    """Losses of every training sample in every epoch, float32 [epochs, n], NaN where a sample was left out of an epoch."""
    losses = load_array(path, np.float32, ("epochs", len(data)))
    if np.isinf(losses).any():
        raise UserError(f"{path}: {int(np.isinf(losses).sum())} losses are infinite, allowed: none")
    return losses
