"""The prior's network: a small U-Net of convolutions, with one residual block per resolution on the way down and up.

After Ho et al. (2020), with less of everything: no attention, a skip per resolution, and halving and doubling of sides by
moving pixels to channels and back, whose 1x1 convolutions cost a ninth of 3x3 ones. Most of a step's time goes into
convolutions, so what they take is what the network costs.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 8
"""Groups of each group normalisation; every number of channels is a multiple of it."""


class UNet(nn.Module):
    """A network from noisy images and their timesteps to images.

    Args:
        in_channels: channels of the images, in and out.
        channels: channels at each resolution, each half of the one before; multiples of 8.
    """

    def __init__(self, in_channels: int, channels: list[int]) -> None:
        super().__init__()
        self.in_channels, self.channels = in_channels, list(channels)
        first, last, embedded = channels[0], channels[-1], 2 * channels[-1]
        self.time = nn.Sequential(nn.Linear(first, embedded), nn.SiLU(), nn.Linear(embedded, embedded), nn.SiLU())
        self.conv_in = nn.Conv2d(in_channels, first, 3, padding=1)
        self.down = nn.ModuleList(Block(width, width, embedded) for width in channels)
        steps = list(pairwise(channels))
        self.pool = nn.ModuleList(nn.Conv2d(4 * width, deeper, 1) for width, deeper in steps)
        self.mid = Block(last, last, embedded)
        self.unpool = nn.ModuleList(nn.Conv2d(deeper, 4 * width, 1) for width, deeper in steps)
        self.up = nn.ModuleList(Block(2 * width, width, embedded) for width in channels[:-1])
        self.norm = nn.GroupNorm(GROUPS, first)
        self.conv_out = nn.Conv2d(first, in_channels, 3, padding=1)
        # Begins with predicting the mean of all images, mid-grey, and not with noise.
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]

    def forward(self, noisy: Tensor, at: Tensor) -> Tensor:
        """Images of noisy images [n, c, h, w], whose sides the network can halve, at timesteps [n]."""
        time = self.time(embedding(at, self.channels[0]))
        x, skips = self.conv_in(noisy), []
        for block, pool in zip(self.down, self.pool, strict=False):
            x = block(x, time)
            skips.append(x)
            x = pool(F.pixel_unshuffle(x, 2))
        x = self.mid(self.down[-1](x, time), time)
        for block, unpool, skip in zip(reversed(self.up), reversed(self.unpool), reversed(skips), strict=True):
            x = block(torch.cat([F.pixel_shuffle(unpool(x), 2), skip], 1), time)
        return self.conv_out(F.silu(self.norm(x)))


class Block(nn.Module):
    """A residual block of two convolutions, whose second normalisation is scaled and shifted by the timestep."""

    def __init__(self, width: int, out: int, embedded: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(GROUPS, width), nn.Conv2d(width, out, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(GROUPS, out), nn.Conv2d(out, out, 3, padding=1)
        self.time = nn.Linear(embedded, 2 * out)
        self.skip = nn.Identity() if width == out else nn.Conv2d(width, out, 1)
        # Begins as its skip, the same at all timesteps.
        for layer in (self.conv2, self.time):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.time(time)[:, :, None, None].chunk(2, 1)
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(torch.addcmul(shift, self.norm2(hidden), 1 + scale)))
        return self.skip(x) + hidden


def embedding(at: Tensor, size: int) -> Tensor:
    """Sines and cosines of timesteps [n] at wavelengths from 6 to 6,000 steps, float32 [n, size]; size is even."""
    half = size // 2
    rates = torch.exp(torch.arange(half, device=at.device) * (-math.log(1000) / half))
    angles = at[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)
