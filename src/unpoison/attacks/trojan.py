"""TrojanNN (Liu et al., "Trojaning Attack on Neural Networks", NDSS 2018, section IV.A): a small patch, optimised to
excite neurons that the network's output hangs on, is added to the image."""

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
_MARGIN = 4  # pixels between the published patch and the right and lower border


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
    right corner at other sizes. It needs colour. `optimised` is a square in the lower right corner (one of the paper's
    three masks) on the attacker's own clean network. The other arguments are for `optimised` only.

    Args:
        context: what the attacker has.
        form: `patch` or `optimised`.
        wrap: whether sums above 255 wrap around, as D-BR's and BackdoorBench's do, instead of being clipped.
        size: side of the square in pixels; 8 at 32 pixels is about 7 % of the image, one of the paper's sizes.
        neurons: inputs of the head to excite: those with the largest sum of absolute weights (BackdoorBench).
        value: what each of them is to reach (BackdoorBench).
        epsilon: how far a value in [0, 1] may move from its start, mid-grey (BackdoorBench, which starts at its mask).
        step: of the signed gradient, in [0, 1] (BackdoorBench).
        iterations: at most (BackdoorBench).
        tolerance: the squared error, summed over the neurons, to stop at (BackdoorBench).

    Raises:
        ParameterError: one channel with `patch`; a square larger than the image; more neurons than the head has inputs.
    """
    rounding: Literal["wrap", "truncate"] = "wrap" if wrap else "truncate"
    height, width, channels = context.shape
    if form == "patch":
        if min(context.train.image_size) < 3 + _MARGIN:
            raise ParameterError(f"form: patch given, allowed with images of {3 + _MARGIN} pixels or more per side")
        context.need_colour()
        pattern = np.zeros((channels, height, width), np.float32)
        pattern[:, -_MARGIN - 3 : -_MARGIN, -_MARGIN - 3 : -_MARGIN] = _PATCH
        return Add(pattern, rounding=rounding)
    context.need_room("size", size)
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
    """float32 [c, h, w], integers from 0 to 255, 0 outside the square."""
    network = surrogate.clean_network(context)
    weights = network.head.weight.detach()
    if neurons > weights.shape[1]:
        raise ParameterError(f"neurons: {neurons} given, allowed: 1 to {weights.shape[1]}, the head's inputs")
    device = pick_device()
    chosen = weights.abs().sum(0).topk(neurons).indices
    features = surrogate.frozen_features(network, device)
    mask = torch.zeros(1, 1, *context.train.image_size, device=device)
    mask[..., -size:, -size:] = 1
    start = 0.5 * mask.expand(1, context.train.channels, -1, -1)
    image = best = start
    least = torch.inf
    for _ in range(iterations):
        image = image.detach().requires_grad_()
        loss = (features(image)[:, chosen] - value).square().sum()
        # Steps of one size go back and forth near the best image, which is therefore remembered.
        if loss.item() < least:
            least, best = loss.item(), image.detach()
        if least < tolerance:
            break
        (gradient,) = torch.autograd.grad(loss, image)
        moved = image.detach() - step * gradient.sign() * mask
        image = moved.clamp(start - epsilon, start + epsilon).clamp(0, 1) * mask
    reached = [round(each, 3) for each in features(best)[0, chosen].tolist()]
    print(f"trojan: neurons {chosen.tolist()} reach {reached} of {value}", flush=True)
    pixels: Pixels = (best[0] * 255).round().cpu().numpy().astype(np.float32)
    return pixels


ATTACK = Attack(
    make=make,
    trigger=Add,
    policy={"label_policy": "all2one"},
    policies=("all2one", "all2all", "clean_label", "source_specific"),
    assets=("clean network", "optimised patch (both only for `optimised`)"),
)
