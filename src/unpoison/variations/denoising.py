"""What the samplers share: the prior as they see it, the noise of an image, and a step of the reverse process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le
from torch import Tensor

from ..compute.device import autocast
from ..core.seeding import torch_rng
from .prior import Prior
from .schedule import STEPS, alphas_cumprod, noised

Strength = Annotated[float, Gt(0), Le(1)]
"""Noise added to an image, as a share of the diffusion's 1,000 steps."""
Steps = Annotated[int, Ge(1), Le(STEPS)]
"""Steps of a sampler."""


class Noise:
    """The noise of a batch of images: each draws from a generator of its own, on the CPU.

    Args:
        seed: the run's.
        keys: sample key of each image.
        variation: number of the variation.
        size: images in the batch; those without a key, which fill it up, get none.
        device: where the noise is to lie.
    """

    def __init__(self, seed: int, keys: Sequence[int], variation: int, *, size: int, device: torch.device) -> None:
        self.generators = [torch_rng(seed, "variation", key, variation) for key in keys]
        self.size, self.device = size, device

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, float32 [size, *shape], the next ones of each image."""
        drawn = torch.zeros(self.size, *shape)
        for row, generator in enumerate(self.generators):
            drawn[row] = torch.randn(shape, generator=generator)
        return drawn.to(self.device)


@dataclass
class Denoiser:
    """A prior that predicts clean images, and notes what it did.

    Attributes:
        prior: on the device of the images.
        evaluations: passes so far.
        finite: which images of the batch were predicted as finite numbers every time.
    """

    prior: Prior
    evaluations: int = 0
    finite: Tensor | None = None
    _left: Tensor = field(default_factory=alphas_cumprod)

    def encode(self, images: Tensor) -> Tensor:
        """Images [n, c, h, w] in [0, 1] in the network's space, [-1, 1]."""
        return self.prior.encode(images).contiguous(memory_format=torch.channels_last)

    def decode(self, latents: Tensor, images: Tensor) -> Tensor:
        """Images in [0, 1], of the size of `images`."""
        return self.prior.decode(latents, (images.shape[2], images.shape[3]))

    def pixels(self, latents: Tensor) -> Tensor:
        """The network's space as pixels [n, c, h, w] in [-1, 1], padded as it is."""
        return F.pixel_shuffle(latents, self.prior.unshuffle)

    def latents(self, pixels: Tensor) -> Tensor:
        """The inverse of `pixels`."""
        return F.pixel_unshuffle(pixels, self.prior.unshuffle)

    def predict(self, noisy: Tensor, at: int) -> Tensor:
        """The clean images of noisy ones at a timestep, float32 [n, …]; not clamped."""
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        with autocast(noisy.device):
            clean = self.prior.unet(noisy, torch.full((len(noisy),), at, device=noisy.device)).float()
        finite = clean.isfinite().flatten(1).all(1)
        self.finite = finite if self.finite is None else self.finite & finite
        self.evaluations += 1
        return clean

    def left(self, at: int) -> float:
        """The share of an image's variance that is left at a timestep; all of it at -1."""
        return float(self._left[at]) if at >= 0 else 1.0

    def noised(self, clean: Tensor, noise: Tensor, at: int) -> Tensor:
        """Clean images with the noise of a timestep."""
        return noised(clean, noise, torch.full((len(clean),), self.left(at), device=clean.device))

    def ancestral(self, noisy: Tensor, at: int, after: int, noise: Noise) -> tuple[Tensor, Tensor]:
        """A step of DDPM from a timestep to a later one (Ho et al. 2020, eq. 7, between any two), and the prediction it took.

        Args:
            noisy: images at `at`, in the network's space.
            at: their timestep.
            after: the timestep to go to, smaller; -1: the end, where the prediction is what is left.
            noise: draws the step's, but none at the end.
        """
        clean = self.predict(noisy, at).clamp(-1, 1)
        if after < 0:
            return clean, clean
        now, then = self.left(at), self.left(after)
        # The posterior of q(x_after | x_at, x_0): of the noise between the two a share is taken away, the rest drawn anew.
        between = now / then
        of_clean = then**0.5 * (1 - between) / (1 - now)
        of_noisy = between**0.5 * (1 - then) / (1 - now)
        spread = ((1 - then) * (1 - between) / (1 - now)) ** 0.5
        return of_clean * clean + of_noisy * noisy + spread * noise.normal(*noisy.shape[1:]), clean


def timesteps(strength: float, steps: int) -> list[int]:
    """Timesteps from the noisiest, strength * 1000 - 1, down to the last step's, evenly apart: at most one per timestep."""
    noisiest = max(1, round(strength * STEPS))
    steps = min(steps, noisiest)
    return [round(noisiest * (steps - step) / steps) - 1 for step in range(steps)]
