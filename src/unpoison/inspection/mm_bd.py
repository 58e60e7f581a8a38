"""MM-BD (Wang et al., "MM-BD: Post-Training Detection of Backdoor Attacks with Arbitrary Backdoor Pattern Types Using a
Maximum Margin Statistic", S&P 2024).

A backdoor lets the logit of its target rise further above the others than that of any other class, anywhere in the space of
images: nothing but the network is looked at.

Published code: https://github.com/wanghangpsu/MM-BD/blob/903338d/univ_bd.py
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Gt, Lt
from numpy.typing import NDArray
from torch import Tensor, nn

from ..compute.device import autocast, pick_device
from ..compute.finite import check_finite
from ..compute.inference import frozen
from ..core.hyperparameters import Count, Positive
from ..core.progress import progress
from ..core.seeding import torch_rng
from ..data.imageset import ImageSet
from ..data.verdicts import Verdict
from ..models.classifier import Classifier
from .inspector import Inspector, check_classes, groups, span

SMALLEST = 1e-300  # p-value that is written as 300: below it a double has none
STILL = 1e-5  # relative change of a class's margins at which its ascent ends
Momentum = Annotated[float, Ge(0), Lt(1)]
Level = Annotated[float, Gt(0), Lt(1)]


def inspect(
    model: Classifier,
    reserve: ImageSet,
    *,
    seed: int = 0,
    images: Count = 30,
    steps: Count = 300,
    lr: Positive = 0.01,
    momentum: Momentum = 0.2,
    level: Level = 0.05,
) -> Verdict:
    """Minus the decimal logarithm of each class's p-value, were it the class with the largest margin.

    Args:
        seed: seed of the images that ascents start from.
        images: images per class.
        steps: steps of gradient ascent at most.
        lr: learning rate.
        momentum: momentum of the ascent. Without effect in the published code, whose optimiser is made anew in each step.
        level: p-value below which the class with the largest margin is flagged.

    The trusted images are not looked at.

    Raises:
        UserError: fewer than three classes, or a network whose margins are not finite.
    """
    check_classes("mm_bd", model)
    network = frozen(model, pick_device())
    height, width = model.description["image_size"]
    shape = (images, model.description["channels"], height, width)
    parts = [
        largest_margins(network, targets, shape, steps=steps, lr=lr, momentum=momentum, seed=seed)
        for targets in groups(model, images)
    ]
    margins = np.concatenate([margins for margins, _ in parts])
    check_finite("mm_bd", margins, "margins", "classes")
    p, rule = p_values(margins), f"the largest margin, where its p-value is below {level:g}"
    if p is None:
        p, rule = np.ones(len(margins)), "none: all margins but the largest are the same, which is no distribution"
    return Verdict(
        (0 - np.log10(np.maximum(p, SMALLEST))).astype(np.float32),
        (p < level) & (np.arange(len(margins)) == margins.argmax()),
        rule,
        forward_passes=sum(passes for _, passes in parts),
    )


def p_values(margins: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The chance that the largest of k margins is as large as each of these [k], were all of one gamma law: section IV-B.

    The law, with a shift, is fitted to all margins but the largest; the largest of k draws is below a value with the k-th
    power of the probability that one is.

    Returns:
        float64 [k]; None where no law can be fitted, as all others are the same.
    """
    # Here, not above: half a second to import.
    from scipy.stats import gamma

    others = np.delete(margins, margins.argmax())
    if others.std() <= 1e-6 * np.abs(others).max():
        return None
    above = gamma.sf(margins, *gamma.fit(others))
    # 1 - (1 - above)^k, exact where `above` is tiny.
    with np.errstate(divide="ignore"):
        return -np.expm1(len(margins) * np.log1p(-above))


def largest_margins(
    network: nn.Module,
    targets: Tensor,
    shape: tuple[int, int, int, int],
    *,
    steps: int,
    lr: float,
    momentum: float,
    seed: int,
) -> tuple[NDArray[np.float64], int]:
    """The largest margin that gradient ascent reaches from random images, for each of some classes: equation 1 of the paper.

    The margin of a class is its logit less the largest other one. Images are clamped to [0, 1] on their way into the network.

    Args:
        network: network from `frozen`.
        targets: classes, int64 [a]: worked on together, with no influence on each other.
        shape: number of images per class, channels, height, width.
        steps, lr, momentum: as in `inspect`.
        seed: seed of the run.

    Returns:
        Margins, float64 [a], and the number of passes.
    """
    device = pick_device()
    starts = [torch.rand(shape, generator=torch_rng(seed, "mm_bd/start", int(target))) for target in targets]
    ascending = torch.stack(starts).to(device)
    velocity = torch.zeros_like(ascending)
    margins, sums = np.empty(len(targets)), np.full(len(targets), 1000.0)
    active, passes = torch.arange(len(targets)), 0
    for _ in progress(range(steps), what=f"mm_bd, {span(targets)}", unit="step", total=steps):
        clamped = ascending.clamp(0, 1).flatten(0, 1).contiguous(memory_format=torch.channels_last).requires_grad_()
        with autocast(device):
            logits = network(clamped).float()
        wanted = targets[active].to(device).repeat_interleave(shape[0])[:, None]
        margin = logits.gather(1, wanted)[:, 0] - logits.scatter(1, wanted, -torch.inf).amax(1)
        (back,) = torch.autograd.grad(margin.sum(), clamped)
        passes += 2 * len(clamped)
        # The clamp lets nothing through to pixels outside [0, 1].
        inside = (ascending >= 0) & (ascending <= 1)
        velocity.mul_(momentum).add_(back.view_as(ascending) * inside)
        ascending.add_(velocity, alpha=lr)
        reached = margin.detach().double().view(len(active), -1)
        now = reached.sum(1).cpu().numpy()
        # As an array: a tensor of one class would be a number to NumPy, and this no longer a row of it.
        rows = active.numpy()
        margins[rows] = reached.amax(1).cpu().numpy()
        # Where the margins hardly change, the published code ends a class's ascent.
        going = np.abs(sums[rows] - now) >= STILL * np.abs(sums[rows])
        sums[rows] = now
        if not going.any():
            break
        if not going.all():
            active, kept = active[going], torch.from_numpy(going).to(device)
            ascending, velocity = ascending[kept], velocity[kept]
    return margins, passes


INSPECTOR = Inspector(inspect=inspect)
