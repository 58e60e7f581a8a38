"""The type of a way to vary images: what its file hands to the rest of the project."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Variation:
    """A published way to make a variation of an image.

    Attributes:
        vary: `vary(model, images, noise, *, …) -> Tensor`: images float [n, c, h, w] in [0, 1] on the model's device to such
            images, whose sides may be others; of each by its own numbers of `noise` (`denoising.Noise`), so that it does not
            depend on the others. Its keyword-only arguments are the method's own parameters.
        evaluations: passes of an image through the denoising network, from the same parameters. Raises ParameterError for those
            that fit no sampler.
        pipeline: the class of diffusers with weights from elsewhere that `vary` works with (`pipelines.Pipeline`), whose `model`,
            `revision` and `half` are among the parameters; None: the prior that is trained here (`denoising.Denoiser`).
    """

    vary: Callable[..., Tensor]
    evaluations: Callable[..., int]
    pipeline: str | None = None

    @property
    def parameters(self) -> Callable[..., Tensor]:
        """The function whose keyword-only arguments are the method's own parameters."""
        return self.vary

    def whole(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters, with the method's own values for those that were not given."""
        own = inspect.signature(self.vary).parameters.values()
        return {each.name: each.default for each in own if each.kind is each.KEYWORD_ONLY} | dict(given)
