"""What a report is made from, looked at before anything is drawn: each error is one line that names the file.

Digests vouch for most artefacts. Metrics, curves and losses have none, so that what is shown of them is checked here: no
figure that is not finite or out of its range reaches a page.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..core.arrays import Pixels
from ..core.errors import ParameterError, UserError, file_of, keys_of
from ..core.files import read_json
from ..core.npy import load_array
from ..data.imageset import ImageSet
from ..data.scores import Scores
from ..poisoning.policy import check_classes
from ..poisoning.truth import Truth
from .escaping import visible
from .metrics import block_at, figure_at, found_at


def read_description(path: Path) -> dict[str, Any]:
    """A model's description, with what the report shows of it."""
    about = read_json(path)
    with file_of(path):
        network, made_by = block_at(about, "network"), block_at(about, "made_by")
        if not isinstance(network.get("name"), str):
            raise ParameterError(f"network.name: {found_at(network, 'name')} found, allowed: a text")
        block_at(network, "arguments", "network")
        if "recipe" in made_by:
            block_at(made_by, "recipe", "made_by")
        for key in ("seed", "machine"):
            if not isinstance(made_by.get(key), str | int):
                raise ParameterError(f"made_by.{key}: {found_at(made_by, key)} found, allowed: a text or a number")
    return about


def check_about(path: Path, about: Mapping[str, Any]) -> None:
    """Raises UserError where a base data set's manifest lacks what the report shows of it."""
    with file_of(path):
        for key in ("name", "source"):
            if not isinstance(about.get(key), str):
                raise ParameterError(f"{key}: {found_at(about, key)} found, allowed: a text")
        for key in block_at(about, "counts"):
            figure_at(about["counts"], key, "counts")


def check_truth(path: Path, truth: Truth | None, data: ImageSet) -> None:
    """Raises UserError where the ground truth is of another number of samples, or names a class that does not exist."""
    if truth is None:
        return
    for name in ("mask", "part", "labels"):
        if (given := getattr(truth, name)).shape != (len(data),):
            raise UserError(
                f"{path.with_name(name)}.npy: {list(given.shape)} found, allowed: {len(data)} training samples"
            )
    for part in truth.parts:
        with file_of(path), keys_of("policy"):
            check_classes(part.policy, len(data.classes))


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


def check_sources(path: Path, sources: Sequence[str], data: ImageSet) -> None:
    """Raises UserError where samples lack a name, or names a sample."""
    if len(sources) != len(data):
        raise UserError(f"{path}: {len(sources)} names found, allowed: {len(data)}, one for each training sample")


def check_scores(path: Path, scores: Scores, data: ImageSet) -> None:
    """Raises UserError for scores that are not one for each sample, and masks that are none of its images."""
    values, aux = scores.values, scores.aux
    if values.shape != (len(data),) or values.dtype.kind != "f" or not np.isfinite(values).all():
        raise UserError(
            f"{path}: scores {values.dtype} {list(values.shape)} found, allowed: {len(data)} finite numbers, one for each "
            "training sample"
        )
    if "masks" not in aux:
        return
    masks, index = aux["masks"], aux.get("index", np.empty(0))
    inside = index.ndim == 1 and index.dtype.kind in "iu" and bool(((index >= 0) & (index < len(data))).all())
    if not inside or masks.shape != (len(index), *data.image_size) or not np.isfinite(masks.astype(np.float32)).all():
        raise UserError(
            f"{path}: masks {list(masks.shape)} of samples {list(index.shape)} found, allowed: "
            f"[k, {data.image_size[0]}, {data.image_size[1]}] of k of the {len(data)} training samples"
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
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            table = pd.read_csv(path, index_col=False, encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the stage that makes it, or `dvc pull`") from None
    # pandas has no common ancestor for what a damaged file can make of it.
    except (ValueError, OSError, Warning, OverflowError) as error:
        raise UserError(f"{path}: not readable as a table ({error})") from None
    if absent := [column for column in columns if column not in table]:
        raise UserError(f"{path}: columns {visible(', '.join(map(str, table.columns))[:200])} found, {absent[0]} is missing")
    for column in dict.fromkeys((*columns, *shares)):
        check_column(path, table[column], share=column in shares)
    return table


def check_column(path: Path, column: pd.Series[Any], *, share: bool) -> None:
    """Raises UserError where a column holds anything but finite numbers, or a share that is none."""
    if not len(column):
        return
    figures = pd.to_numeric(column, errors="coerce") if column.dtype.kind not in "b" else column * np.nan
    values = figures.to_numpy(np.float64)
    wrong = ~np.isfinite(values) | (share & ((values < 0) | (values > 1)))
    if wrong.any() or column.dtype.kind not in "iuf":
        place = int(np.argmax(wrong))
        allowed = "fractions from 0 to 1" if share else "finite numbers"
        # The header is line 1.
        raise UserError(f"{path}: line {place + 2}: {column.name}: {str(column.iloc[place])[:40]!r} found, allowed: {allowed}")


def read_roc(path: Path) -> pd.DataFrame:
    """The ROC curves: `fpr`, rising from 0 to 1, and a column per detector."""
    table = read_curve(path, ["fpr"], shares=["fpr"])
    for name in table.columns:
        check_column(path, table[name], share=True)
    rates = table["fpr"].to_numpy()
    if not len(rates) or (np.diff(rates) < 0).any():
        raise UserError(f"{path}: fpr: {len(rates)} rates found, allowed: at least one, in rising order")
    return table


def read_losses(path: Path, data: ImageSet) -> Pixels:
    """Losses of every training sample in every epoch, float [epochs, n], NaN where a sample was left out of an epoch."""
    losses = load_array(path)
    if losses.ndim != 2 or losses.dtype.kind != "f" or losses.shape[1] != len(data) or np.isinf(losses).any():
        raise UserError(
            f"{path}: {losses.dtype} {list(losses.shape)} found, allowed: losses [epochs, {len(data)}], none of them infinite"
        )
    return losses
