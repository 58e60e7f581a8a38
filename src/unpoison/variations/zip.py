"""ZIP (Shi et al., "Black-box Backdoor Defense via Zero-shot Image Purification", 2023).

What two linear operations leave of an image, its grey tones and its coarse colours, is put into each prediction: the range space is
the image's, the null space is the prior's (Wang et al., DDNM, 2023). A trigger that the operations destroy does not come back.
Published code: https://github.com/sycny/ZIP, `preprocess/guided_diffusion/diffusion.py`
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor

from ..core.hyperparameters import NonNegative
from .denoising import Denoiser, Noise, Steps, Strength, timesteps
from .variation import Variation


def vary(
    denoiser: Denoiser,
    images: Tensor,
    noise: Noise,
    *,
    strength: Strength = 1.0,
    steps: Steps = 20,
    scale: Annotated[int, Ge(2), Le(64)] = 2,
    fading: NonNegative = 10.0,
) -> Tensor:
    """Variations of images: shapes and ranges as `Variation.vary` says.

    Args:
        denoiser: the prior.
        images: images to vary.
        noise: noise of each.
        strength: noise to begin with, as a share of the schedule; below 1 it is added to what the operations leave.
        steps: steps of the reverse process, evenly apart.
        scale: side of the blocks of pixels that are averaged (2 as published).
        fading: power of the variance left, by which the image's part fades as the noise goes (10 as published).
    """
    latents, times = denoiser.encode(images), timesteps(strength, steps)
    shown = _projections(denoiser.pixels(latents), scale)
    rough = denoiser.latents(torch.stack(shown).mean(0))
    x = denoiser.noised(rough, noise.normal(*latents.shape[1:]), times[0])
    for at, after in zip(times, [*times[1:], -1], strict=True):
        now, then = denoiser.left(at), denoiser.left(after)
        clean = denoiser.predict(x, at).clamp(-1, 1)
        pixels = denoiser.pixels(clean)
        # The image's part of what each operation sees, the prediction's part of what it does not; the mean of both.
        mended = [part + pixels - own for part, own in zip(shown, _projections(pixels, scale), strict=True)]
        share = 1 - now**fading
        target = share * denoiser.latents(torch.stack(mended).mean(0)) + (1 - share) * clean
        if after < 0:
            x = target
            break
        # DDIM's step (Song et al. 2021, eq. 12 and 16, eta 1) with the noise as it was predicted, before the correction.
        error = (x - now**0.5 * clean) / (1 - now) ** 0.5
        spread = ((1 - then) / (1 - now) * (1 - now / then)) ** 0.5
        x = then**0.5 * target + (1 - then - spread**2) ** 0.5 * error + spread * noise.normal(*latents.shape[1:])
    return denoiser.decode(x, images)


def _projections(pixels: Tensor, scale: int) -> list[Tensor]:
    """What remains of images [n, c, h, w]: their grey tones, and the means of blocks; of grey images the latter alone."""
    height, width = pixels.shape[2:]
    scale = min(scale, height, width)
    # Sides that the blocks do not divide are filled up by their border.
    padded = F.pad(pixels, (0, -width % scale, 0, -height % scale), mode="replicate")
    blocks = F.avg_pool2d(padded, scale).repeat_interleave(scale, 2).repeat_interleave(scale, 3)[..., :height, :width]
    return [blocks] if pixels.shape[1] == 1 else [pixels.mean(1, keepdim=True).expand_as(pixels), blocks]


def evaluations(*, strength: float, steps: int, **_: Any) -> int:
    return len(timesteps(strength, steps))


VARIATION = Variation(vary=vary, evaluations=evaluations)
