"""Low-frequency trigger (Zeng et al., "Rethinking the Backdoor Attacks' Triggers: A Frequency Perspective", ICCV 2021):
one smooth perturbation for all images, which itself sends some of them to the target class."""

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
from ..core.errors import ParameterError
from ..core.hyperparameters import Count, Fraction, NonNegative, Positive
from ..core.seeding import numpy_rng
from ..crafting import surrogate
from ..crafting.attack import Attack
from ..crafting.context import Context
from ..poisoning.trigger import Rounding, Trigger

RANGE = 0.2  # of images in [0, 1]
# Images whose way to the target is sought at once, from the same perturbation.
GROUP = 10


@dataclass(frozen=True)
class LowFrequency(Trigger):
    """image + pattern, for `minmax` then stretched to 0…255 by the image's own minimum and maximum.

    Attributes:
        pattern: float32 [c, h, w], 0 to 51.
        form: `add` or `minmax`.
    """

    pattern: Pixels
    form: Literal["add", "minmax"] = "add"
    rounding: Rounding = "truncate"

    def apply(self, images: Tensor, keys: IntArray, *, train: bool) -> Tensor:
        stamped = images + torch.from_numpy(self.pattern).to(images)
        if self.form == "add":
            return stamped
        low, high = stamped.amin((1, 2, 3), keepdim=True), stamped.amax((1, 2, 3), keepdim=True)
        # An image that is the same everywhere has no range; it becomes black.
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
    send there, targeted DeepFool (Moosavi-Dezfooli et al. 2016) finds a way; it is smoothed and added, and the sum is
    scaled to 0…0.2 (of images in [0, 1]). The published algorithm does this after each image; here ten images start
    from the same perturbation, and the mean of their ways is smoothed and added. So no image sees what the other nine
    contribute, and one image moves the perturbation less. The perturbation of the best pass is kept.

    Args:
        context: what the attacker has; `target` is where images are to go.
        form: `add` adds and clips (BackdoorBench); `minmax` stretches the sum to 0…255 per image (CD's Smooth).
        images: training images it is made on; all, if there are fewer of other classes (BackdoorBench).
        sigma: standard deviation of the Gaussian in pixels (ours).
        overshoot: relative length that DeepFool goes beyond the boundary (DeepFool, BackdoorBench).
        iterations: of DeepFool per image, at most (BackdoorBench).
        passes: through the images, at most (BackdoorBench).
        fooling_rate: share of the images sent to the target where it ends (BackdoorBench's code: 0.2; its text: 0.8).

    Raises:
        ParameterError: no training image of another class; DeepFool finds no way for any image.
    """
    settings: dict[str, Any] = {"images": images, "sigma": sigma, "overshoot": overshoot}
    settings |= {"iterations": iterations, "passes": passes, "fooling_rate": fooling_rate}
    if (context.train.labels == context.target).all():
        raise ParameterError(f"images: every training image is of the target class {context.target}")
    perturbation = context.store.arrays(
        "lf_perturbation",
        context.determined_by(__name__, surrogate=surrogate.clean_settings(context), target=context.target, **settings),
        lambda: {"perturbation": universal(context, **settings)},
    )
    if not perturbation["perturbation"].any():
        raise ParameterError(
            f"iterations: {iterations} given, with which DeepFool brings no image to class {context.target}; "
            "allowed: more, or an attack.surrogate that learns more"
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
    """The perturbation, float32 [c, h, w], 0 to 0.2. See `make` for the arguments."""
    device, rng = pick_device(), numpy_rng(context.seed, "lf/images")
    network = frozen(surrogate.clean_network(context), device)
    others = rng.permutation(np.flatnonzero(context.train.labels != context.target))[:images]
    clean = to_float(context.train.tensor(others), device)
    perturbation = best = torch.zeros_like(clean[0])
    most = -1.0
    for _ in range(passes):
        for group in torch.from_numpy(rng.permutation(len(others))).to(device).split(GROUP):
            start = (clean[group] + perturbation).clamp(0, 1)
            ways = deepfool(network, start, context.target, overshoot=overshoot, iterations=iterations)
            update = gaussian_filter(ways.mean(0).cpu().numpy(), (0, sigma, sigma))
            if update.any():
                raw = perturbation + torch.from_numpy(update).to(perturbation)
                perturbation = (raw - raw.min()) / (raw.max() - raw.min()) * RANGE
        with torch.no_grad():
            sent = network((clean + perturbation).clamp(0, 1)).argmax(1) == context.target
        # The share goes up and down from pass to pass.
        if sent.float().mean().item() > most:
            best, most = perturbation, sent.float().mean().item()
        if most >= fooling_rate:
            break
    print(
        f"lf: {most:.0%} of {len(others)} images go to class {context.target}, {fooling_rate:.0%} asked for", flush=True
    )
    return np.ascontiguousarray(best.cpu().numpy())


def deepfool(network: nn.Module, images: Tensor, target: int, *, overshoot: float, iterations: int) -> Tensor:
    """Targeted DeepFool: per image the small perturbation that sends it to `target`.

    Each step goes to where the linearised logits of the present class and the target are equal. Finished images stay.

    Args:
        network: images to logits; its weights need no gradients.
        images: float32 [n, c, h, w] in [0, 1].
        target: the class.
        overshoot: the sum of the steps is stretched by 1 + overshoot.
        iterations: at most.

    Returns:
        As `images`, not limited to [0, 1]; zero for an image that is there already or does not arrive.
    """
    total = torch.zeros_like(images)
    active = torch.arange(len(images), device=images.device)
    for _ in range(iterations):
        found = (images[active] + (1 + overshoot) * total[active]).requires_grad_()
        logits = network(found)
        gap = logits.amax(1) - logits[:, target]
        (slope,) = torch.autograd.grad(gap.sum(), found)
        away = logits.argmax(1) != target
        active, slope, gap = active[away], slope[away], gap.detach()[away]
        if not len(active):
            break
        # The small constant crosses boundaries that are met exactly.
        length = (gap + 1e-4) / slope.square().sum((1, 2, 3)).clamp(min=1e-12)
        total[active] -= length[:, None, None, None] * slope
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
