"""Filters that whiten patches of the training images, for a network's first convolution.

As in cifar10-airbench (Jordan 2024, section 3.2, after Page 2018): the eigenvectors of the patches' covariance, each over the
square root of its eigenvalue, so that the values that the filters give are uncorrelated and of variance 1. Each comes with
its negative, of which a ReLU then lets one through.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..compute.device import to_float
from ..core.errors import ParameterError
from ..data.imageset import ImageSet
from ..models.classifier import Classifier

IMAGES = 5000
# Added to the eigenvalues of images of deviation 1: directions that hardly occur stay weak and are not blown up to noise.
EPSILON = 5e-4
# Values of a patch: the covariance of more would be a large matrix, and of few images a poor one.
LARGEST = 512


def whitening_filters(patches: Tensor, count: int) -> Tensor:
    """Filters by falling variance, the first half, and their negatives.

    Args:
        patches: float [n, d].
        count: number of filters; beyond twice d, the remaining ones are zero.

    Returns:
        float [count, d].
    """
    # Not centred: with the mean's direction whitened as well, no bias has to take it out.
    values, vectors = torch.linalg.eigh((patches.T @ patches).double() / len(patches))
    rows = (vectors / (values.clamp_min(0) + EPSILON).sqrt()).T.flip(0).float()[: count // 2]
    filters = torch.zeros(count, patches.shape[1])
    filters[: 2 * len(rows)] = torch.cat([rows, -rows])
    return filters


def whiten(model: Classifier, data: ImageSet) -> nn.Conv2d:
    """Set a network's first convolution by images of `data`, its bias to zero; returns the layer.

    Raises:
        ParameterError: a network whose first layer is no convolution of the images, or one of patches of many values.
    """
    layer = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if layer is None or layer.in_channels != data.channels or layer.weight[0].numel() > LARGEST:
        raise ParameterError(
            f"whiten: true given, allowed: for networks that begin with a convolution of at most {LARGEST} values; false"
        )
    # From all over the set: sets are often sorted by class.
    chosen = np.linspace(0, len(data) - 1, min(len(data), IMAGES)).astype(np.int64)
    images = (to_float(data.tensor(chosen), torch.device("cpu")) - model.mean.cpu()) / model.std.cpu()
    size = (layer.kernel_size[0], layer.kernel_size[1])
    patches = F.unfold(images, size, stride=2).transpose(1, 2).flatten(0, 1)
    with torch.no_grad():
        layer.weight.copy_(whitening_filters(patches, len(layer.weight)).view_as(layer.weight))
        if layer.bias is not None:
            layer.bias.zero_()
    return layer
