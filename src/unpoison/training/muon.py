"""Muon for filters (Jordan et al. 2024): each step follows the orthogonalised momentum (`compute.muon`).

As in cifar10-airbench, a convolution's weights [out, in, h, w] count as a matrix [out, in * h * w] of fixed norm: in front of
batch norm the norm has no effect on what the network computes, and a step is then a share of it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..compute.muon import orthogonalised

ITERATIONS = 3


def is_filter(parameter: Tensor) -> bool:
    """Whether Muon trains it: weights of a convolution; biases, batch norm and linear layers are SGD's."""
    return parameter.dim() == 4


def muon_step(parameter: nn.Parameter, gradient: Tensor, buffer: Tensor, *, lr: float, momentum: float) -> None:
    """One step of a convolution's weights, in place.

    Args:
        parameter: float [out, in, h, w]; before the step its norm becomes the square root of `out`.
        gradient: of the same shape.
        buffer: sum of gradients so far, of the same shape, zero at first; brought up to date.
        lr: length of the step in each direction.
        momentum: share of the sum that is kept.
    """
    buffer.mul_(momentum).add_(gradient)
    # As Nesterov: the gradient counts once more.
    ahead = gradient.add(buffer, alpha=momentum)
    update = orthogonalised(ahead.flatten(1), ITERATIONS).view_as(ahead)
    # Weights that are all zero have no direction to keep.
    parameter.mul_(len(parameter) ** 0.5 / parameter.norm().clamp_min(torch.finfo(parameter.dtype).tiny))
    parameter.add_(update, alpha=-lr)
