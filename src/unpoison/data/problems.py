"""Problems of a data set that are no backdoor, as the stage `examine` finds them and the report shows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.arrays import IntArray
from ..core.errors import UserError
from ..core.files import new_folder
from ..core.hyperparameters import Whole
from ..core.manifest import Manifest, Name, check_file, read_manifest, write_manifest
from ..core.npy import load_array

FORMAT, DESCRIPTION = "unpoison-problems-1", "problems.json"


class ProblemsManifest(Manifest):
    """What `problems.json` holds.

    Attributes:
        splits: number of images in each split that was looked at, `train` first.
        classes: number of classes.
        copies: training samples that are, pixel by pixel, another one of their class.
    """

    splits: dict[Name, Whole]
    classes: Whole
    copies: Whole


@dataclass(frozen=True)
class Problems:
    """What is wrong with n training samples as received, and with images of other splits, besides a backdoor.

    Rows count the images of all splits, the training samples first, from 0.

    Attributes:
        pairs: rows of images that are copies or near copies, though of different classes or splits, int64 [k, 2], the first
            below the second.
        distances: mean difference of the pixels of each pair, as a share of the whole range, float32 [k]; 0: copies.
        constant: rows of images of one colour, int64 [c], rising.
        contradicted: the class that the model gives each training sample against its label, int64 [n]; -1: none.
        copies: number of training samples that are, pixel by pixel, another one of their class.
    """

    pairs: IntArray
    distances: NDArray[np.float32]
    constant: IntArray
    contradicted: IntArray
    copies: int


def save_problems(
    problems: Problems, folder: Path, *, splits: Mapping[str, int], classes: int, made_from: dict[str, str]
) -> None:
    """Write `pairs.npy`, `distances.npy`, `constant.npy`, `contradicted.npy` and `problems.json`.

    Args:
        problems: what was found.
        folder: folder that is made or replaced.
        splits: number of images in each split, in the order of the rows.
        classes: number of classes.
        made_from: digest by name of each artefact that was looked at.
    """
    with new_folder(folder) as staging:
        np.save(staging / "pairs.npy", problems.pairs.astype(np.int64))
        np.save(staging / "distances.npy", problems.distances.astype(np.float32))
        np.save(staging / "constant.npy", problems.constant.astype(np.int64))
        np.save(staging / "contradicted.npy", problems.contradicted.astype(np.int64))
        about = {
            "format": FORMAT,
            "splits": dict(splits),
            "classes": classes,
            "copies": problems.copies,
            "made_from": made_from,
        }
        write_manifest(staging, DESCRIPTION, about)


def load_problems(folder: Path, *, splits: Mapping[str, int], classes: int) -> Problems:
    """The problems in a folder.

    Args:
        folder: folder of the artefact.
        splits: number of images in each split that it must be of, in the order of the rows, `train` first.
        classes: number of classes that it must be of.

    Raises:
        UserError: a file is missing, changed or of another format; problems of other images; rows or classes that there are
            not; distances that are no shares.
    """
    about = read_manifest(folder, DESCRIPTION, FORMAT, ProblemsManifest)
    found_of, wanted = ({**one, "classes": count} for one, count in ((about.splits, about.classes), (splits, classes)))
    if found_of != wanted:
        raise UserError(f"{folder / DESCRIPTION}: of {found_of} found, allowed: of {wanted}"[:1000])
    rows = sum(splits.values())

    def load(name: str, kind: type, shape: tuple[int | str, ...]) -> NDArray[Any]:
        return load_array(check_file(folder, about, f"{name}.npy"), kind, shape)

    pairs = load("pairs", np.int64, ("k", 2))
    found = Problems(
        pairs=pairs,
        distances=load("distances", np.float32, (len(pairs),)),
        constant=load("constant", np.int64, ("c",)),
        contradicted=load("contradicted", np.int64, (splits["train"],)),
        copies=about.copies,
    )
    for name, values, low, high in (
        ("pairs", found.pairs, 0, rows - 1),
        ("constant", found.constant, 0, rows - 1),
        ("contradicted", found.contradicted, -1, classes - 1),
        ("distances", found.distances, 0, 1),
    ):
        # Written so that what is no number fails too.
        if bad := int((~((values >= low) & (values <= high))).sum()):
            raise UserError(f"{folder / name}.npy: {bad} values found that are not from {low} to {high}")
    if (pairs[:, 0] >= pairs[:, 1]).any() or (np.diff(found.constant) <= 0).any():
        raise UserError(
            f"{folder}: rows out of order found, allowed: the first of a pair below the second, rising rows"
        )
    return found
