"""SampDetox (Yang et al. 2024): a little noise over the whole image, and then more where that has changed it most.

A trigger that is faint goes with the first noise. One that is strong resists it less than the image around it does, looks unlike
what comes back, and gets the second noise, up to its full strength. Published code: https://github.com/easywood0204/SampDetox
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .denoising import Denoiser, Noise, Steps, Strength, timesteps
from .similarity import similarity
from .variation import Variation


def vary(
    denoiser: Denoiser,
    images: Tensor,
    noise: Noise,
    *,
    strength: Strength = 0.25,
    again: Strength = 0.25,
    steps: Steps = 120,
) -> Tensor:
    """Variations of images: shapes and ranges as `Variation.vary` says.

    Args:
        denoiser: the prior.
        images: images to vary.
        noise: noise of each.
        strength: noise of the first round, as a share of the schedule (0.25 has what step 120 of 1,000 has by the published linear
            schedule).
        again: noise of the second round where an image and what the first has made of it are least alike.
        steps: steps of each round's reverse process, evenly apart.
    """
    # The first round: as much noise everywhere.
    latents, times = denoiser.encode(images), timesteps(strength, steps)
    x = denoiser.noised(latents, noise.normal(*latents.shape[1:]), times[0])
    for at, after in zip(times, [*times[1:], -1], strict=True):
        x, _ = denoiser.ancestral(x, at, after, noise)
    # How unlike, from 0 at the pixel of an image that is most alike to 1 at the one that is least.
    likeness = similarity(images, denoiser.decode(x, images))
    least, most = likeness.amin((1, 2), keepdim=True), likeness.amax((1, 2), keepdim=True)
    unlike = (most - likeness) / (most - least).clamp_min(1e-6)
    # The second: a pixel gets the noise of the step that its unlikeness comes to, and is denoised from that step on. Until
    # then it keeps that noise, of which the network takes it to have more: as published.
    times = timesteps(again, steps)
    begins = ((1 - unlike) * len(times)).floor().long()
    clean = denoiser.pixels(x)
    begins = F.pad(begins, (0, clean.shape[3] - begins.shape[2], 0, clean.shape[2] - begins.shape[1]), value=len(times))
    # The last entry is for pixels that get no noise at all.
    left = torch.tensor([*map(denoiser.left, times), 1.0], device=clean.device)[begins][:, None]
    # Noise of a pixel's own, in the network's space: there it is as long as anywhere.
    drawn = denoiser.pixels(noise.normal(*latents.shape[1:]))
    x = denoiser.latents(left.sqrt() * clean + (1 - left).sqrt() * drawn)
    for step, (at, after) in enumerate(zip(times, [*times[1:], -1], strict=True)):
        further, _ = denoiser.ancestral(x, at, after, noise)
        begun = (begins <= step)[:, None]
        x = denoiser.latents(torch.where(begun, denoiser.pixels(further), denoiser.pixels(x)))
    return denoiser.decode(x, images)


def evaluations(*, strength: float, again: float, steps: int, **_: Any) -> int:
    return len(timesteps(strength, steps)) + len(timesteps(again, steps))


VARIATION = Variation(vary=vary, evaluations=evaluations)
