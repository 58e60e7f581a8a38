"""Low-frequency trigger (Zeng et al., "Rethinking the Backdoor Attacks' Triggers: A Frequency Perspective", ICCV 2021):
one smooth perturbation for all images, which by itself sends some of them to the target class.

Published code: https://github.com/SCLBD/BackdoorBench/blob/f02e353/attack/lf.py, which adds patterns made beforehand;
for `minmax` https://github.com/HanxunH/CognitiveDistillation/blob/6aba6f9/datasets/cifar_smooth.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from ..compute.device import pick_device, to_float
from ..compute.inference import frozen
from ..core.arrays import IntArray, Pixels
from ..core.errors import ParameterError, UserError
from ..core.hyperparameters import Count, Fraction, NonNegative, Positive
from ..core.seeding import numpy_rng
from ..crafting import surrogate
from ..crafting.attack import Attack
from ..crafting.context import Context
from ..poisoning.trigger import Rounding, Trigger

RANGE = 0.2
"""Largest value of the perturbation, for images in [0, 1]: 51 of 255, as in BackdoorBench's files."""
GROUP = 10
"""Images whose ways to the target are sought at once, from the same perturbation."""


@dataclass(frozen=True)
class LowFrequency(Trigger):
    """image + pattern; with `minmax` the sum is stretched to 0…255 by its own minimum and maximum.

    Attributes:
        pattern: the perturbation, float32 [c, h, w], 0 to 51.
        form: `add` or `minmax`.
    """

    pattern: Pixels
    form: Literal["add", "minmax"] = "add"
    rounding: Rounding = "truncate"

    def apply(self, images: Tensor, keys: IntArray, *, train: bool) -> Tensor:
        stamped = images + torch.from_numpy(self.pattern).to(images)
        if self.form == "add":
            return stamped
        # One range per image, over all its channels: a stretch channel by channel would turn the colours as well.
        low, high = stamped.amin((1, 2, 3), keepdim=True), stamped.amax((1, 2, 3), keepdim=True)
        # A sum that is the same everywhere has no range to stretch; it becomes black.
        return (stamped - low) / (high - low).clamp(min=1e-6) * 255


def make(
    context: Context,
    *,
    form: Literal["add", "minmax"] = "add",
    images: Count = 100,
    sigma: Positive = 1.0,
    overshoot: NonNegative = 0.02,
    iterations: Count = 200,
    passes: Count = 50,
    fooling_rate: Fraction = 0.2,
) -> LowFrequency:
    """A universal perturbation, made on the attacker's own clean network.

    A pass goes through training images of other classes than the target. For those that the perturbation does not yet
    send there, targeted DeepFool (Moosavi-Dezfooli et al. 2016) finds a way. The way is smoothed and added to the
    perturbation, and the sum is scaled to 0…0.2, for images in [0, 1].

    The published algorithm does this after each image. Here ten images start from the same perturbation, and the mean
    of their ways is smoothed and added: no image sees what the other nine contribute, and a single image moves the
    perturbation less. The perturbation of the best pass is kept.

    Args:
        context: the attacker's data and network; `target` is the class that images are sent to.
        form: `add`: added and clipped (BackdoorBench); `minmax`: the sum stretched to 0…255 per image (CD).
        images: number of training images that the pattern is made on (BackdoorBench: 100). All of the other classes, if there are
            fewer.
        sigma: standard deviation of the Gaussian low-pass filter in pixels (our choice).
        overshoot: share by which DeepFool goes beyond the class boundary (DeepFool, BackdoorBench: 0.02).
        iterations: largest number of DeepFool steps per image (BackdoorBench: 200).
        passes: largest number of passes through the images (BackdoorBench: 50).
        fooling_rate: share of the images sent to the target that ends the search (BackdoorBench's code: 0.2). The text
            of that code says 0.8.

    Raises:
        ParameterError: no training image of another class; DeepFool finds no way for any image.
    """
    # `form` is left out: it changes the stamp and not the perturbation, so both forms share an asset.
    settings: dict[str, Any] = {"images": images, "sigma": sigma, "overshoot": overshoot}
    settings |= {"iterations": iterations, "passes": passes, "fooling_rate": fooling_rate}
    if (context.train.labels == context.target).all():
        raise UserError(
            f"data: every training image is of the target class {context.target}; allowed: other classes too"
        )
    perturbation = context.store.arrays(
        "lf_perturbation",
        context.determined_by(__name__, surrogate=surrogate.clean_settings(context), target=context.target, **settings),
        lambda: {"perturbation": universal(context, **settings)},
    )
    # A perturbation of zero would poison nothing, and the victim's low ASR would hide the reason.
    if not perturbation["perturbation"].any():
        raise ParameterError(
            f"iterations: {iterations} given, with which DeepFool brings no image to class {context.target}; "
            "allowed: more, or a surrogate that learns more"
        )
    return LowFrequency(perturbation["perturbation"] * np.float32(255), form)


