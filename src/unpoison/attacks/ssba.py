"""SSBA (Li et al., "Invisible Backdoor Attack with Sample-Specific Triggers", ICCV 2021): a hidden string.

An encoder hides the same string of bits in every poisoned image, as a residual that differs from image to image; a decoder
that reads it back is its teacher (StegaStamp: Tancik et al., CVPR 2020).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..compute.device import pick_device, to_float
from ..core.arrays import Arrays, IntArray
from ..core.errors import ParameterError
from ..core.hyperparameters import Count, NonNegative, Positive, Whole
from ..core.progress import progress
from ..core.seeding import torch_rng
from ..crafting.attack import Attack
from ..crafting.context import Context
from ..crafting.encoders import Network, UNet, fresh, in_blocks, packed, training_batches
from ..data.imageset import ImageSet
from ..poisoning.trigger import eight_bit

SECRET_BYTES = 7
_GRID = 16  # the secret is laid out on a square of this side, then enlarged to the image


class Encoder(nn.Module):
    """Images and a secret to residuals.

    Args:
        channels: of the images.
        bits: length of a secret.
        width: of the U-Net.
    """

    def __init__(self, channels: int, bits: int, width: int) -> None:
        super().__init__()
        self.layout = nn.Linear(bits, channels * _GRID * _GRID)
        self.network = UNet(2 * channels, channels, width)

    def forward(self, images: Tensor, secrets: Tensor) -> Tensor:
        """Residuals [n, c, h, w], images being [0, 1]: `images` [n, c, h, w], `secrets` 0 or 1 [n or 1, bits]."""
        planes = self.layout(secrets - 0.5).view(len(secrets), -1, _GRID, _GRID)
        planes = F.interpolate(planes, size=images.shape[2:], mode="nearest").expand(len(images), -1, -1, -1)
        residuals: Tensor = self.network(torch.cat([images - 0.5, planes], 1))
        return residuals


class Decoder(nn.Module):
    """Images [n, c, h, w] in [0, 1] to one logit per bit [n, bits]: strided convolutions to 4 to 7 pixels, one layer.

    Args:
        channels, height, width: of the images.
        bits: length of a secret.
        filters: of the first convolution; twice as many in each one after it, at most eight times.
    """

    def __init__(self, channels: int, height: int, width: int, bits: int, filters: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList()
        for level in range(max(1, int(math.log2(min(height, width) / 4)))):
            wide = filters * 2 ** min(level, 3)
            self.convolutions.append(nn.Conv2d(channels, wide, 3, 2, padding=1))
            channels, height, width = wide, math.ceil(height / 2), math.ceil(width / 2)
        self.head = nn.Linear(channels * height * width, bits)

    def forward(self, images: Tensor) -> Tensor:
        x = images - 0.5
        for convolution in self.convolutions:
            x = F.relu(convolution(x))
        logits: Tensor = self.head(x.flatten(1))
        return logits


@dataclass(frozen=True)
class HiddenString(Network):
    """image + encoder(image, secret).

    Attributes:
        secret: uint8 [bits], 0 or 1.
    """

    secret: NDArray[np.uint8]

    def empty(self) -> Encoder:
        return Encoder(self.channels, len(self.secret), self.width)

    def apply(self, images: Tensor, keys: IntArray, *, train: bool) -> Tensor:
        network, secret = self.network(images.device), torch.from_numpy(self.secret).to(images)[None]
        return in_blocks(lambda some: some + 255 * network(some / 255, secret), images)


def make(
    context: Context,
    *,
    secret: str = "a",
    bits: Count = 100,
    steps: Count = 1500,
    batch_size: Count = 32,
    lr: Positive = 2e-3,
    width: Count = 8,
    l2_weight: NonNegative = 10.0,
    l2_wait: Whole = 200,
    l2_ramp: Count = 600,
) -> HiddenString:
    """Train an encoder and a decoder on the training images, with secrets drawn anew for each; then fix one secret.

    Args:
        context: images and seed.
        secret: what is hidden, 1 to 7 bytes of UTF-8 (D-BR's code: "a"). Another one needs no new encoder.
        bits: length of the hidden string (paper: 100).
        steps: optimiser steps (BackdoorBench: 20 epochs of batches of 64).
        batch_size: images per step.
        lr: learning rate of Adam, falling to 0 as half a cosine. BackdoorBench's is 1e-4, constant.
        width: channels of the encoder's first convolution; four times as many in the decoder's.
        l2_weight: weight of the mean squared residual (images in [0, 1]) beside the cross entropy of the bits, once it
            has risen (BackdoorBench: 10).
        l2_wait: steps before it rises from 0 (BackdoorBench: 1000).
        l2_ramp: steps of its rise (BackdoorBench: 3000).
    """
    bound = min(SECRET_BYTES, bits // 8)
    if not bound:
        raise ParameterError(f"bits: {bits} given, allowed: at least 8")
    if not 1 <= len(secret.encode()) <= bound:
        raise ParameterError(f"secret: {secret!r} given, allowed with {bits} bits: 1 to {bound} bytes of UTF-8")
    if l2_wait + l2_ramp > steps:
        raise ParameterError(f"steps: {steps} given, allowed: at least l2_wait + l2_ramp, {l2_wait + l2_ramp}")
    settings: dict[str, Any] = {
        "bits": bits,
        "steps": steps,
        "batch_size": batch_size,
        "lr": lr,
        "width": width,
        "l2_weight": l2_weight,
        "l2_wait": l2_wait,
        "l2_ramp": l2_ramp,
    }
    arrays = context.store.arrays(
        "ssba_encoder_decoder",
        context.determined_by(__name__, **settings),
        lambda: train_networks(context.train, context.seed, **settings),
    )
    return HiddenString(arrays["encoder"], context.train.channels, width, secret_bits(secret, bits))


def secret_bits(secret: str, bits: int) -> NDArray[np.uint8]:
    """What is hidden, uint8 [bits], 0 or 1: the secret padded with spaces to 7 bytes, then its SHAKE-256, cut to `bits`."""
    text = secret.encode()
    filled = text.ljust(SECRET_BYTES) + hashlib.shake_256(text).digest(math.ceil(bits / 8))
    return np.unpackbits(np.frombuffer(filled, np.uint8))[:bits]


def train_networks(
    data: ImageSet,
    seed: int,
    *,
    bits: int,
    steps: int,
    batch_size: int,
    lr: float,
    width: int,
    l2_weight: float,
    l2_wait: int,
    l2_ramp: int,
) -> Arrays:
    """`encoder` and `decoder`, the weights of each, float32 [p]; arguments as for `make`."""
    encoder = Encoder(data.channels, bits, width)
    decoder = Decoder(data.channels, *data.image_size, bits, 4 * width)
    parameters = [*fresh(encoder, seed, "ssba/encoder"), *fresh(decoder, seed, "ssba/decoder")]
    optimizer = torch.optim.Adam(parameters, lr)
    secrets = torch_rng(seed, "ssba/secrets")
    batches = training_batches(data, batch_size, steps, seed, "ssba")
    for step, images in enumerate(progress(batches, what="ssba encoder", unit="step", total=steps)):
        hidden = torch.randint(2, (len(images), bits), generator=secrets).to(images)
        residuals = encoder(images, hidden)
        weight = l2_weight * min(1.0, max(0, step - l2_wait) / l2_ramp)
        loss = F.binary_cross_entropy_with_logits(decoder(images + residuals), hidden)
        loss = loss + weight * residuals.square().mean()
        optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    accuracy, psnr = quality(data.subset(np.arange(min(len(data), 512))), encoder, decoder)
    print(f"ssba: {accuracy:.1%} of the hidden bits are read back, PSNR {psnr:.1f} dB (training images)", flush=True)
    return {"encoder": packed(encoder), "decoder": packed(decoder)}


@torch.inference_mode()
def quality(data: ImageSet, encoder: Encoder, decoder: Decoder) -> tuple[float, float]:
    """Share of random bits that are read back from images stamped and cut to 8 bits, and the images' PSNR in dB."""
    images = to_float(data.tensor(), pick_device())
    shape = (len(images), decoder.head.out_features)
    hidden = torch.randint(2, shape, generator=torch_rng(0, "ssba/quality")).to(images)
    stamped = eight_bit(255 * (images + encoder(images, hidden)), "truncate").float() / 255
    read = decoder(stamped) > 0
    error = (stamped - images).square().mean()
    return (read == hidden.bool()).float().mean().item(), -10 * error.log10().item()


ATTACK = Attack(
    make=make,
    trigger=HiddenString,
    policy={"label_policy": "all2one"},
    policies=("all2one", "all2all", "clean_label", "source_specific"),
    assets=("encoder and decoder",),
)
