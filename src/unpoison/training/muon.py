"""Muon (Jordan et al. 2024): SGD-Nesterov momentum whose update of each filter bank is orthogonalised.

The update of a matrix U S Vᵀ is close to U Vᵀ: all directions move by the same length, also those that gradients are weak
in. A convolution's weights [out, in, h, w] count as a matrix [out, in * h * w]. As in cifar10-airbench, each filter bank
has a fixed norm: in front of batch norm it has no effect, and Muon's step is then a share of it. Formulas:
https://kellerjordan.github.io/posts/muon
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Coefficients of the odd polynomial a x + b x³ + c x⁵ that, applied again and again, brings singular values near 1: the
# steepest at 0 of those that stay within 0.7 and 1.2 (the post, section "Tuning our coefficients").
QUINTIC = (3.4445, -4.7750, 2.0315)
STEPS = 3


def is_filter(parameter: Tensor) -> bool:
    """Whether Muon trains it: weights of a convolution; biases, batch norm and linear layers are SGD's."""
    return parameter.dim() == 4


def orthogonalised(matrix: Tensor, steps: int = STEPS) -> Tensor:
    """A matrix [m, n] with its singular values brought near 1, by Newton-Schulz iteration; zero stays zero."""
    # The smaller of the two Gram matrices: a tall matrix is turned.
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    # The polynomial is for values up to 1, and no singular value is larger than the Frobenius norm.
    x = wide / (wide.norm() + 1e-7)
    a, b, c = QUINTIC
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if wide is not matrix else x


def muon_step(parameter: nn.Parameter, gradient: Tensor, buffer: Tensor, *, lr: float, momentum: float) -> None:
    """One step of a filter bank, in place.

    Args:
        parameter: weights of a convolution, float [out, in, h, w]; before the step their norm becomes the square root of `out`.
        gradient: of the same shape.
        buffer: sum of gradients so far, of the same shape, zero at first; brought up to date.
        lr: length of the step in each direction.
        momentum: share of the sum that is kept.
    """
    buffer.mul_(momentum).add_(gradient)
    ahead = gradient.add(buffer, alpha=momentum)
    update = orthogonalised(ahead.flatten(1)).view_as(ahead)
    # Weights that are all zero have no direction to keep.
    parameter.mul_(len(parameter) ** 0.5 / parameter.norm().clamp_min(torch.finfo(parameter.dtype).tiny))
    parameter.add_(update, alpha=-lr)
