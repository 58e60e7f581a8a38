"""Channel Lipschitzness-based Pruning (Zheng et al., "Data-free Backdoor Removal Based on Channel Lipschitzness", ECCV 2022).

A channel that a trigger can drive far is one with a large Lipschitz constant. The weights alone bound it (the paper's UCLC), and
the channels whose bound stands out of their layer's are pruned. No image is needed.

Published code: https://github.com/rkteddy/channel-Lipschitzness-based-pruning/blob/49aeef7/defense.py. It takes the
convolution that stands before a batch norm in the order of modules, which at a shortcut is the wrong one, and divides by the
square root of the running variance without batch norm's own epsilon, so that a dead channel's bound is not a number.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor

from ..core.hyperparameters import NonNegative
from ..data.imageset import ImageSet
from ..models.classifier import Classifier
from .batches import on_device
from .channels import Pair, outliers, pairs, prune
from .purifier import Purifier


def purify(model: Classifier, reserve: ImageSet, *, seed: int = 0, u: NonNegative = 3.0) -> Classifier:
    """Prune channels with an outstanding bound, weight and bias; a new model is returned.

    What is not looked at: `channels.pairs`. With u = 3 neither is a layer of 10 channels or fewer: `channels.outliers`.

    Args:
        model: the backdoored classifier, left as it was.
        reserve: not used.
        seed: not used, as nothing is drawn.
        u: deviations above its layer's mean from which on a channel is pruned; 3 in BackdoorBench.

    Raises:
        UserError: a network without a batch norm right behind a convolution, or one that is not finite.
    """
    pruned = on_device(deepcopy(model), "clp").eval()
    for pair in pairs(pruned, "clp"):
        prune(pair.norm, outliers(bounds(pair), u), bias=True)
    return pruned


@torch.no_grad()
def bounds(pair: Pair) -> Tensor:
    """Upper bounds of the channels' Lipschitz constants, float64 [c] on the CPU: the paper's UCLC.

    The largest singular value of a channel's kernels, one per row, times batch norm's factor |weight| / sqrt(var + eps). Of a
    depthwise convolution that matrix is a single row.
    """
    # On the CPU in float64: the same channels stand out whatever the device.
    kernels = pair.convolution.weight.cpu().double().flatten(2)
    # Squared singular values are eigenvalues of either Gram matrix, of which the smaller one is at most a kernel's size.
    if kernels.shape[1] > kernels.shape[2]:
        kernels = kernels.transpose(1, 2)
    largest = torch.linalg.eigvalsh(kernels @ kernels.transpose(1, 2))[:, -1].clamp(min=0).sqrt()
    assert pair.norm.running_var is not None
    factor = pair.norm.weight.abs() / (pair.norm.running_var + pair.norm.eps).sqrt()
    return largest * factor.cpu().double()


PURIFIER = Purifier(purify=purify, needs_trusted=0)
