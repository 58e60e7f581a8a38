"""Variations of images: re-noise, then denoise with the prior (SDEdit, Meng et al. 2022), sample by sample.

Struppek et al. (2023) generate a variation of every training image with a hub-sized image-to-image model; this is the
same step with a prior small enough to train. What is drawn for an image depends on (seed, sample key) only.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Gt, Le
from torch import Tensor

from ..compute.device import autocast, to_float
from ..core.errors import ParameterError
from ..core.hyperparameters import Count
from ..core.seeding import torch_rng
from .colour import match_colours
from .prior import SCHEDULE, Prior

# Every forward pass has this many images, padded if need be: some kernels round differently for other batch sizes, and
# an image's variation must not depend on how many others were asked for.
BATCH = 64


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """How a variation is drawn.

    Attributes:
        strength: how far an image is re-noised, as a share of the diffusion's 1,000 steps.
        steps: sampler steps over the whole schedule; strength * steps of them are executed, as in diffusers' image to
            image pipelines.
        scheduler: `ddim` (eta 0) or `dpmsolver++` (second order, multistep).
        num_variations: variations per image.
        color_transfer: give each variation its source's mean and standard deviation per channel.
    """

    strength: Annotated[float, Gt(0), Le(1)] = 0.6
    steps: Count = 10
    scheduler: Literal["ddim", "dpmsolver++"] = "ddim"
    num_variations: Count = 1
    color_transfer: bool = True

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def executed_steps(settings: SamplerSettings) -> int:
    """How many of the sampler's steps are executed. Raises ParameterError where that is none."""
    executed = min(int(settings.steps * settings.strength + 1e-6), settings.steps)
    if executed < 1:
        raise ParameterError(
            f"strength: {settings.strength} given; with steps {settings.steps} no step would be "
            f"executed, allowed: strength of at least {1 / settings.steps:.3g}"
        )
    return executed


def make_scheduler(settings: SamplerSettings) -> tuple[Any, Tensor]:
    """The diffusers scheduler, and the timesteps that will be executed, from the noisiest down."""
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
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    return scheduler, scheduler.timesteps[first:]


@torch.inference_mode()
def vary(
    prior: Prior, images: Tensor, keys: list[int], settings: SamplerSettings, *, seed: int, device: torch.device
) -> Tensor:
    """Variations of a few images.

    Args:
        prior: on `device`.
        images: uint8 [n, c, h, w], n at most `BATCH`.
        keys: each image's sample key.
        settings: the sampler's.
        seed: of the noise.

    Returns:
        uint8 [n, num_variations, c, h, w] on the CPU.
    """
    if settings.strength > prior.max_strength:
        raise ParameterError(
            f"strength: {settings.strength} given, allowed: up to {prior.max_strength}, the most noise the prior was trained on"
        )
    source = to_float(images, device)
    count, padding = len(images), BATCH - len(images)
    latents = torch.cat(
        [prior.encode(source), torch.zeros(padding, *prior.encode(source[:1]).shape[1:], device=device)]
    )
    latents = latents.contiguous(memory_format=torch.channels_last)
    drawn = []
    for variation in range(settings.num_variations):
        noise = torch.zeros(latents.shape)
        for row, key in enumerate(keys):
            noise[row] = torch.randn(latents.shape[1:], generator=torch_rng(seed, "variation", key, variation))
        scheduler, timesteps = make_scheduler(settings)
        x = scheduler.add_noise(latents, noise.to(latents), timesteps[:1].repeat(BATCH))
        x = x.contiguous(memory_format=torch.channels_last)
        for timestep in timesteps:
            with autocast(device):
                predicted = prior.unet(x, timestep.to(device)).sample.float()
            x = scheduler.step(predicted, timestep, x).prev_sample
        result = prior.decode(x)[:count]
        if settings.color_transfer:
            result = match_colours(result, source)
        drawn.append((result * 255).round().to(torch.uint8).cpu())
    return torch.stack(drawn, dim=1)
