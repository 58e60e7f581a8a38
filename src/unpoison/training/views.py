"""Random views of images for contrastive training: crop and resize, flip, colours, grey (Chen et al., "A Simple Framework for
Contrastive Learning of Visual Representations", ICML 2020, appendix A, without its blur).

Draws come from torch's global CPU generator, which the training loop seeds anew in each epoch: a resumed training draws the same.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..compute.device import full_precision

RATIO = 4 / 3
"""Greatest ratio of a crop's sides."""
JITTER, HUE = 0.4, 0.1
"""Most that brightness, contrast and saturation are scaled by, less 1, and that the hue is turned, of a full turn."""

# Luminance and two chrominances (NTSC), in which a hue is an angle.
_TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


def view(images: Tensor, *, crop: float = 0.2) -> Tensor:
    """A random view of each image, of grey images without what needs colours.

    Args:
        images: images, float [n, c, h, w] in [0, 1].
        crop: least area that is cut out, as a share of the image's.

    Returns:
        Views of the same shape and range, channels_last.
    """
    count, device = len(images), images.device
    images = _cropped(images, torch.rand(count, 4).to(device), crop)
    images = torch.where(_chosen(count, 0.5).to(device), images.flip(3), images)
    factors = (1 + JITTER * (2 * torch.rand(count, 3) - 1)).to(device)
    turn, grey = (HUE * (2 * torch.rand(count) - 1)).to(device), _chosen(count, 0.2).to(device)
    images = torch.where(_chosen(count, 0.8).to(device), _jittered(images, factors, turn), images)
    if images.shape[1] == 3:
        images = torch.where(grey, _luminance(images).expand(-1, 3, -1, -1), images)
    return images.contiguous(memory_format=torch.channels_last)


def _chosen(count: int, share: float) -> Tensor:
    return (torch.rand(count) < share)[:, None, None, None]


def _cropped(images: Tensor, draws: Tensor, smallest: float) -> Tensor:
    """A box of each image, drawn in area, ratio and place from [0, 1) [n, 4], at the image's size, bilinear."""
    area = smallest + (1 - smallest) * draws[:, 0]
    ratio = torch.exp(math.log(RATIO) * (2 * draws[:, 1] - 1))
    # As shares of the image's sides; a box that is too wide for it is cut off there.
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    x, y = (1 - width) * (2 * draws[:, 2] - 1), (1 - height) * (2 * draws[:, 3] - 1)
    zero = torch.zeros_like(x)
    theta = torch.stack([torch.stack([width, zero, x], 1), torch.stack([zero, height, y], 1)], 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _luminance(images: Tensor) -> Tensor:
    weights = _TO_YIQ[0].to(images)
    return (images * weights[None, :, None, None]).sum(1, keepdim=True)


def _jittered(images: Tensor, factors: Tensor, turn: Tensor) -> Tensor:
    """Brightness, contrast and saturation scaled by factors [n, 3], then the hue turned [n], in this order; clipped after each."""
    brightness, contrast, saturation = (factors[:, i, None, None, None] for i in range(3))
    images = (images * brightness).clamp(0, 1)
    if images.shape[1] != 3:
        mean = images.mean((1, 2, 3), keepdim=True)
        return ((images - mean) * contrast + mean).clamp(0, 1)
    mean = _luminance(images).mean((1, 2, 3), keepdim=True)
    images = ((images - mean) * contrast + mean).clamp(0, 1)
    grey = _luminance(images)
    images = ((images - grey) * saturation + grey).clamp(0, 1)
    # One 3 x 3 matrix per image: to luminance and chrominances, the latter turned, and back.
    cos, sin, zero = (2 * math.pi * turn).cos(), (2 * math.pi * turn).sin(), torch.zeros_like(turn)
    rows = [[zero + 1, zero, zero], [zero, cos, -sin], [zero, sin, cos]]
    turned = torch.stack([torch.stack(row, 1) for row in rows], 1)
    to_yiq = _TO_YIQ.to(images)
    with full_precision(images.device):
        matrix = torch.linalg.inv(to_yiq) @ turned @ to_yiq
        return torch.einsum("nij,njhw->nihw", matrix, images).clamp(0, 1)
