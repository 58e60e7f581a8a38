"""TrojanNN (Liu et al., "Trojaning Attack on Neural Networks", NDSS 2018, section IV.A): a small patch, optimised to
excite neurons that the network's output depends on, is added to the image.

Published code: https://github.com/SCLBD/BackdoorBench/blob/f02e353/attack/trojannn.py (`optimised`); for `patch`
https://github.com/SCLBD/Effective_backdoor_defense/blob/63fda0e/utils/dataloader_bd.py (D-BR)
https://github.com/HanxunH/CognitiveDistillation/blob/6aba6f9/datasets/cifar_trojan.py
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch

from ..compute.device import pick_device
from ..core.arrays import Pixels
from ..core.errors import ParameterError
from ..core.hyperparameters import Count, Fraction, NonNegative, Positive, Whole
from ..crafting import surrogate
from ..crafting.attack import Attack
from ..crafting.context import Context
from ..crafting.stamps import Add

# Red, green, blue. Published as float32 with fractions; integers give the same 8 bits where the fraction is dropped.
_PATCH = [
    [[207, 175, 29], [79, 137, 248], [131, 6, 246]],
    [[131, 243, 232], [8, 0, 113], [40, 145, 250]],
    [[181, 120, 179], [126, 32, 146], [4, 61, 246]],
]
_MARGIN = 4
"""Pixels between the published patch and the right and lower border."""


def make(
    context: Context,
    *,
    form: Literal["patch", "optimised"] = "patch",
    wrap: bool = False,
    size: Count = 8,
    neurons: Count = 2,
    value: Positive = 100.0,
    epsilon: Fraction = 0.3,
    step: Positive = 0.1,
    iterations: Whole = 1000,
    tolerance: NonNegative = 1e-3,
) -> Add:
    """A patch that is added to the image.

    `patch` is the 3 x 3 patch that NAD published and CD and D-BR use, as integers: its values were float32 with a
    fraction, which 8 bits drop either way. It lies in rows and columns 25 to 27 at 32 pixels, and as far from the lower
    right corner at other sizes. It needs colour.

    `optimised` is a square in the lower right corner, one of the paper's three masks, made on the attacker's own clean
    network. All arguments after `wrap` are for `optimised` only.

    Args:
        context: the attacker's data, network and seed.
        form: `patch`: the published 3 x 3 patch; `optimised`: a square made on the attacker's own network.
        wrap: whether sums above 255 wrap around, as in D-BR and BackdoorBench, instead of being clipped.
        size: side of the optimised square in pixels. 8 of 32 is about 7 % of the image, one of the paper's sizes.
        neurons: number of inputs of the head to excite, those with the largest weights (BackdoorBench: 2).
        value: activation that the chosen neurons are to reach (BackdoorBench: 100).
        epsilon: largest change of a value in [0, 1] from mid-grey, the start (BackdoorBench: 0.3). BackdoorBench starts
            from its picture of a mask.
        step: length of a signed gradient step, for images in [0, 1] (BackdoorBench: 0.1).
        iterations: largest number of gradient steps (BackdoorBench: 1000).
        tolerance: squared error, summed over the neurons, that ends the search (BackdoorBench: 0.001).

    Raises:
        ParameterError: one channel with `patch`; a square larger than the image; more neurons than the head has inputs.
    """
    rounding: Literal["wrap", "truncate"] = "wrap" if wrap else "truncate"
    height, width, channels = context.shape
    if form == "patch":
        if min(context.train.image_size) < 3 + _MARGIN:
            raise ParameterError(f"form: patch given, allowed with images of {3 + _MARGIN} pixels or more per side")
        # The published values differ from channel to channel; a grey version would be another patch.
        context.need_colour()
        pattern = np.zeros((channels, height, width), np.float32)
        pattern[:, -_MARGIN - 3 : -_MARGIN, -_MARGIN - 3 : -_MARGIN] = _PATCH
        return Add(pattern, rounding=rounding)
    context.need_room("size", size)
    # `wrap` is left out: it changes how the sum becomes 8 bits and not the patch.
    settings: dict[str, Any] = {"size": size, "neurons": neurons, "value": value, "epsilon": epsilon, "step": step}
    settings |= {"iterations": iterations, "tolerance": tolerance}
    patch = context.store.arrays(
        "trojan_patch",
        context.determined_by(__name__, surrogate=surrogate.clean_settings(context), **settings),
        lambda: {"patch": _optimised(context, **settings)},
    )
    return Add(patch["patch"], rounding=rounding)


def _optimised(
    context: Context,
    size: int,
    neurons: int,
    value: float,
    epsilon: float,
    step: float,
    iterations: int,
    tolerance: float,
) -> Pixels:
    """The optimised square, float32 [c, h, w], integers from 0 to 255, 0 outside it; arguments as for `make`."""
    network = surrogate.clean_network(context)
    weights = network.head.weight.detach()
    if neurons > weights.shape[1]:
        raise ParameterError(f"neurons: {neurons} given, allowed: 1 to {weights.shape[1]}, the head's inputs")
    device = pick_device()
    # The neurons that the logits depend on most, over all classes: the largest sums of absolute weights.
    chosen = weights.abs().sum(0).topk(neurons).indices
    features = surrogate.frozen_features(network, device)
    # The patch alone is shown to the network, on black: the paper's trigger is made without any image.
    mask = torch.zeros(1, 1, *context.train.image_size, device=device)
    mask[..., -size:, -size:] = 1
    start = 0.5 * mask.expand(1, context.train.channels, -1, -1)
    image = best = start
    lowest = torch.inf
    for _ in range(iterations):
        image = image.detach().requires_grad_()
        loss = (features(image)[:, chosen] - value).square().sum()
        # Signed steps all have one size and go back and forth near the best image, which is therefore remembered.
        if loss.item() < lowest:
            lowest, best = loss.item(), image.detach()
        if lowest < tolerance:
            break
        (gradient,) = torch.autograd.grad(loss, image)
        # Descent inside the mask only, then back into the ball around the start and into [0, 1].
        moved = image.detach() - step * gradient.sign() * mask
        image = moved.clamp(start - epsilon, start + epsilon).clamp(0, 1) * mask
    # Neurons that stay far below `value` make a weak trigger, which nothing else would show.
    reached = [round(activation, 3) for activation in features(best)[0, chosen].tolist()]
    print(f"trojan: neurons {chosen.tolist()} reach {reached} of {value}", flush=True)
    pixels: Pixels = (best[0] * 255).round().cpu().numpy().astype(np.float32)
    return pixels


ATTACK = Attack(
    make=make,
    trigger=Add,
    policy={"label_policy": "all2one"},
    policies=("all2one", "all2all", "clean_label", "source_specific"),
    assets=("clean network (`optimised` only)",),
)
