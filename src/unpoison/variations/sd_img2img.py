"""SDEdit (Meng et al. 2022) by Stable Diffusion in its latent space, without a prompt."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..core.errors import ParameterError
from ..core.hyperparameters import NonNegative
from .denoising import Noise, Steps, Strength
from .pipelines import BatchSize, Pipeline, Side, guided, resized
from .variation import Variation


def vary(
    pipeline: Pipeline,
    images: Tensor,
    noise: Noise,
    *,
    model: str = "stable-diffusion-v1-5/stable-diffusion-v1-5",
    revision: str | None = None,
    strength: Strength = 0.5,
    steps: Steps = 50,
    guidance: NonNegative = 1.0,
    size: Side = 512,
    half: bool = True,
    batch_size: BatchSize = 16,
) -> Tensor:
    """Variations of images: shapes and ranges as `Variation.vary` says.

    Args:
        pipeline: the loaded pipeline.
        images: images to vary.
        noise: noise of each.
        model: its weights, a folder or a repository on the hub.
        revision: of a repository the commit, 40 hexadecimal digits.
        strength: noise added to an image, as a share of the schedule.
        steps: sampler steps over the whole schedule; strength * steps of them are executed.
        guidance: weight of classifier-free guidance; up to 1 there is none, which an empty prompt would have no use for.
        size: side that images are brought to, and back from.
        half: whether a GPU computes in half precision.
        batch_size: images at a time.
    """

    def call(loaded: Any, batch: Tensor, generators: list[torch.Generator]) -> Tensor:
        return loaded(
            [""] * len(batch),
            image=resized(batch, size),
            strength=strength,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators,
            output_type="pt",
        ).images

    return pipeline.run(images, noise, batch_size, call)


def evaluations(*, strength: float, steps: int, guidance: float, **_: Any) -> int:
    # As diffusers counts: 100 * 0.29 is a little less than 29.
    executed = int(steps * strength)
    if executed < 1:
        least = math.ceil(1e4 / steps) / 1e4
        raise ParameterError(
            f"strength: {strength} given; with steps {steps} no step would be executed, allowed: at least {least}"
        )
    return guided(executed, guidance)


VARIATION = Variation(vary=vary, evaluations=evaluations, pipeline="StableDiffusionImg2ImgPipeline")
