"""The noise schedule, the same in training and sampling: cosine (Nichol & Dhariwal 2021, section 3.2).

An image at 60 % still has a third of its variance in it; with DDPM's linear schedule it has 3 %, too little for a small prior
to work with.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

STEPS = 1000
# The same for diffusers' schedulers; the network predicts the image.
SCHEDULE = {"num_train_timesteps": STEPS, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"}
_OFFSET, _LARGEST_BETA = 0.008, 0.999


def alphas_cumprod() -> Tensor:
    """Share of an image's variance that is left at each timestep, float32 [1000], falling from almost 1 to almost 0."""

    def left(step: int) -> float:
        return math.cos((step / STEPS + _OFFSET) / (1 + _OFFSET) * math.pi / 2) ** 2

    betas = [min(1 - left(step + 1) / left(step), _LARGEST_BETA) for step in range(STEPS)]
    return torch.cumprod(1 - torch.tensor(betas, dtype=torch.float32), 0)


def noised(clean: Tensor, noise: Tensor, left: Tensor) -> Tensor:
    """Images with noise, float [n, c, h, w], from clean ones, standard normal noise and the share of variance left, [n]."""
    left = left[:, None, None, None]
    return left.sqrt() * clean + (1 - left).sqrt() * noise


def min_snr_weights(alphas_cumprod: Tensor) -> Tensor:
    """Loss weight of each timestep for a network that predicts the image: min(SNR, 5) (Hang et al. 2023, section 3.4)."""
    # SNR = alpha^2 / sigma^2, and with variance preserved sigma^2 = 1 - alpha^2.
    return (alphas_cumprod / (1 - alphas_cumprod)).clamp(max=5.0)
