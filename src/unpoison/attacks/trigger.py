"""What a trigger is, and how it is kept on disk without pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..data.files import check_file, new_folder, read_json, write_manifest
from ..errors import UserError

Images = NDArray[np.uint8]
Arrays = dict[str, NDArray[Any]]

DESCRIPTION, ARRAYS = "trigger.json", "trigger.npz"


class Trigger(Protocol):
    """Stamps images. The result for one image depends on that image and its key only, never on the batch.

    Attributes:
        settings: JSON values that, with `arrays`, rebuild the trigger.
        arrays: pixel data.
    """

    @property
    def settings(self) -> dict[str, Any]: ...

    @property
    def arrays(self) -> Arrays: ...

    def __call__(self, images: Images, keys: NDArray[np.int64]) -> Images:
        """uint8 [n, h, w, c] and a key per image (its index in its split) to stamped images of the same shape."""
        ...


def save_trigger(folder: Path, attack: str, trigger: Trigger) -> None:
    with new_folder(folder) as staging:
        np.savez(staging / ARRAYS, allow_pickle=False, **trigger.arrays)
        about = {"format": "unpoison-trigger-1", "attack": attack, "settings": trigger.settings}
        write_manifest(staging, DESCRIPTION, about)


def read_trigger(folder: Path) -> tuple[str, dict[str, Any], Arrays]:
    """The attack's name, the trigger's settings and its arrays."""
    about = read_json(folder / DESCRIPTION)
    if about.get("format") != "unpoison-trigger-1":
        raise UserError(f"{folder / DESCRIPTION}: format {about.get('format')!r} found, allowed: 'unpoison-trigger-1'")
    with np.load(check_file(folder, about, ARRAYS), allow_pickle=False) as archive:
        return about["attack"], about["settings"], dict(archive)
