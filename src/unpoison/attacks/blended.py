"""Blended injection: the whole image mixed with a pattern (Chen et al., "Targeted Backdoor Attacks", 2017, sec. 4)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ..errors import UserError
from ..hyperparameters import Fraction
from ..seeding import numpy_rng
from .trigger import Arrays, Images


@dataclass(frozen=True)
class BlendTrigger:
    """(1 - ratio) * image + ratio * pattern, truncated to 8 bits as the published code does."""

    pattern: NDArray[np.uint8]
    ratio: float

    @property
    def settings(self) -> dict[str, Any]:
        return {"ratio": self.ratio}

    @property
    def arrays(self) -> Arrays:
        return {"pattern": self.pattern}

    def __call__(self, images: Images, keys: NDArray[np.int64]) -> Images:
        mixed = (1 - self.ratio) * images.astype(np.float64) + self.ratio * self.pattern
        # Float noise must not turn an exact 51 into 50.999…, which truncation would make 50.
        return np.floor(mixed + 1e-6).astype(np.uint8)


def make(shape: tuple[int, int, int], seed: int, *, pattern: str = "noise", ratio: Fraction = 0.2) -> BlendTrigger:
    """A pattern for images of `shape` (height, width, channels).

    Args:
        pattern: `noise` (uniform over 0…255, drawn from the seed) or the path of an image file, resized (bilinear).
        ratio: share of the pattern in the mix. BackdoorBench, CD and Struppek et al. use 0.2.

    Raises:
        UserError: the file is missing or not an image.
    """
    height, width, channels = shape
    if pattern == "noise":
        drawn = numpy_rng(seed, "blended/noise").integers(0, 256, shape, dtype=np.uint8)
        return BlendTrigger(drawn, ratio)
    try:
        with Image.open(Path(pattern)) as file:
            image = file.convert("L" if channels == 1 else "RGB").resize((width, height), Image.Resampling.BILINEAR)
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(
            f"attack.blended.pattern: {pattern!r} given ({error}), allowed: noise or an image file"
        ) from None
    return BlendTrigger(np.asarray(image, dtype=np.uint8).reshape(shape), ratio)


def restore(settings: dict[str, Any], arrays: Arrays) -> BlendTrigger:
    return BlendTrigger(arrays["pattern"], settings["ratio"])
