"""For detectors of many passes: convolutions of maps smaller than their kernels, computed as matrices.

A 3x3 convolution of a 2x2 map spends more than half of its arithmetic on the padding; a matrix from all pixels to all pixels has
four ninths of it, in one dense product. A ResNet with a pooling stem ends on such maps at 32 px.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..compute.inference import frozen
from ..data.imageset import ImageSet
from ..models.classifier import Classifier


class _Matrix(nn.Module):
    """A convolution of maps of one size [c, h, w] as a matrix, rows and columns ordered by pixel, then channel."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, convolution: nn.Conv2d, size: torch.Size) -> None:
        super().__init__()
        channels, height, width = size
        pixels = torch.eye(size.numel(), device=convolution.weight.device)
        # The columns of the matrix are what the convolution makes of each unit map.
        units = pixels.view(-1, height, width, channels).permute(0, 3, 1, 2)
        columns = F.conv2d(
            units, convolution.weight, None, convolution.stride, convolution.padding, convolution.dilation
        ).permute(0, 2, 3, 1)
        self.shape = columns.shape[1:]
        self.register_buffer("weight", columns.flatten(1).T.contiguous())
        bias = convolution.bias
        self.register_buffer("bias", None if bias is None else bias.repeat(columns.shape[1] * columns.shape[2]))

    def forward(self, maps: Tensor) -> Tensor:
        # In channels_last both permutations are views.
        rows = F.linear(maps.permute(0, 2, 3, 1).flatten(1), self.weight, self.bias)
        return rows.view(-1, *self.shape).permute(0, 3, 1, 2)


@torch.no_grad()
def frozen_for(model: Classifier, data: ImageSet, device: torch.device) -> nn.Module:
    """A `frozen` copy of a model for images of this set's size alone, its smallest maps computed as matrices."""
    network = frozen(model, device)
    convolutions = {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    sizes: dict[str, list[torch.Size]] = {name: [] for name in convolutions}
    hooks = [
        module.register_forward_pre_hook(lambda _, given, seen=sizes[name]: seen.append(given[0].shape[1:]))
        for name, module in convolutions.items()
    ]
    network(torch.zeros(1, data.channels, *data.image_size, device=device))
    for hook in hooks:
        hook.remove()
    for name, convolution in convolutions.items():
        height, width = convolution.kernel_size
        plain = convolution.groups == 1 and convolution.padding_mode == "zeros"
        # Used once: a module that is used twice may see two sizes.
        if plain and len(sizes[name]) == 1 and sizes[name][0][1:].numel() < height * width:
            network.set_submodule(name, _Matrix(convolution, sizes[name][0]))
    return network
