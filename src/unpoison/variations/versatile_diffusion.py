"""Variations by Versatile Diffusion (Xu et al. 2023), as Struppek et al. (2023) make them: from noise, by what CLIP sees.

The pipeline is among diffusers' deprecated ones. Published code:
https://github.com/LukasStruppek/Robust_Training_on_Poisoned_Samples/blob/94f0d35/generate_variations.py
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..core.hyperparameters import NonNegative
from .denoising import Noise, Steps
from .pipelines import BatchSize, Pipeline, Side, by_condition, guided
from .variation import Variation


def vary(
    pipeline: Pipeline,
    images: Tensor,
    noise: Noise,
    *,
    model: str = "shi-labs/versatile-diffusion",
    revision: str | None = None,
    steps: Steps = 50,
    guidance: NonNegative = 7.5,
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
        steps: steps of the sampler (50 as published).
        guidance: weight of classifier-free guidance (7.5 as published).
        size: side of the images it makes, which are brought to the data's size then (512 as published).
        half: whether a GPU computes in half precision (as published).
        batch_size: images at a time (16 as published).
    """

    return pipeline.run(images, noise, batch_size, by_condition(steps, guidance, size))


def evaluations(*, steps: int, guidance: float, **_: Any) -> int:
    return guided(steps, guidance)


VARIATION = Variation(vary=vary, evaluations=evaluations, pipeline="VersatileDiffusionImageVariationPipeline")
