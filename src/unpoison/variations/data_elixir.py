"""DataElixir (Zhou et al. 2024): several rounds of noise and denoising, and one of the images that come by on the way.

Published code: https://github.com/Manu21JC/DataElixir, `utils/purify_utils.py`
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from torch import Tensor

from ..core.hyperparameters import Fraction
from .denoising import Denoiser, Noise, Steps, Strength, timesteps
from .similarity import similarity
from .variation import Variation


def vary(
    denoiser: Denoiser,
    images: Tensor,
    noise: Noise,
    *,
    strength: Strength = 0.3,
    steps: Steps = 150,
    rounds: Annotated[int, Ge(1), Le(100)] = 5,
    kept: Annotated[int, Ge(1), Le(1000)] = 10,
    place: Fraction = 0.8,
) -> Tensor:
    """Variations of images: shapes and ranges as `Variation.vary` says.

    Args:
        denoiser: the prior.
        images: images to vary.
        noise: noise of each.
        strength: noise of each round, as a share of the schedule (0.3 has what step 150 of 1,000 has by the published linear
            schedule).
        steps: steps of each round's reverse process, evenly apart.
        rounds: rounds, each from what the one before has made (5 as published).
        kept: candidates of each round: the predictions of its last steps, without the noise that long steps leave (10).
        place: which of the candidates and the image itself is taken, where they lie in the order of their distance from that image,
            from 0, itself, to 1, the farthest (0.8 as published).
    """
    times = timesteps(strength, steps)
    latents = denoiser.encode(images)
    x, candidates = latents, [images]
    for _ in range(rounds):
        x = denoiser.noised(x, noise.normal(*latents.shape[1:]), times[0])
        for step, (at, after) in enumerate(zip(times, [*times[1:], -1], strict=True)):
            x, clean = denoiser.ancestral(x, at, after, noise)
            if step >= len(times) - kept:
                candidates.append(denoiser.decode(clean, images))
    # By the pixels alone: the published distance has the victim's features as well, which a trigger may rule.
    distance = torch.stack([-similarity(images, candidate).mean((1, 2)) for candidate in candidates])
    order = distance.argsort(dim=0, stable=True)
    chosen = order[min(int(len(candidates) * place), len(candidates) - 1)]
    return torch.stack(candidates)[chosen, torch.arange(len(images), device=images.device)]


def evaluations(*, strength: float, steps: int, rounds: int, **_: Any) -> int:
    return rounds * len(timesteps(strength, steps))


VARIATION = Variation(vary=vary, evaluations=evaluations)
