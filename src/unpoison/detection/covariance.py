"""Whitening by a covariance, which SCAn and SPECTRE share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def root_of_inverse(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """The symmetric root of a covariance's pseudo-inverse, [d, d]: features times it vary alike in all directions.

    Directions without any variance, but for rounding, are cleared.
    """
    values, directions = np.linalg.eigh(covariance)
    kept = values > len(values) * np.finfo(np.float64).eps * values[-1]
    return (directions[:, kept] / np.sqrt(values[kept])) @ directions[:, kept].T
