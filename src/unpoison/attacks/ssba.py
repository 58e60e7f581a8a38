"""SSBA (Li et al., "Invisible Backdoor Attack with Sample-Specific Triggers", ICCV 2021): a hidden string.

An encoder hides the same string of bits in every poisoned image, as a residual that differs from image to image; a decoder
that reads it back is its teacher (StegaStamp: Tancik et al., CVPR 2020).

Published code: https://github.com/SCLBD/BackdoorBench/blob/f02e353/attack/ssba.py, which looks up images made
beforehand by an encoder of resource/ssba/train.py; D-BR, with a StegaStamp model trained elsewhere:
https://github.com/SCLBD/Effective_backdoor_defense/blob/63fda0e/utils/dataloader_bd.py
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
from ..crafting.encoders import Network, UNet, check_trained, fresh, in_blocks, packed, training_batches
from ..data.imageset import ImageSet
from ..poisoning.trigger import eight_bit

SECRET_BYTES = 7
"""Longest secret, and the length that shorter ones are padded to, as in the published code."""
_GRID = 16
"""Side of the square that the secret is laid out on, before it is enlarged to the image."""


class Encoder(nn.Module):
    """From images and a secret to residuals.

    Args:
        channels: channels of the images.
        bits: length of a secret.
        width: channels of the U-Net's first convolution.
    """

    def __init__(self, channels: int, bits: int, width: int) -> None:
        super().__init__()
        self.layout = nn.Linear(bits, channels * _GRID * _GRID)
        self.network = UNet(2 * channels, channels, width)

    def forward(self, images: Tensor, secrets: Tensor) -> Tensor:
        """Residuals [n, c, h, w] for `images` [n, c, h, w] in [0, 1] and `secrets` [n or 1, bits] of 0 and 1."""
        # The secret becomes planes beside the image's, so that every pixel sees all bits and any image size will do.
        planes = self.layout(secrets - 0.5).view(len(secrets), -1, _GRID, _GRID)
        planes = F.interpolate(planes, size=images.shape[2:], mode="nearest").expand(len(images), -1, -1, -1)
        residuals: Tensor = self.network(torch.cat([images - 0.5, planes], 1))
        return residuals


class Decoder(nn.Module):
    """From images [n, c, h, w] in [0, 1] to one logit per bit [n, bits].

    Strided convolutions halve the image until its shorter side has 4 to 8 pixels; one linear layer reads the bits.

    Args:
        channels: channels of the images.
        height: height of the images in pixels.
        width: width of the images in pixels.
        bits: length of a secret.
        filters: channels of the first convolution, doubled from one to the next up to eight times as many.
    """

    def __init__(self, channels: int, height: int, width: int, bits: int, filters: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList()
        # As many halvings as leave 4 to 8 pixels, and one at least for images of fewer than 8.
        for level in range(max(1, int(math.log2(min(height, width) / 4)))):
            wide = filters * 2 ** min(level, 3)
            self.convolutions.append(nn.Conv2d(channels, wide, 3, 2, padding=1))
            # The next convolution's input: stride 2 with one pixel of padding rounds half a side up.
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
        secret: the hidden string, uint8 [bits], 0 or 1.
    """

    secret: NDArray[np.uint8]

    def empty(self) -> Encoder:
        return Encoder(self.channels, len(self.secret), self.width)

    def apply(self, images: Tensor, keys: IntArray, *, train: bool) -> Tensor:
        # The same secret for every image; the network works on [0, 1], and so do its residuals.
        network, secret = self.network(images.device), torch.from_numpy(self.secret).to(images)[None]
        return in_blocks(lambda block: block + 255 * network(block / 255, secret), images)


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
    """An encoder and a decoder trained on the training images, with secrets drawn anew for each; then one fixed secret.

    Args:
        context: the attacker's data and seed.
        secret: hidden text, 1 to 7 bytes of UTF-8 (D-BR: `a`). Another one needs no new encoder.
        bits: length of the hidden string in bits (paper: 100).
        steps: optimiser steps (BackdoorBench: 20 epochs of batches of 64).
        batch_size: images per step (BackdoorBench: 64).
        lr: learning rate of Adam, falling to 0 along half a cosine (BackdoorBench: 1e-4, constant).
        width: channels of the encoder's first convolution; the decoder's first has four times as many.
        l2_weight: final weight of the residual's mean square beside the bits' cross entropy (BackdoorBench: 10).
        l2_wait: steps before the residual's weight rises from 0 (BackdoorBench: 1000).
        l2_ramp: steps over which the residual's weight rises (BackdoorBench: 3000).

    Raises:
        ParameterError: fewer than 8 bits; a secret that is empty or too long; too few steps for the weight to rise.
    """
    # The string starts with the secret's own bytes, so they must fit whole.
    bound = min(SECRET_BYTES, bits // 8)
    if not bound:
        raise ParameterError(f"bits: {bits} given, allowed: at least 8")
    if not 1 <= len(secret.encode()) <= bound:
        raise ParameterError(f"secret: {secret!r} given, allowed with {bits} bits: 1 to {bound} bytes of UTF-8")
    if l2_wait + l2_ramp > steps:
        raise ParameterError(f"steps: {steps} given, allowed: at least l2_wait + l2_ramp, {l2_wait + l2_ramp}")
    # The secret is left out: the networks are trained for any, so another one takes them from the store.
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
    """The hidden string, uint8 [bits], 0 or 1: the secret padded with spaces to 7 bytes, then its SHAKE-256, cut to `bits`."""
    # Published code fills up with a BCH code. Nothing is decoded here, and a hash differs from secret to secret, however
    # many bits are needed.
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
    """The weights of `encoder` and `decoder`, float32 [p] each; arguments as for `make`."""
    # Each network has draws of its own: a change of one's layers leaves the other's first weights alone.
    encoder = Encoder(data.channels, bits, width)
    decoder = Decoder(data.channels, *data.image_size, bits, 4 * width)
    parameters = [*fresh(encoder, seed, "ssba/encoder"), *fresh(decoder, seed, "ssba/decoder")]
    optimizer = torch.optim.Adam(parameters, lr)
    secrets = torch_rng(seed, "ssba/secrets")
    batches = training_batches(data, batch_size, steps, seed, "ssba")
    for step, images in enumerate(progress(batches, what="ssba encoder", unit="step", total=steps)):
        # A secret per image and step: the encoder must learn to hide any, and the decoder cannot learn one by heart.
        hidden = torch.randint(2, (len(images), bits), generator=secrets).to(images)
        residuals = encoder(images, hidden)
        # The bits have to come through before they are to be faint: faintness alone is met by residuals of 0.
        weight = l2_weight * min(1.0, max(0, step - l2_wait) / l2_ramp)
        # Read from float images, as a cut to 8 bits has no gradient; `quality` measures what the cut costs.
        loss = F.binary_cross_entropy_with_logits(decoder(images + residuals), hidden)
        loss = loss + weight * residuals.square().mean()
        # Half a cosine: long steps until the ramp is over, then ever shorter ones.
        optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for network in (encoder, decoder):
        check_trained(network, lr)
    # A decoder that reads at random has taught the encoder nothing, which no stamp would show.
    accuracy, psnr = quality(data.subset(np.arange(min(len(data), 512))), encoder, decoder)
    print(f"ssba: {accuracy:.1%} of the hidden bits are read back, PSNR {psnr:.1f} dB (training images)", flush=True)
    return {"encoder": packed(encoder), "decoder": packed(decoder)}


@torch.inference_mode()
def quality(data: ImageSet, encoder: Encoder, decoder: Decoder) -> tuple[float, float]:
    """Share of random bits read back from images stamped and cut to 8 bits, and the PSNR of these images in dB."""
    images = to_float(data.tensor(), pick_device())
    shape = (len(images), decoder.head.out_features)
    hidden = torch.randint(2, shape, generator=torch_rng(0, "ssba/quality")).to(images)
    # Rounded as the victim gets them: faint residuals may be lost with the fraction.
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
