"""Variations of images: re-noise, then denoise with the prior (SDEdit, Meng et al. 2022), sample by sample.

Struppek et al. (2023) generate a variation of every training image with a large image-to-image model from a hub; this is
the same step with a prior small enough to train. What is drawn for an image depends on the seed and the sample key alone.

Published code of that step:
https://github.com/LukasStruppek/Robust_Training_on_Poisoned_Samples/blob/94f0d35/generate_variations.py
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from ..compute.device import autocast, to_float
from ..core.errors import ParameterError, UserError
from ..core.seeding import torch_rng
from .colour import match_colours
from .prior import Prior
from .schedule import SCHEDULE, STEPS

# Every forward pass has this many images, padded if need be: some kernels round differently for other batch sizes, and
# an image's variation must not depend on how many others were asked for.
BATCH = 64


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """Settings of the sampler.

    Attributes:
        strength: noise added to an image, as a share of the diffusion's 1,000 steps.
        steps: sampler steps over the whole schedule; strength * steps of them are executed, as in diffusers'
            image-to-image pipelines.
        scheduler: `ddim` (eta 0) or `dpmsolver++` (second order, multistep).
        num_variations: variations per image.
        color_transfer: whether each variation takes its source's mean and standard deviation per channel.
    """

    strength: Annotated[float, Gt(0), Le(1)] = 0.6
    steps: Annotated[int, Ge(1), Le(STEPS)] = 10
    scheduler: Literal["ddim", "dpmsolver++"] = "ddim"
    num_variations: Annotated[int, Ge(1), Le(100)] = 1
    color_transfer: bool = True

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def executed_steps(settings: SamplerSettings) -> int:
    """Number of the sampler's steps that are executed. Raises ParameterError where there is none."""
    # The small term is for products such as 100 * 0.29, which in floating point is just below 29.
    executed = min(int(settings.steps * settings.strength + 1e-6), settings.steps)
    if executed < 1:
        raise ParameterError(
            f"strength: {settings.strength} given; with steps {settings.steps} no step would be "
            f"executed, allowed: strength of at least {1 / settings.steps:.3g}"
        )
    return executed


def check_strength(prior: Prior, settings: SamplerSettings) -> None:
    """Raises ParameterError for more noise than the prior was trained on."""
    if settings.strength > prior.max_strength:
        raise ParameterError(
            f"strength: {settings.strength} given, allowed: up to {prior.max_strength}, the most noise the prior was trained on"
        )


def make_scheduler(settings: SamplerSettings) -> tuple[Any, Tensor]:
    """The diffusers scheduler, and the timesteps to execute, from the noisiest down."""
    # Here, not above: diffusers takes four seconds to import, and checking the parameters does not need it.
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    # "trailing" puts the first executed step at strength * 1000; the default spacing starts a whole step below it.
    common = {**SCHEDULE, "timestep_spacing": "trailing"}
    if settings.scheduler == "ddim":
        scheduler: Any = DDIMScheduler(**common, clip_sample=True, set_alpha_to_one=True)
    else:
        scheduler = DPMSolverMultistepScheduler(**common, algorithm_type="dpmsolver++", final_sigmas_type="zero")
    scheduler.set_timesteps(settings.steps)
    first = len(scheduler.timesteps) - executed_steps(settings)
    # As in diffusers' image-to-image pipelines: a multistep scheduler is told where in its schedule it begins.
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    return scheduler, scheduler.timesteps[first:]


@torch.inference_mode()
def vary(
    prior: Prior, images: Tensor, keys: list[int], settings: SamplerSettings, *, seed: int, device: torch.device
) -> Tensor:
    """Variations of a few images.

    Args:
        prior: diffusion prior, on `device`.
        images: images, uint8 [n, c, h, w], n at most `BATCH`.
        keys: sample key of each image.
        settings: settings of the sampler.
        seed: seed for the noise.
        device: device to sample on.

    Returns:
        uint8 [n, num_variations, c, h, w] on the CPU.

    Raises:
        ParameterError: more noise than the prior was trained on.
        UserError: what the prior makes is not finite.
    """
    check_strength(prior, settings)
    source = to_float(images, device)
    # Blank images fill the batch up to its fixed size; their results are cut off again below.
    count, padding = len(images), BATCH - len(images)
    latents = torch.cat(
        [prior.encode(source), torch.zeros(padding, *prior.encode(source[:1]).shape[1:], device=device)]
    )
    latents = latents.contiguous(memory_format=torch.channels_last)
    drawn = []
    for variation in range(settings.num_variations):
        # The noise of an image is its own, by key and number of the variation, drawn on the CPU.
        noise = torch.zeros(latents.shape)
        for row, key in enumerate(keys):
            noise[row] = torch.randn(latents.shape[1:], generator=torch_rng(seed, "variation", key, variation))
        # A scheduler of its own for every variation: a multistep one remembers its last predictions.
        scheduler, timesteps = make_scheduler(settings)
        # SDEdit: start from the image re-noised to the first executed timestep, not from pure noise.
        x = scheduler.add_noise(latents, noise.to(latents), timesteps[:1].repeat(BATCH))
        x = x.contiguous(memory_format=torch.channels_last)
        finite = torch.ones(BATCH, dtype=torch.bool, device=device)
        for timestep in timesteps:
            with autocast(device):
                predicted = prior.unet(x, timestep.to(device).repeat(BATCH)).float()
            finite &= predicted.isfinite().flatten(1).all(1)
            x = scheduler.step(predicted, timestep, x).prev_sample
        # The sampler clamps: an infinite prediction would pass as white, and 8 bits make anything of NaN.
        if bad := count - int(finite[:count].sum()):
            raise UserError(
                f"variations: {bad} of {count} images are not finite, allowed: those of a prior that has not diverged"
            )
        result = prior.decode(x, (source.shape[2], source.shape[3]))[:count]
        if settings.color_transfer:
            result = match_colours(result, source)
        # Rounded, where the published code truncates, which darkens an image by half a level on average.
        drawn.append((result * 255).round().to(torch.uint8).cpu())
    return torch.stack(drawn, dim=1)
