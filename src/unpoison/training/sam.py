"""Sharpness-Aware Minimisation (Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization",
ICLR 2021, section 3): a step follows the gradient at the worst weights within a radius, not at the weights themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def at_the_worst_weights(model: nn.Module, parameters: Sequence[nn.Parameter], radius: float) -> Iterator[None]:
    """Within the block the weights are w + radius * g / |g|, with g all their gradients together; after it, w again.

    Batch norm normalises by the batch there, as anywhere in training, but its running statistics stay those of w.

    Args:
        model: the network in training mode.
        parameters: weights with their gradients; those without one stay as they are.
        radius: length of the way, over all weights together.
    """
    moved = [parameter for parameter in parameters if parameter.grad is not None]
    gradients = [parameter.grad for parameter in moved if parameter.grad is not None]
    # On a GPU this stays on the device: nothing waits for it.
    scale = radius / (torch.stack([gradient.norm() for gradient in gradients]).norm() + 1e-12)
    # Copies, not a step back: rounding would not give the same weights again.
    before = [parameter.detach().clone() for parameter in moved]
    followed = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    with torch.no_grad():
        for parameter, gradient in zip(moved, gradients, strict=True):
            parameter.add_(gradient * scale)
    for module in followed:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in followed:
            module.track_running_stats = True
        with torch.no_grad():
            for parameter, values in zip(moved, before, strict=True):
                parameter.copy_(values)
