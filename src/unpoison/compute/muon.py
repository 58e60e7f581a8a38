"""Orthogonalised updates of filters: Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/)."""

from __future__ import annotations

from torch import Tensor

# Of Newton and Schulz's iteration as that post tunes it: steep at 0, so that small singular values rise in a few steps, at the
# price of ending near 1 and not at it.
_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonalised(matrix: Tensor, steps: int) -> Tensor:
    """About the nearest matrix with orthogonal rows, or columns where there are fewer of them; float [r, c].

    Its singular values lie near 1, the singular vectors are those of `matrix`; a matrix of zeros stays one.

    Args:
        matrix: float [r, c].
        steps: steps of the iteration; three suffice to train with, five bring the values to 0.7 … 1.2.
    """
    # The products are of the shorter side.
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    # The iteration converges from singular values of at most 1, which the Frobenius norm bounds.
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        squared = x @ x.T
        x = _A * x + (_B * squared + _C * (squared @ squared)) @ x
    return x.T if tall else x
