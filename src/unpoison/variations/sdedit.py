"""SDEdit (Meng et al. 2022): re-noise an image, then denoise it, with one of diffusers' schedulers.

Struppek et al. (2023) generate a variation of every training image with a large image-to-image model from a hub; this is
the same step with a prior small enough to train.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from ..core.errors import ParameterError
from .denoising import Denoiser, Noise, Steps, Strength
from .schedule import SCHEDULE
from .variation import Variation

Scheduler = Literal["ddim", "dpmsolver++"]


def vary(
    denoiser: Denoiser,
    images: Tensor,
    noise: Noise,
    *,
    strength: Strength = 0.6,
    steps: Steps = 10,
    scheduler: Scheduler = "ddim",
) -> Tensor:
    """Variations of images: shapes and ranges as `Variation.vary` says.

    Args:
        denoiser: the prior.
        images: images to vary.
        noise: noise of each.
        strength: noise added to an image, as a share of the diffusion's 1,000 steps.
        steps: sampler steps over the whole schedule; strength * steps of them are executed, as in diffusers' image-to-image
            pipelines.
        scheduler: `ddim` (eta 0) or `dpmsolver++` (second order, multistep).
    """
    latents = denoiser.encode(images)
    # A scheduler of its own for every call: a multistep one remembers its last predictions.
    sampler, executed = make_scheduler(strength=strength, steps=steps, scheduler=scheduler)
    x = sampler.add_noise(latents, noise.normal(*latents.shape[1:]), executed[:1].repeat(len(latents)))
    for timestep in executed:
        x = sampler.step(denoiser.predict(x, int(timestep)), timestep, x).prev_sample
    return denoiser.decode(x, images)


def executed_steps(*, strength: float, steps: int, **_: Any) -> int:
    """Number of the sampler's steps that are executed. Raises ParameterError where there is none."""
    # The small term is for products such as 100 * 0.29, which in floating point is just below 29.
    executed = min(int(steps * strength + 1e-6), steps)
    if executed < 1:
        raise ParameterError(
            f"strength: {strength} given; with steps {steps} no step would be "
            f"executed, allowed: strength of at least {1 / steps:.3g}"
        )
    return executed


def make_scheduler(*, strength: float, steps: int, scheduler: Scheduler) -> tuple[Any, Tensor]:
    """The diffusers scheduler, and the timesteps to execute, from the noisiest down."""
    # Here, not above: diffusers takes four seconds to import, and checking the parameters does not need it.
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    executed = executed_steps(strength=strength, steps=steps)
    # "trailing" puts the first executed step at strength * 1000; the default spacing starts a whole step below it.
    common = {**SCHEDULE, "timestep_spacing": "trailing"}
    if scheduler == "ddim":
        sampler: Any = DDIMScheduler(**common, clip_sample=True, set_alpha_to_one=True)
    else:
        sampler = DPMSolverMultistepScheduler(**common, algorithm_type="dpmsolver++", final_sigmas_type="zero")
    sampler.set_timesteps(steps)
    first = len(sampler.timesteps) - executed
    # As in diffusers' image-to-image pipelines: a multistep scheduler is told where in its schedule it begins.
    if hasattr(sampler, "set_begin_index"):
        sampler.set_begin_index(first)
    return sampler, sampler.timesteps[first:]


VARIATION = Variation(vary=vary, evaluations=executed_steps)
