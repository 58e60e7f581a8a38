"""Batch-norm-statistics pruning (Zheng et al., "Pre-activation Distributions Expose Backdoor Neurons", NeurIPS 2022).

Batch norm's running statistics are those of the poisoned training set. Where they differ from clean images', a channel has
seen something else than these, which is measured by the divergence of two normal distributions.

Published code: https://github.com/RJ-T/NIPS2022_EP_BNP/blob/9099529/defense.py. It takes the statistics of one batch, here they
are those of the whole reserve; it leaves a pruned channel its bias, which BackdoorBench and this set to 0 as well. The logarithm
is of standard deviations, as there and in the paper; BackdoorBench's is of variances without the half,
https://github.com/SCLBD/BackdoorBench/blob/3f4b1a9/defense/bnp.py, and its statistics are those of poisoned images.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..compute.device import autocast, pick_device
from ..compute.inference import BATCH, batches
from ..core.hyperparameters import NonNegative
from ..data.imageset import ImageSet
from ..models.classifier import Classifier
from .batches import on_device
from .channels import batch_norms, outliers, prune
from .purifier import Purifier


def purify(model: Classifier, reserve: ImageSet, *, seed: int = 0, u: NonNegative = 3.0) -> Classifier:
    """Prune channels with an outstanding divergence, weight and bias; a new model is returned.

    With u = 3 a layer of 10 channels or fewer keeps all: `channels.outliers`.

    Args:
        model: the backdoored classifier, left as it was.
        reserve: trusted images; their labels are not used.
        seed: not used, as nothing is drawn.
        u: deviations above its layer's mean from which on a channel is pruned; 3 in BackdoorBench.

    Raises:
        UserError: a network without batch norm, or one that is not finite.
    """
    pruned = on_device(deepcopy(model), "bnp").eval()
    norms = list(batch_norms(pruned, "bnp").values())
    # All layers are measured before any is pruned: each one's input is that of the network as it came.
    measured = divergences(pruned, norms, reserve)
    for norm, values in zip(norms, measured, strict=True):
        prune(norm, outliers(values, u), bias=True)
    return pruned


@torch.no_grad()
def divergences(model: Classifier, norms: list[_BatchNorm], data: ImageSet) -> list[Tensor]:
    """The divergence of each channel's input over some images from its running statistics, both taken as normal.

    log(s2 / s1) + (s1^2 + (m1 - m2)^2) / (2 s2^2) - 1/2, with m1, s1 of the images and m2, s2 as saved. Batch norm's epsilon
    is added to both variances, as batch norm does: a dead channel's would be 0.

    Args:
        model: network in evaluation mode, on the device.
        norms: batch norms of it.
        data: images, all of which are used.

    Returns:
        For each batch norm its channels' divergences, float64 [c]. One that no image reaches (an auxiliary head's) has zeros.
    """
    sums = {
        norm: [torch.zeros(len(norm.weight), device=norm.weight.device).double() for _ in range(2)] for norm in norms
    }
    counts = dict.fromkeys(norms, 0)

    def gather(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        assert isinstance(module, _BatchNorm)
        assert module.running_mean is not None
        # Around the running mean: sums of squares far from their mean would lose digits.
        off = given[0].float().transpose(0, 1).flatten(1) - module.running_mean[:, None]
        sums[module][0] += off.sum(1)
        sums[module][1] += off.square().sum(1)
        counts[module] += off.shape[1]

    hooks = [norm.register_forward_pre_hook(gather) for norm in norms]
    try:
        device = pick_device()
        for _, images in batches(data, BATCH, device=device, what="bnp"):
            with autocast(device):
                model(images)
    finally:
        for hook in hooks:
            hook.remove()
    found = []
    for norm in norms:
        total, squares = sums[norm]
        if not counts[norm]:
            found.append(torch.zeros_like(total))
            continue
        assert norm.running_var is not None
        off = total / counts[norm]
        ours = (squares / counts[norm] - off.square()).clamp(min=0) + norm.eps
        saved = norm.running_var.double() + norm.eps
        found.append((saved / ours).log() / 2 + (ours + off.square()) / (2 * saved) - 0.5)
    return found


PURIFIER = Purifier(purify=purify)
