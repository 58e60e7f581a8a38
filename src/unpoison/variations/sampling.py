"""Variations of a batch of images by any method: what is drawn for an image depends on the seed and the sample key alone.

Published code of that step:
https://github.com/LukasStruppek/Robust_Training_on_Poisoned_Samples/blob/94f0d35/generate_variations.py
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor

from ..compute.device import to_float
from ..core.errors import ParameterError, UserError
from .colour import match_colours
from .denoising import Denoiser, Noise
from .pipelines import Pipeline
from .prior import Prior
from .variation import Variation

# Every forward pass has this many images, padded if need be: some kernels round differently for other batch sizes, and
# an image's variation must not depend on how many others were asked for.
BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all methods have.

    Attributes:
        num_variations: variations per image.
        color_transfer: whether each variation takes its source's mean and standard deviation per channel.
    """

    num_variations: Annotated[int, Ge(1), Le(100)] = 1
    color_transfer: bool = True

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def check_strength(most: float, parameters: Mapping[str, Any]) -> None:
    """Raises ParameterError where a method's parameters ask for more noise than `most`, that which the prior was trained on."""
    for key in ("strength", "again"):
        if (strength := parameters.get(key, 0)) > most:
            raise ParameterError(
                f"{key}: {strength} given, allowed: up to prior.max_strength {most}, the most noise the prior was trained on"
            )


@torch.inference_mode()
def vary(
    method: Variation,
    model: Prior | Pipeline,
    images: Tensor,
    keys: list[int],
    settings: Settings,
    parameters: Mapping[str, Any],
    *,
    seed: int,
    device: torch.device,
) -> Tensor:
    """Variations of a few images.

    Args:
        method: how they are made.
        model: diffusion prior or pipeline, on `device`.
        images: images, uint8 [n, c, h, w], n at most `BATCH`.
        keys: sample key of each image.
        settings: settings of all methods.
        parameters: the method's own.
        seed: seed for the noise.
        device: device to sample on.

    Returns:
        uint8 [n, num_variations, c, h, w] on the CPU.

    Raises:
        UserError: what the model makes is not finite.
    """
    source = to_float(images, device)
    # Mid-grey images fill the batch up to its fixed size; their results are cut off again below.
    count, size = len(images), BATCH if isinstance(model, Prior) else len(images)
    filled = torch.cat([source, source.new_full((size - count, *source.shape[1:]), 0.5)])
    drawn = []
    for variation in range(settings.num_variations):
        noise = Noise(seed, keys, variation, size=size, device=device)
        worker = Denoiser(model) if isinstance(model, Prior) else model
        made = method.vary(worker, filled, noise, **parameters)
        # A sampler clamps: an infinite prediction would pass as white, and 8 bits make anything of NaN.
        finite = made.isfinite().flatten(1).all(1)
        if isinstance(worker, Denoiser) and worker.finite is not None:
            finite &= worker.finite
        if bad := count - int(finite[:count].sum()):
            raise UserError(
                f"variations: {bad} of {count} images are not finite, allowed: those of a model that has not diverged"
            )
        result = made[:count]
        if result.shape[2:] != source.shape[2:]:
            result = F.interpolate(result, source.shape[2:], mode="bicubic", antialias=True).clamp(0, 1)
        if settings.color_transfer:
            result = match_colours(result, source)
        # Rounded, where the published code truncates, which darkens an image by half a level on average.
        drawn.append((result * 255).round().to(torch.uint8).cpu())
    return torch.stack(drawn, dim=1)
