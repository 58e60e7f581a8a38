"""The diffusion prior: a small U-Net trained on images that the defender trusts, never on the suspect set.

Ho et al., "Denoising Diffusion Probabilistic Models" (2020), with the cosine schedule of Nichol & Dhariwal (2021) and an
exponential moving average of the weights. The network predicts the image itself (x0; Salimans & Ho 2022, section 4): a
small, briefly trained network that predicts the noise, or v, leaves grain in the image. The image is pixel-unshuffled
first, so a 32x32x3 image is a 16x16x12 input at a quarter of the arithmetic. Sides that the U-Net cannot halve as often as
it does (28 px, by default) are padded with their border, and what it makes is cut back. Training survives a kill: it goes
on from the last checkpoint and ends with the same bytes.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le, Len, Lt
from torch import Tensor

from ..compute.device import autocast, pick_device, to_float
from ..compute.finite import not_finite
from ..core.code import digest_of
from ..core.errors import ParameterError, UserError
from ..core.files import new_folder, sha256_json
from ..core.hyperparameters import LARGEST, Count, Positive
from ..core.manifest import Described, Manifest, Size, check_file, read_manifest, write_manifest
from ..core.progress import progress
from ..core.seeding import torch_rng
from ..core.weights import Weights, WithoutMemory, differences, save_weights, shapes_of
from ..data.imageset import ImageSet
from .checkpoints import Checkpoints

if TYPE_CHECKING:  # it takes four seconds to import, and checking the parameters does not need it
    from diffusers import UNet2DModel

FORMAT, WEIGHTS, DESCRIPTION = "unpoison-prior-1", "model.safetensors", "model.json"
# The noise schedule, the same in training and sampling. With the cosine schedule an image at 60 % still has a third of its
# variance; with DDPM's linear one it has 3 %, too little for a small prior to work with.
SCHEDULE = {"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"}


@dataclass(frozen=True, kw_only=True)
class PriorRecipe:
    """Network and training of the prior.

    Attributes:
        steps: steps of the optimiser.
        batch_size: images per step, drawn with replacement.
        lr: peak learning rate of AdamW, reached after 5 % of the steps and lowered to 0 along a cosine.
        ema_decay: decay of the moving average of the weights; the average is what is kept.
        unshuffle: side of the pixel blocks moved to channels; 1 leaves the image as it is.
        channels: channels of the U-Net at each resolution, each half of the one before; multiples of 8.
        checkpoint_every: steps between checkpoints.
        max_strength: the most noise it is trained on, as a share of the schedule; variations may not ask for more. A
            prior that only ever denoises from half way need not learn to start from nothing.
    """

    steps: Count = 1000
    batch_size: Annotated[int, Ge(1), Le(65_536)] = 64
    lr: Positive = 2e-3
    ema_decay: Annotated[float, Gt(0), Lt(1)] = 0.995
    unshuffle: Annotated[int, Gt(0), Le(8)] = 2
    channels: list[Count] | tuple[int, ...] = (32, 64, 64)
    checkpoint_every: Count = 50
    max_strength: Annotated[float, Gt(0), Le(1)] = 1.0


class UNetManifest(Described):
    """The settings of the U-Net that rebuild it, within what this project makes; all others are diffusers' defaults."""

    sample_size: Size
    in_channels: Size
    out_channels: Size
    layers_per_block: Annotated[int, Ge(1), Le(8)]
    block_out_channels: Annotated[list[Size], Len(1, 8)]
    down_block_types: Annotated[list[Literal["DownBlock2D"]], Len(1, 8)]
    up_block_types: Annotated[list[Literal["UpBlock2D"]], Len(1, 8)]
    norm_num_groups: Size


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

    unet: UNet2DModel
    unshuffle: int
    max_strength: float
    digest: str = ""

    def encode(self, images: Tensor) -> Tensor:
        """Images, float [n, c, h, w] in [0, 1], in the U-Net's space, padded where their sides do not fit."""
        block = self.unshuffle * 2 ** (len(self.unet.config["block_out_channels"]) - 1)
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


