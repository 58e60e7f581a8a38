"""Array types that several folders use, each defined once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]
"""Images as they lie in memory and on disk: [n, height, width, channels], 0 to 255."""
IntArray = NDArray[np.int64]
Mask = NDArray[np.bool_]
Pixels = NDArray[np.float32]
"""Pixel values of a pattern or a trigger, channels first: [c, height, width]."""
Arrays = dict[str, NDArray[Any]]
"""Contents of an .npz file: array by name, none of objects."""
