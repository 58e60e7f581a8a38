"""Visibility of a trigger: how much stamping changes the images, for readers who compare attacks."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.arrays import Images

_NAMES = ("psnr", "ssim", "linf", "l2", "changed")
# SSIM's window and constants, as in the paper: K1 0.01 and K2 0.03, of a peak of 255.
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
# Bytes of images at a time: SSIM's five maps in float64 take 40 times this, 10 MiB.
_CHUNK_BYTES = 1 << 18


class Stealth:
    """Mean measures over images that come in chunks, however they are cut.

    LPIPS (Zhang et al. 2018) is not among them: it is a distance within a network whose weights would be downloaded.

    Attributes:
        count: images so far.
    """

    def __init__(self) -> None:
        self.count = 0
        # Kept per image and averaged at the end, so the result does not depend on the chunks, not even by rounding.
        self._per_image: list[NDArray[np.float64]] = []

    def add(self, clean: Images, stamped: Images) -> None:
        """Measure a chunk of images.

        Args:
            clean: images, uint8 [n, h, w, c].
            stamped: the same images with the trigger.

        Raises:
            ValueError: other types or shapes.
        """
        if clean.dtype != np.uint8 or stamped.dtype != np.uint8 or clean.ndim != 4 or clean.shape != stamped.shape:
            raise ValueError(
                f"{clean.dtype} {list(clean.shape)} and {stamped.dtype} {list(stamped.shape)} given, "
                "allowed: two uint8 [n, h, w, c] of one shape"
            )
        self.count += len(clean)
        step = max(1, _CHUNK_BYTES // int(np.prod(clean.shape[1:])))
        for start in range(0, len(clean), step):
            self._per_image.append(_measured(clean[start : start + step], stamped[start : start + step]))

    def result(self) -> dict[str, float]:
        """Means over all images so far.

        Returns:
            `psnr`: peak signal-to-noise ratio 10 log10(255² / mean squared difference) in dB, the mean over images that
                changed; absent where none did, as it is infinite then.
            `ssim`: structural similarity, up to 1 for equal images (Wang et al., "Image Quality Assessment", 2004, sec.
                III-B and III-C: Gaussian window of 11 x 11 and sigma 1.5, K1 0.01, K2 0.03, peak 255; windows that lie
                within the image), averaged over channels; absent for images smaller than the window.
            `linf`: largest absolute difference, 0 to 1 (of 255).
            `l2`: Euclidean norm of the difference of images in [0, 1].
            `changed`: share of pixels with a change in any channel.

        Raises:
            ValueError: no image was added.
        """
        if not self._per_image:
            raise ValueError("no image given, allowed: at least one")
        columns = dict(zip(_NAMES, np.concatenate(self._per_image).T, strict=True))
        finite = {name: values[np.isfinite(values)] for name, values in columns.items()}
        return {name: float(values.mean()) for name, values in finite.items() if len(values)}


def stealth(clean: Images, stamped: Images) -> dict[str, float]:
    """`Stealth.result` for images in memory, uint8 [n, h, w, c] twice, n at least 1."""
    measured = Stealth()
    measured.add(clean, stamped)
    return measured.result()


def _measured(clean: Images, stamped: Images) -> NDArray[np.float64]:
    """Measures of each image, float64 [n, 5], in columns as in `_NAMES`; psnr is infinite where nothing changed."""
    before, after = (torch.from_numpy(images.astype(np.float64, order="C")) for images in (clean, stamped))
    difference = (after - before).abs()
    squared = difference.square().sum((1, 2, 3))
    columns = [
        10 * (255**2 * difference[0].numel() / squared).log10(),
        _ssim(before, after) if min(clean.shape[1:3]) >= _WINDOW else torch.full((len(clean),), torch.nan),
        difference.amax((1, 2, 3)) / 255,
        squared.sqrt() / 255,
        (difference.amax(3) > 0).double().mean((1, 2)),
    ]
    return torch.stack(columns, 1).numpy()


def _ssim(x: Tensor, y: Tensor) -> Tensor:
    """SSIM of each pair, float64 [n, h, w, c] twice to [n].

    In float32, E[x²] - E[x]² would lose the digits that flat regions need.
    """
    # Equation 13: the two variances occur as their sum alone, which saves one of five smoothed maps.
    mean_x, mean_y = _smooth(x), _smooth(y)
    variances = _smooth(x * x + y * y) - mean_x**2 - mean_y**2
    covariance = _smooth(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    return (luminance * (2 * covariance + _C2) / (variances + _C2)).mean((1, 2, 3))


def _smooth(images: Tensor) -> Tensor:
    """Gaussian means of all windows within the images, [n, h, w, c] to [n, h - 10, w - 10, c].

    Eleven shifted sums along each axis: on a CPU, torch's convolution of one channel in float64 takes ten times as long.
    """
    # The two-dimensional Gaussian is the product of two one-dimensional ones: rows first, then columns.
    offsets = np.arange(_WINDOW) - _WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    for axis in (1, 2):
        length = images.shape[axis] - _WINDOW + 1
        total = images.narrow(axis, 0, length) * (weights[0] / weights.sum())
        for place, weight in enumerate((weights / weights.sum()).tolist()[1:], 1):
            total.add_(images.narrow(axis, place, length), alpha=weight)
        images = total
    return images