def universal(
    context: Context,
    images: int,
    sigma: float,
    overshoot: float,
    iterations: int,
    passes: int,
    fooling_rate: float,
) -> Pixels:
    """The perturbation, float32 [c, h, w], 0 to 0.2; arguments as for `make`."""
    device, rng = pick_device(), numpy_rng(context.seed, "lf/images")
    network = frozen(surrogate.clean_network(context), device)
    # Images of the target class have nowhere to go. A sample does, as the perturbation is to be universal.
    sources = rng.permutation(np.flatnonzero(context.train.labels != context.target))[:images]
    clean = to_float(context.train.tensor(sources), device)
    perturbation = best = torch.zeros_like(clean[0])
    best_share = -1.0
    for _ in range(passes):
        # A new order in each pass, so that the groups differ and no image always has the last word.
        for group in torch.from_numpy(rng.permutation(len(sources))).to(device).split(GROUP):
            # Where these images are with the perturbation so far; those that are at the target already contribute 0.
            start = (clean[group] + perturbation).clamp(0, 1)
            ways = deepfool(network, start, context.target, overshoot=overshoot, iterations=iterations)
            # Each way is noise of high frequency. The Gaussian runs over rows and columns, never across channels.
            update = gaussian_filter(ways.mean(0).cpu().numpy(), (0, sigma, sigma))
            if update.any():
                # Min-max scaling keeps the strength fixed from step to step: only the shape is searched for.
                raw = perturbation + torch.from_numpy(update).to(perturbation)
                perturbation = (raw - raw.min()) / (raw.max() - raw.min()) * RANGE
        with torch.no_grad():
            at_target = network((clean + perturbation).clamp(0, 1)).argmax(1) == context.target
        # The share goes up and down from pass to pass, so the best pass is remembered.
        if at_target.float().mean().item() > best_share:
            best, best_share = perturbation, at_target.float().mean().item()
        if best_share >= fooling_rate:
            break
    print(
        f"lf: {best_share:.0%} of {len(sources)} images go to class {context.target}, {fooling_rate:.0%} asked for",
        flush=True,
    )
    return np.ascontiguousarray(best.cpu().numpy())


def deepfool(network: nn.Module, images: Tensor, target: int, *, overshoot: float, iterations: int) -> Tensor:
    """Targeted DeepFool: for each image the small perturbation that sends it to `target`.

    Each step goes to where the linearised logits of the present class and the target are equal.

    Args:
        network: images to logits; its weights need no gradients.
        images: float32 [n, c, h, w] in [0, 1].
        target: class to arrive at.
        overshoot: share by which the sum of the steps is stretched.
        iterations: largest number of steps.

    Returns:
        As `images`, not limited to [0, 1]; zero for an image that needs no step or does not arrive.
    """
    total = torch.zeros_like(images)
    # Rows of the images still on their way: an image that arrives leaves the batch, and its sum no longer changes.
    active = torch.arange(len(images), device=images.device)
    for _ in range(iterations):
        # The test is made on the stretched sum, which is the one returned.
        candidates = (images[active] + (1 + overshoot) * total[active]).requires_grad_()
        logits = network(candidates)
        # How far the target's logit is behind, and its gradient; images do not mix, so one backward pass does for all.
        gap = logits.amax(1) - logits[:, target]
        (slope,) = torch.autograd.grad(gap.sum(), candidates)
        away = logits.argmax(1) != target
        active, slope, gap = active[away], slope[away], gap.detach()[away]
        if not len(active):
            break
        # Newton's step to gap = 0: gap / ||slope||² against the slope. The small constant crosses boundaries met exactly.
        length = (gap + 1e-4) / slope.square().sum((1, 2, 3)).clamp(min=1e-12)
        total[active] -= length[:, None, None, None] * slope
    # An image that ran out of steps is somewhere on its way; its half way would only add noise to the mean.
    with torch.no_grad():
        ways = (1 + overshoot) * total
        arrived = network(images + ways).argmax(1) == target
    return ways * arrived[:, None, None, None]


ATTACK = Attack(
    make=make,
    trigger=LowFrequency,
    policy={"label_policy": "all2one"},
    policies=("all2one", "all2all", "clean_label", "source_specific"),
    assets=("clean network", "universal perturbation"),
)
