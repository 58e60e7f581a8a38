"""What a trigger is: a batched function of images, how its result becomes 8 bits, and how it is kept without pickle."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.errors import UserError
from ..core.files import check_file, new_folder, read_json, write_manifest
from ..data.imageset import ImageSet

if TYPE_CHECKING:
    from ..crafting.context import Scene

Images = NDArray[np.uint8]
IntArray = NDArray[np.int64]
Arrays = dict[str, NDArray[Any]]
Rounding = Literal["truncate", "round", "wrap"]

DESCRIPTION, ARRAYS = "trigger.json", "trigger.npz"
# Float noise must not turn an exact 51 into 50.999…, which truncation would make 50.
_NOISE = 1e-4
# Images that are stamped at a time: small enough for the caches and for memory, large enough to hide the calls.
_CHUNK_BYTES = 1 << 20


class Trigger:
    """Stamps images. The result for one image depends on that image and its key only, never on the batch or the device.

    A subclass is a frozen dataclass whose fields are JSON values and NumPy arrays (no arrays of objects): they are what
    is kept on disk.

    Attributes:
        rounding: how `stamp` makes 8 bits of what `apply` gives: `truncate` (clip to 0…255, drop the fraction: what
            published code does), `round` (clip, nearest), `wrap` (drop the fraction, modulo 256, as a cast to uint8
            without a clip does on most machines).
        per_sample: whether training images are optimised one by one (`for_samples`), so that only those can be stamped.
    """

    rounding: Rounding = "truncate"
    per_sample: ClassVar[bool] = False

    @property
    def settings(self) -> dict[str, Any]:
        """JSON values that, with `arrays`, rebuild the trigger."""
        return {name: value for name, value in self._fields() if not isinstance(value, np.ndarray)}

    @property
    def arrays(self) -> Arrays:
        """Pixel data and weights."""
        return {name: value for name, value in self._fields() if isinstance(value, np.ndarray)}

    def _fields(self) -> list[tuple[str, Any]]:
        return [(field.name, getattr(self, field.name)) for field in fields(self)]  # type: ignore[arg-type]

    def apply(self, images: Tensor, keys: IntArray, *, train: bool) -> Tensor:
        """Stamp, before anything is rounded or clipped.

        Args:
            images: float32 [n, c, h, w], 0 to 255, any device; left as they are.
            keys: int64 [n], each image's index in its split: all randomness per image comes from (seed, key).
            train: whether the images are stamped for training or for the test.

        Returns:
            float32, same shape and device; values may leave 0…255.
        """
        raise NotImplementedError

    def order(self, data: ImageSet) -> NDArray[np.float64] | None:
        """Which training samples to poison first: float64 [n], highest first, -inf never. None: at random."""
        return None

    def for_samples(self, scene: Scene, index: IntArray) -> Trigger:
        """The trigger once the training samples to stamp are known (sorted): itself, unless each is optimised."""
        return self

    def carried_by(self, data: ImageSet, keys: IntArray) -> NDArray[np.bool_]:
        """Which test samples the trigger can be shown on: all, unless it is a property that an image has or has not."""
        return np.ones(len(keys), bool)

    @classmethod
    def restore(cls, settings: dict[str, Any], arrays: Arrays) -> Self:
        """The trigger that has these `settings` and `arrays`."""
        return cls(**settings, **arrays)


def eight_bit(values: Tensor, rounding: Rounding) -> Tensor:
    """float32 values to uint8; see `Trigger.rounding`."""
    # A cast drops the fraction as well; `trunc` and `floor` would start all threads even for a single image.
    if rounding == "wrap":
        return (values + values.sign() * _NOISE).to(torch.int32).to(torch.uint8)
    if rounding == "round":
        return values.clamp(0, 255).round().to(torch.uint8)
    return values.clamp(0, 255).add_(_NOISE).to(torch.uint8)


def stamp(
    trigger: Trigger, images: Images, keys: IntArray, *, train: bool, device: torch.device | None = None
) -> Images:
    """Stamped copies.

    Args:
        images: uint8 [n, h, w, c]; left as they are.
        keys: int64 [n], each image's index in its split.
        train: as for `Trigger.apply`.
        device: where to compute; None: the CPU. Memory: the result and a few MiB.
    """
    stamped = np.empty_like(images)
    step = max(1, _CHUNK_BYTES // max(1, int(np.prod(images.shape[1:]))))
    with torch.inference_mode():
        for start in range(0, len(images), step):
            some = slice(start, start + step)
            batch = torch.from_numpy(np.ascontiguousarray(images[some])).permute(0, 3, 1, 2).to(device).float()
            values = trigger.apply(batch, keys[some], train=train)
            stamped[some] = eight_bit(values, trigger.rounding).permute(0, 2, 3, 1).cpu().numpy()
    return stamped


def save_trigger(folder: Path, attack: str, trigger: Trigger) -> None:
    """Write a trigger's folder: `trigger.json` and `trigger.npz`."""
    with new_folder(folder) as staging:
        np.savez(staging / ARRAYS, allow_pickle=False, **trigger.arrays)
        about = {"format": "unpoison-trigger-2", "attack": attack, "settings": trigger.settings}
        write_manifest(staging, DESCRIPTION, about)


def read_trigger(folder: Path) -> tuple[str, dict[str, Any], Arrays]:
    """The attack's name, the trigger's settings and its arrays."""
    about = read_json(folder / DESCRIPTION)
    if about.get("format") != "unpoison-trigger-2":
        raise UserError(f"{folder / DESCRIPTION}: format {about.get('format')!r} found, allowed: 'unpoison-trigger-2'")
    with np.load(check_file(folder, about, ARRAYS), allow_pickle=False) as archive:
        return about["attack"], about["settings"], dict(archive)
