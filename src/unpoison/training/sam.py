"""Sharpness-Aware Minimisation (Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization",
ICLR 2021, section 3): a step follows the gradient at the worst weights within a radius, not at the weights themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def at_the_worst_weights(
    model: nn.Module, parameters: Sequence[nn.Parameter], radius: float, *, adaptive: bool = False
) -> Iterator[None]:
    """Within the block the weights are w + radius * g / |g|, with g all their gradients together; after it, w again.

    Adaptive (Kwon et al., "ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural
    Networks", ICML 2021, equation 8, without their eta): they are w + radius * w^2 * g / | |w| * g |, elementwise, so that
    the way is the same however the layers are scaled against each other.

    Args:
        model: the network in training mode.
        parameters: weights with their gradients; those without one stay as they are.
        radius: length of the way, over all weights together; where it is adaptive, in units of the weights.
        adaptive: whether each weight's share of the way is in proportion to its size.
    """
    moved = [parameter for parameter in parameters if parameter.grad is not None]
    gradients = [parameter.grad for parameter in moved if parameter.grad is not None]
    pairs = list(zip(moved, gradients, strict=True))
    # One by one, not all in memory. On a GPU this stays on the device: nothing waits for it.
    norms = [(weight.detach() * gradient if adaptive else gradient).norm() for weight, gradient in pairs]
    scale = radius / (torch.stack(norms).norm() + 1e-12)
    if adaptive:
        steps = (weight.detach().square() * gradient * scale for weight, gradient in pairs)
    else:
        steps = (gradient * scale for gradient in gradients)
    with displaced(model, moved, steps):
        yield


@contextmanager
def displaced(model: nn.Module, parameters: Sequence[nn.Parameter], steps: Iterable[Tensor]) -> Iterator[None]:
    """Within the block each of the parameters is a step away; after it, where it was.

    Batch norm normalises by the batch there, as anywhere in training, but its running statistics stay those of before.

    Args:
        model: the network in training mode.
        parameters: what is moved.
        steps: a step for each of them, in its shape.
    """
    # Copies, not a step back: rounding would not give the same weights again.
    before = [parameter.detach().clone() for parameter in parameters]
    followed = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    with torch.no_grad():
        for parameter, step in zip(parameters, steps, strict=True):
            parameter.add_(step)
    for module in followed:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in followed:
            module.track_running_stats = True
        with torch.no_grad():
            for parameter, values in zip(parameters, before, strict=True):
                parameter.copy_(values)
