"""PureGen (Bhat et al. 2024), its part with a diffusion model: a little noise, and DDPM's whole reverse process from there.

Published code, of PureGen-DDPM: https://github.com/SunayBhat1/PureGen_PoisonDefense, `scripts/PureGen.py`
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .denoising import Denoiser, Noise, Steps, Strength, timesteps
from .variation import Variation


def vary(denoiser: Denoiser, images: Tensor, noise: Noise, *, strength: Strength = 0.16, steps: Steps = 75) -> Tensor:
    """Variations of images: shapes and ranges as `Variation.vary` says.

    Args:
        denoiser: the prior.
        images: images to vary.
        noise: noise of each.
        strength: noise added, as a share of the schedule (0.16 has what step 75 of 1,000 has by the published linear schedule).
        steps: steps of the reverse process, evenly apart.
    """
    times = timesteps(strength, steps)
    latents = denoiser.encode(images)
    x = denoiser.noised(latents, noise.normal(*latents.shape[1:]), times[0])
    for at, after in zip(times, [*times[1:], -1], strict=True):
        x, _ = denoiser.ancestral(x, at, after, noise)
    return denoiser.decode(x, images)


def evaluations(*, strength: float, steps: int, **_: Any) -> int:
    return len(timesteps(strength, steps))


VARIATION = Variation(vary=vary, evaluations=evaluations)
