"""Variations by Stable Diffusion, conditioned on what CLIP sees of an image (Pinkney, Stable Diffusion Image Variations, 2022)."""

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
    model: str = "lambdalabs/sd-image-variations-diffusers",
    revision: str | None = None,
    steps: Steps = 50,
    guidance: NonNegative = 3.0,
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
        steps: steps of the sampler.
        guidance: weight of classifier-free guidance (3 in the model's own example); up to 1 there is none.
        size: side of the images it makes, which are brought to the data's size then.
        half: whether a GPU computes in half precision.
        batch_size: images at a time.
    """

    return pipeline.run(images, noise, batch_size, by_condition(steps, guidance, size))


def evaluations(*, steps: int, guidance: float, **_: Any) -> int:
    return guided(steps, guidance)


VARIATION = Variation(vary=vary, evaluations=evaluations, pipeline="StableDiffusionImageVariationPipeline")
