"""Triggers of the frequency domain: a few DCT coefficients of the two colour-difference channels are raised.

Colour transform, DCT and their inverses are linear. Without rounding in between, all that remains of them is one fixed
pattern that is added to the RGB image.
"""

from __future__ import annotations

import numpy as np
from scipy.fft import idctn

from ..core.arrays import Pixels
from ..core.errors import ParameterError
from .context import Context

# ITU-R BT.601: luma is 0.299 R + 0.587 G + 0.114 B; the channels are multiples of R - luma and B - luma.
_RED, _GREEN, _BLUE = 0.299, 0.587, 0.114


def check_positions(context: Context, positions: list[list[int]], height: int, width: int) -> None:
    """Raises ParameterError where `positions` is not a list of coefficients [row, column] of a window of that size."""
    # An empty list is refused as well: it would change no image.
    for position in positions or [[]]:
        if len(position) != 2 or position[0] >= height or position[1] >= width:
            raise ParameterError(
                f"positions: {position or positions} given, allowed: at least one [row, column] with row "
                f"0 to {height - 1} and column 0 to {width - 1}, the window's coefficients"
            )


def chroma_pattern(
    height: int, width: int, positions: list[list[int]], magnitude: float, *, largest_red: float, largest_blue: float
) -> Pixels:
    """Pattern that raised coefficients of both colour-difference channels add to the RGB image.

    Args:
        height: height of the transformed window in pixels.
        width: width of the transformed window in pixels.
        positions: [row, column] of each coefficient; one that is named twice is raised twice.
        magnitude: value added to each coefficient of the orthonormal DCT-II (`cv2.dct`, SciPy's `norm="ortho"`) of
            channel values in units of 1/255.
        largest_red: largest value of the red difference for R, G, B in [0, 1]: 0.615 in analogue YUV, 0.5 in YCrCb.
        largest_blue: largest value of the blue difference, likewise: 0.436 in analogue YUV, 0.5 in YCrCb.

    Returns:
        float32 [3, height, width], in units of 1/255.
    """
    coefficients = np.zeros((height, width))
    for row, column in positions:
        coefficients[row, column] += magnitude
    # Both channels get the same wave. Its image in RGB follows from the inverse transform with luma left alone.
    wave = idctn(coefficients, norm="ortho")
    red, blue = (1 - _RED) / largest_red, (1 - _BLUE) / largest_blue
    # Green takes away the luma that red and blue add.
    green = -(_RED * red + _BLUE * blue) / _GREEN
    return np.multiply.outer([red, green, blue], wave).astype(np.float32)
