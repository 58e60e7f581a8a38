"""Variations by unCLIP (Ramesh et al., "Hierarchical Text-Conditional Image Generation", 2022), as Karlo has it."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from torch import Tensor

from ..core.hyperparameters import NonNegative
from .denoising import Noise
from .pipelines import BatchSize, Pipeline, guided, pictures_of
from .schedule import STEPS
from .variation import Variation

Several = Annotated[int, Ge(2), Le(STEPS)]
"""Steps of a sampler that works out the space between them."""


def vary(
    pipeline: Pipeline,
    images: Tensor,
    noise: Noise,
    *,
    model: str = "kakaobrain/karlo-v1-alpha-image-variations",
    revision: str | None = None,
    steps: Several = 25,
    enlarging: Several = 7,
    guidance: NonNegative = 8.0,
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
        steps: steps of the decoder.
        enlarging: steps of the networks that enlarge what it makes.
        guidance: weight of classifier-free guidance in the decoder; up to 1 there is none.
        half: whether a GPU computes in half precision.
        batch_size: images at a time.
    """

    def call(loaded: Any, batch: Tensor, generators: list[torch.Generator]) -> Tensor:
        made = loaded(
            pictures_of(batch),
            decoder_num_inference_steps=steps,
            super_res_num_inference_steps=enlarging,
            decoder_guidance_scale=guidance,
            generator=generators,
            output_type="np",
        ).images
        return torch.from_numpy(made).permute(0, 3, 1, 2)

    return pipeline.run(images, noise, batch_size, call)


def evaluations(*, steps: int, enlarging: int, guidance: float, **_: Any) -> int:
    return guided(steps, guidance) + enlarging


VARIATION = Variation(vary=vary, evaluations=evaluations, pipeline="UnCLIPImageVariationPipeline")