def train_prior(
    public: ImageSet, recipe: PriorRecipe, *, seed: int, scratch: Path
) -> tuple[Prior, list[dict[str, float]]]:
    """Train a prior on the public split; labels are not looked at.

    Args:
        public: trusted images.
        recipe: network and training.
        seed: seed for weights, batches and noise.
        scratch: folder for the checkpoints of this run alone, removed at the end.

    Returns:
        The prior, and a row per `checkpoint_every` steps: step, loss (mean since the last row).

    Raises:
        ParameterError: no image, channels or sides that do not fit, or a loss or weights that are not finite: training has
            diverged.
    """
    from diffusers import DDPMScheduler, UNet2DModel

    if not len(public):
        raise ParameterError("public: 0 images, allowed: at least 10 to train a prior on")
    device = pick_device()
    config = _config(public, recipe)
    # diffusers draws initial weights from the global random state, which is put back afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_rng(seed, "prior/weights").initial_seed())
        unet, average = UNet2DModel(**config), UNet2DModel(**config)
    average.load_state_dict(unet.state_dict())
    for network in (unet, average):
        network.to(device=device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(unet.parameters(), recipe.lr, fused=device.type == "cuda")
    # After a kill: weights, average, moments and rows as the last checkpoint has them.
    code = digest_of(Path(__file__))
    determined_by = sha256_json([public.digest, seed, asdict(recipe), config, code])
    state = Checkpoints(scratch, determined_by, unet, average, optimizer)
    rows = state.load()
    first = int(rows[-1]["step"]) if rows else 0
    noise_schedule = DDPMScheduler(**SCHEDULE)
    noisiest = max(1, round(recipe.max_strength * len(noise_schedule.timesteps)))
    weights = min_snr_weights(noise_schedule.alphas_cumprod).to(device)
    # All images in the host's memory: a public split is small, and each step draws from the whole of it.
    images, block = public.tensor(), _block(recipe)
    # On the device until the next row: reading a loss in each step would make the CPU wait for a GPU.
    losses: list[Tensor] = []
    unet.train()
    steps = range(first, recipe.steps)
    for step in progress(steps, what="prior", unit="step", total=recipe.steps, done=first):
        # A generator per step, so that a run which goes on from a checkpoint draws what it would have drawn.
        generator = torch_rng(seed, "prior/step", step)
        index = torch.randint(len(images), (recipe.batch_size,), generator=generator)
        clean = F.pixel_unshuffle(padded(to_float(images[index], device), block) * 2 - 1, recipe.unshuffle)
        noise = torch.randn(clean.shape, generator=generator).to(device, memory_format=torch.channels_last)
        at = torch.randint(noisiest, (recipe.batch_size,), generator=generator).to(device)
        noisy = noise_schedule.add_noise(clean, noise, at)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * _warm_cosine(step, recipe.steps)
        # The loss in x0: squared error of the predicted image, weighted by the noise of its timestep.
        with autocast(device):
            error = (unet(noisy, at).sample.float() - clean).square().mean((1, 2, 3))
        loss = (weights[at] * error).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        # The decay rises to its value over the first steps, or the average would long remember the initial weights.
        _update_average(average, unet, min(recipe.ema_decay, (1 + step) / (10 + step)))
        if (step + 1) % recipe.checkpoint_every == 0 or step + 1 == recipe.steps:
            since, running = torch.stack(losses).tolist(), 0.0
            _check_trained(since, average, recipe, step + 1 - len(since))
            for value in since:  # one by one: from Python 3.12 on `sum` rounds otherwise
                running += value
            rows.append({"step": step + 1, "loss": running / len(since)})
            losses.clear()
            state.save(rows)
    # Sampling uses the average: single steps of a short training are noisy.
    state.remove()
    return Prior(average.eval(), recipe.unshuffle, recipe.max_strength), rows


def _check_trained(losses: list[float], average: UNet2DModel, recipe: PriorRecipe, first: int) -> None:
    """Raises ParameterError where one of the losses of the steps from `first` on, or of the weights kept, is not finite."""
    bad = next((first + place for place, loss in enumerate(losses) if not math.isfinite(loss)), None)
    fact = f"the loss is not finite from step {(bad or 0) + 1} of {recipe.steps} on"
    if bad is None:
        weights = not_finite(average)
        if not weights:
            return
        fact = (
            f"{len(weights)} tensors are not finite after step {first + len(losses)} of {recipe.steps} ({weights[0]})"
        )
    raise ParameterError(
        f"lr: {recipe.lr} given, with which the training of the prior diverged: {fact}; allowed: a lower one"
    )


def min_snr_weights(alphas_cumprod: Tensor) -> Tensor:
    """Loss weight of each timestep for a network that predicts the image: min(SNR, 5) (Hang et al. 2023, section 3.4)."""
    # SNR = alpha^2 / sigma^2, and with variance preserved sigma^2 = 1 - alpha^2.
    return (alphas_cumprod / (1 - alphas_cumprod)).clamp(max=5.0)


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
        config = {key: prior.unet.config[key] for key in UNetManifest.model_fields}
        about = {"format": FORMAT, "unet": config, "unshuffle": prior.unshuffle}
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
    from diffusers import UNet2DModel

    about, path = read_manifest(folder, DESCRIPTION, FORMAT, PriorManifest), folder / DESCRIPTION
    config, block = about.unet.model_dump(), about.unshuffle**2
    if about.unet.in_channels != about.unet.out_channels or about.unet.in_channels % block:
        raise UserError(f"{path}: unet: as many channels out as in, a multiple of unshuffle² = {block}, are allowed")
    weights = Weights(check_file(folder, about, WEIGHTS))
    # First without memory: a description may ask for any amount of it, the weights are as long as their file.
    try:
        with WithoutMemory():
            expected = shapes_of(UNet2DModel(**config).state_dict())
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{path}: unet: cannot be built ({str(error)[:200]})") from None
    if wrong := differences(weights.shapes, expected):
        raise UserError(
            f"{weights.path}: weights of another architecture than {DESCRIPTION} describes ({wrong[0][:80]})"
        )
    unet = UNet2DModel(**config)
    unet.load_state_dict(weights.read())
    return Prior(unet.eval(), about.unshuffle, about.max_strength, about.files[WEIGHTS])


def check_recipe(recipe: PriorRecipe, image_size: tuple[int, int] | None = None) -> None:
    """Raises ParameterError for channels that no U-Net has, or more halvings than sides of this size, where known, allow."""
    levels = len(recipe.channels)
    if not 1 <= levels <= 8 or any(width % 8 or width > 2048 for width in recipe.channels):
        given = f"{str(list(recipe.channels[:8]))[:-1]}, …]" if levels > 8 else list(recipe.channels)
        raise ParameterError(f"channels: {given} given, allowed: one to eight multiples of 8, up to 2048")
    if recipe.lr > LARGEST:
        raise ParameterError(f"lr: {recipe.lr} given, allowed: up to {LARGEST:g}")
    block = _block(recipe)
    # Smaller images would be padding for the most part.
    if image_size is not None and block > min(image_size):
        raise ParameterError(
            f"channels: {list(recipe.channels)} with unshuffle {recipe.unshuffle} given, allowed for sides {image_size}: "
            f"unshuffle * 2^(levels - 1), here {block}, up to {min(image_size)}"
        )


def _block(recipe: PriorRecipe) -> int:
    """The number that sides are padded to multiples of: unshuffling divides them, and each level but the last halves them."""
    return recipe.unshuffle * 2 ** (len(recipe.channels) - 1)


def _config(public: ImageSet, recipe: PriorRecipe) -> dict[str, Any]:
    """Settings of the U-Net for these images. Raises ParameterError where sides or channels do not fit."""
    check_recipe(recipe, public.image_size)
    levels, height = len(recipe.channels), public.image_size[0]
    channels = public.channels * recipe.unshuffle**2
    return {
        "sample_size": (height + -height % _block(recipe)) // recipe.unshuffle,
        "in_channels": channels,
        "out_channels": channels,
        "layers_per_block": 1,
        "block_out_channels": tuple(recipe.channels),
        "down_block_types": ("DownBlock2D",) * levels,
        "up_block_types": ("UpBlock2D",) * levels,
        "norm_num_groups": 8,
    }


def _warm_cosine(step: int, steps: int) -> float:
    """Factor on the peak learning rate: linear over the first 5 % of the steps, then a cosine to 0."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * (step - warm) / max(1, steps - warm)))))


@torch.no_grad()
def _update_average(average: UNet2DModel, unet: UNet2DModel, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(unet.parameters()), 1 - decay)
