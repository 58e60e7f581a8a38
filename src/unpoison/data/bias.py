"""Masks of attributes: where a network of attributes looks for each of them, on the mean of many images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Len

from ..core.arrays import Images, Pixels
from ..core.errors import UserError
from ..core.hyperparameters import Fraction, Whole
from ..core.manifest import Described, Manifest, check_file, read_manifest, write_manifest
from ..core.npy import check_masks, load_array

FORMAT, DESCRIPTION = "unpoison-bias-1", "bias.json"
NETWORK = "model"
"""The folder of the network of attributes within the artefact."""


class AttributeManifest(Described):
    """An attribute as `bias.json` has it: the fields of `AttributeMask` that are no arrays."""

    name: str
    share: Fraction
    accuracy: Fraction
    balanced: Fraction
    having: Whole
    images: Whole


class BiasManifest(Manifest):
    """What `bias.json` holds."""

    parameters: dict[str, Any]
    attributes: Annotated[list[AttributeManifest], Len(1, 1000)]


@dataclass(frozen=True)
class AttributeMask:
    """One attribute.

    Attributes:
        name: its name.
        share: share of the training samples that have it.
        accuracy: share of held-out images whose value the network gives.
        balanced: the same, of images that have it and of images that lack it in equal parts.
        having: number of held-out images that have it.
        images: number of those that the network knows and whose masks were averaged.
        mask: mean mask, float32 [h, w] in [0, 1]; 0 throughout of no image.
        mean: mean of the same images, uint8 [h, w, c].
    """

    name: str
    share: float
    accuracy: float
    balanced: float
    having: int
    images: int
    mask: Pixels
    mean: Images

    @property
    def peak(self) -> tuple[int, int]:
        """Row and column of the mean mask's largest value, the first of equal ones."""
        row, column = divmod(int(self.mask.argmax()), self.mask.shape[1])
        return row, column

    @property
    def contrast(self) -> float:
        """The mean mask's largest value over its mean: 1 of a mask that is the same everywhere; 0 of no image."""
        mean = float(self.mask.mean(dtype=np.float64))
        return float(self.mask.max()) / mean if mean > 0 else 0.0


def write_bias(
    staging: Path, attributes: list[AttributeMask], *, parameters: dict[str, Any], made_from: dict[str, str]
) -> None:
    """Write `masks.npy`, `means.npy` and `bias.json` into a folder under construction, which may hold the network already."""
    np.save(staging / "masks.npy", np.stack([one.mask for one in attributes]).astype(np.float32))
    np.save(staging / "means.npy", np.stack([one.mean for one in attributes]))
    listed = [{key: getattr(one, key) for key in AttributeManifest.model_fields} for one in attributes]
    about = {"format": FORMAT, "parameters": parameters, "attributes": listed, "made_from": made_from}
    write_manifest(staging, DESCRIPTION, about)


def load_bias(folder: Path, *, image_shape: tuple[int, ...] | None = None) -> list[AttributeMask]:
    """The attributes that `write_bias` wrote.

    Args:
        folder: folder of the artefact.
        image_shape: height, width and channels that the images must have; None: any.

    Raises:
        UserError: a file is missing, changed or of another format; masks that are none; an attribute that is there twice, or of
            which more images were averaged than have it.
    """
    path, about = folder / DESCRIPTION, read_manifest(folder, DESCRIPTION, FORMAT, BiasManifest)
    height, width, channels = ("height", "width", "channels") if image_shape is None else image_shape
    count = len(about.attributes)
    masks: Pixels = load_array(check_file(folder, about, "masks.npy"), np.float32, (count, height, width))
    check_masks(folder / "masks.npy", masks)
    means: Images = load_array(check_file(folder, about, "means.npy"), np.uint8, (*masks.shape, channels))
    if len({one.name for one in about.attributes}) < count:
        raise UserError(f"{path}: attributes: a name is there twice, allowed: each once")
    found = [AttributeMask(**one.model_dump(), mask=masks[n], mean=means[n]) for n, one in enumerate(about.attributes)]
    for one in found:
        if one.images > one.having:
            raise UserError(
                f"{path}: {one.name[:80]}: {one.images} images of {one.having} found, allowed: at most as many"
            )
    return found
