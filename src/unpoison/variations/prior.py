"""The diffusion prior: a small U-Net trained on images that the defender trusts, never on the suspect set; and its artefact.

The image is pixel-unshuffled first, so a 32x32x3 image is an 8x8x48 input, at a sixteenth of the pixels. Sides that the U-Net
cannot halve as often as it does (28 px, by default) are padded with their border, and what it makes is cut back.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch.nn.functional as F
from annotated_types import Gt, Le, Len
from torch import Tensor

from ..core.errors import UserError
from ..core.files import new_folder
from ..core.manifest import Described, Manifest, Size, check_file, read_manifest, write_manifest
from ..core.weights import Weights, WithoutMemory, differences, save_weights, shapes_of
from .unet import UNet

FORMAT, WEIGHTS, DESCRIPTION = "unpoison-prior-2", "model.safetensors", "model.json"


class UNetManifest(Described):
    """The arguments of the U-Net."""

    in_channels: Size
    channels: Annotated[list[Size], Len(1, 8)]


class PriorManifest(Manifest):
    """What `model.json` of a prior holds."""

    unet: UNetManifest
    unshuffle: Annotated[int, Gt(0), Le(8)]
    max_strength: Annotated[float, Gt(0), Le(1)]


@dataclass(frozen=True)
class Prior:
    """A trained prior.

    Attributes:
        unet: network from a noisy image to the clean one, both pixel-unshuffled and in [-1, 1].
        unshuffle: side of the pixel blocks.
        max_strength: the most noise it was trained on, as a share of the schedule.
        digest: SHA-256 of its weights, "" before they are saved.
    """

    unet: UNet
    unshuffle: int
    max_strength: float
    digest: str = ""

    def encode(self, images: Tensor) -> Tensor:
        """Images, float [n, c, h, w] in [0, 1], in the U-Net's space, padded where their sides do not fit."""
        block = self.unshuffle * 2 ** (len(self.unet.channels) - 1)
        return F.pixel_unshuffle(padded(images, block) * 2 - 1, self.unshuffle)

    def decode(self, latents: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Images in [0, 1] from the U-Net's space, cut back to `size`, height and width, where that is given."""
        images = (F.pixel_shuffle(latents, self.unshuffle) / 2 + 0.5).clamp(0, 1)
        return images if size is None else images[..., : size[0], : size[1]]


def padded(images: Tensor, block: int) -> Tensor:
    """Images [n, c, h, w] whose sides are multiples of `block`: what is missing repeats the last row and column."""
    height, width = images.shape[-2:]
    if not (height % block or width % block):
        return images
    return F.pad(images, (0, -width % block, 0, -height % block), mode="replicate")


def save_prior(prior: Prior, folder: Path, *, made_by: dict[str, Any], made_from: dict[str, str] | None = None) -> None:
    """Write the prior's weights and description.

    Args:
        prior: prior to write.
        folder: folder that is made or replaced.
        made_by: JSON values for the description, as they are: stage, seed, recipe, machine.
        made_from: digest by name of each artefact it was made from.
    """
    with new_folder(folder) as staging:
        save_weights(prior.unet.state_dict(), staging / WEIGHTS)
        arguments = {"in_channels": prior.unet.in_channels, "channels": prior.unet.channels}
        about = {"format": FORMAT, "unet": arguments, "unshuffle": prior.unshuffle}
        write_manifest(
            staging,
            DESCRIPTION,
            {**about, "max_strength": prior.max_strength, "made_by": made_by, "made_from": made_from or {}},
        )


def load_prior(folder: Path) -> Prior:
    """The prior in a folder, on the CPU, in evaluation mode.

    Raises:
        UserError: a missing or changed file, weights of another architecture, or not finite.
    """
    about, path = read_manifest(folder, DESCRIPTION, FORMAT, PriorManifest), folder / DESCRIPTION
    arguments, block = about.unet.model_dump(), about.unshuffle**2
    if about.unet.in_channels % block:
        raise UserError(f"{path}: unet.in_channels: a multiple of unshuffle² = {block} is allowed")
    weights = Weights(check_file(folder, about, WEIGHTS))
    # First without memory: a description may ask for any amount of it, the weights are as long as their file.
    try:
        with WithoutMemory():
            expected = shapes_of(UNet(**arguments).state_dict())
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{path}: unet: cannot be built ({str(error)[:200]})") from None
    if wrong := differences(weights.shapes, expected):
        raise UserError(
            f"{weights.path}: weights of another architecture than {DESCRIPTION} describes ({wrong[0][:80]})"
        )
    unet = UNet(**arguments)
    unet.load_state_dict(weights.read())
    return Prior(unet.eval(), about.unshuffle, about.max_strength, about.files[WEIGHTS])
