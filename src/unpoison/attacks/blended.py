"""Blended injection (Chen et al., "Targeted Backdoor Attacks", 2017, sec. 4): the whole image mixed with a pattern."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..core.errors import UserError
from ..core.hyperparameters import Fraction
from ..core.seeding import numpy_rng
from ..crafting.context import Scene
from ..crafting.patterns import Pixels, strip
from ..crafting.stamps import Mix

TRIGGER = Mix
POLICY: dict[str, Any] = {"label_policy": "all2one"}
POLICIES = ("all2one", "all2all", "clean_label", "source_specific")
ASSETS: tuple[str, ...] = ()


def make(scene: Scene, *, pattern: str = "noise", ratio: Fraction = 0.2, test_ratio: Fraction | None = None) -> Mix:
    """(1 - ratio) * image + ratio * pattern.

    Args:
        pattern: `noise` (uniform over 0…255, drawn from the seed), `struppek_noise` (the one pattern of Struppek et
            al., uniform over 0…254, whatever the seed), `strip` (vertical stripes of about 7.85 pixels: D-BR's
            Blend-Strip and, with clean labels, Cognitive Distillation's SIG), or the path of an image file, resized
            (bilinear).
        ratio: share of the pattern in the mix in training. BackdoorBench, CD, D-BR and Struppek et al. use 0.2.
        test_ratio: the same at the test; null: `ratio`.

    Raises:
        UserError: the file is missing or not an image.
    """
    height, width, channels = scene.shape
    drawn: Pixels
    if pattern == "noise":
        noise = numpy_rng(scene.seed, "blended/noise").integers(0, 256, scene.shape, dtype=np.uint8)
        drawn = noise.astype(np.float32).transpose(2, 0, 1)
    elif pattern == "struppek_noise":
        # The published seed and call: another generator or order of dimensions gives another pattern.
        published = torch.randint(0, 255, scene.shape, generator=torch.Generator().manual_seed(42))
        drawn = published.numpy().astype(np.float32).transpose(2, 0, 1)
    elif pattern == "strip":
        drawn = np.broadcast_to(strip(width), (channels, height, width))
    else:
        drawn = _read(pattern, scene)
    opacity = np.ones((1, height, width), np.float32)
    return Mix(np.ascontiguousarray(drawn), opacity, ratio, ratio if test_ratio is None else test_ratio)


def _read(path: str, scene: Scene) -> Pixels:
    height, width, channels = scene.shape
    try:
        with Image.open(Path(path)) as file:
            image = file.convert("L" if channels == 1 else "RGB").resize((width, height), Image.Resampling.BILINEAR)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{scene.where}.pattern: {path!r} given ({error}), allowed: noise, struppek_noise, strip or an image file"
        ) from None
    return np.asarray(image, np.float32).reshape(scene.shape).transpose(2, 0, 1)
