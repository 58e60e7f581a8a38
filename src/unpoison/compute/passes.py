"""Counting what a method costs: images that pass a network, forward, and forward with a backward pass to come."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from ..models.classifier import Backbone, Classifier


@dataclass
class Passes:
    """Images that passed the backbones of networks so far.

    Attributes:
        forward: images in all.
        backward: those of them through which a gradient could flow back.
    """

    forward: int = 0
    backward: int = 0


def countable(model: Classifier) -> bool:
    """Whether passes of a model are seen: a backbone with auxiliary heads is not called as a whole in training."""
    return type(model.backbone).with_auxiliary is Backbone.with_auxiliary


@contextmanager
def counted_passes() -> Iterator[Passes]:
    """Within the block, images that pass a `Backbone` are counted, of models that are `countable`. Copies folded by
    `frozen` are no backbones."""
    passes = Passes()

    def count(module: nn.Module, given: tuple[Any, ...], raw: Tensor) -> None:
        # What `torch.fx` traces a network with, to fold its batch norms, is no image.
        if isinstance(module, Backbone) and isinstance(given[0], Tensor):
            passes.forward += len(given[0])
            passes.backward += len(given[0]) * (torch.is_grad_enabled() and raw.requires_grad)

    handle = register_module_forward_hook(count)
    try:
        yield passes
    finally:
        handle.remove()
