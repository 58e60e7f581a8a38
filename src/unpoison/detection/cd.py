"""Cognitive Distillation (Huang et al., "Distilling Cognitive Backdoor Patterns within an Image", ICLR 2023).

The smallest mask that keeps the model's logits: a poisoned image needs little more than its trigger, so its mask is small.
The published code's masks depend on the batch's size, these do not: they rank images alike (docs/detection.md).

Published code: https://github.com/HanxunH/CognitiveDistillation/blob/6aba6f9/detection/cognitive_distillation.py
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..compute.device import autocast, batch_size, machine, pick_device, to_float
from ..compute.finite import check_finite
from ..compute.inference import batches
from ..core.arrays import Arrays
from ..core.code import digest_of
from ..core.errors import ParameterError
from ..core.hyperparameters import Count, NonNegative, Positive
from ..core.seeding import numpy_rng, torch_rng
from ..core.sharded import Once
from ..data.ranks import tie_break
from ..data.scores import Scores
from ..models.classifier import Classifier
from .detector import Detector, Suspect
from .passes import frozen_for

BATCH = 256  # images of 32 px; random colours are drawn per batch, so another size means other colours
CAPTION = "The mask is the smallest that leaves the model's answer as it is; what it shows is the cognitive pattern."
TRUSTED = 100
"""Most trusted images that set the threshold."""
AVERAGED = 8
"""Last steps whose masks are averaged where colours are shared: in so few, each octant of the colours comes once."""
KEPT = 8  # masks of the most and least suspicious samples kept for the report


class Distilled(NamedTuple):
    """What `distill` makes of a batch.

    Attributes:
        masks: float [n, 1, h, w] in (0, 1).
        misfits: what each mask fails to keep, float [n]: the objective's first term.
    """

    masks: Tensor
    misfits: Tensor


def random_colours(steps: int, images: int, channels: int, generator: torch.Generator) -> Tensor:
    """The published colours, U[0, 1] for each step, image and channel: float [steps, images, channels, 1, 1]."""
    return torch.rand(steps, images, channels, 1, 1, generator=generator)


def shared_colours(steps: int, channels: int, generator: torch.Generator) -> Tensor:
    """The same colours for all images, float [steps, 1, channels, 1, 1]: a scrambled Sobol sequence.

    What a colour does to all masks alike changes no rank; and the sequence fills the cube of colours evenly, so the means over
    few steps vary less than those of independent draws.
    """
    seed = int(torch.randint(2**31, (1,), generator=generator))
    return torch.quasirandom.SobolEngine(channels, scramble=True, seed=seed).draw(steps).view(steps, 1, channels, 1, 1)


def distill(
    network: nn.Module,
    images: Tensor,
    colours: Tensor,
    *,
    lr: float,
    gamma: float,
    beta: float,
    p: float = 1.0,
    averaged: int = 1,
) -> Distilled:
    """Masks of a batch: section 3.2 of the paper.

    m = (tanh(theta) + 1) / 2, theta starting at 1; minimised, by Adam with both betas 0.1, is
    mean_k |f(x) - f(x * m + (1 - m) * delta)|_k + gamma * ||m||_p + beta * TV(m), delta a colour, another in each step.

    Args:
        network: network in evaluation mode, from images in [0, 1] to the values to keep [n, ...]: logits, or features.
        images: images, float [n, c, h, w] in [0, 1]; one whose values are not finite gets a mask of NaN.
        colours: delta of each step, one per image or one for all, float [steps, n or 1, c, 1, 1].
        lr: learning rate of Adam.
        gamma: weight of the norm.
        beta: weight of the total variation.
        p: order of the norm, at least 1.
        averaged: how many last steps' masks and misfits are averaged.
    """
    # One channel, so the mask hides a pixel in all colours; theta = 1 starts it at 0.88, nearly open.
    theta = torch.ones(len(images), 1, *images.shape[2:], device=images.device)
    first, second = torch.zeros_like(theta), torch.zeros_like(theta)
    with torch.no_grad(), autocast(images.device):
        target = network(images).float().flatten(1)
    finite = target.isfinite().all(1)
    squashed = theta.tanh()
    mask = masks = (squashed + 1) / 2
    misfits = torch.zeros(len(images), device=images.device)
    averaged = min(averaged, len(colours))
    for step, delta in enumerate(colours.to(images.device), 1):
        # What the mask hides shows one colour per image, another in each step, so that no colour can pass for content.
        contrast = images - delta
        # x * m + (1 - m) * delta, written as delta + (x - delta) * m: one pass, and x - delta is needed again below.
        masked = torch.addcmul(delta, contrast, mask).contiguous(memory_format=torch.channels_last).requires_grad_()
        with autocast(images.device):
            kept = network(masked).flatten(1)
        finite &= kept.isfinite().all(1)
        # The sum over samples, not the published code's mean: as Adam divides by the gradient's size, only its eps feels the
        # difference, and a mask does not depend on how many others are made with it.
        keep = (kept.float() - target).abs().mean(1)
        # Autograd runs through the network only; the terms of the mask are differentiated by hand, which saves a third:
        # the chain rule to m sums over channels, the norm of a positive mask adds gamma to every pixel where p is 1.
        (back,) = torch.autograd.grad(keep.sum(), masked)
        to_mask = (back * contrast).sum(1, keepdim=True).add_(_variation_gradient(mask), alpha=beta)
        to_mask.add_(gamma if p == 1 else gamma * (mask / _norm(mask, p)) ** (p - 1))
        # From m on to theta: dm / dtheta = (1 - tanh(theta)^2) / 2.
        gradient = to_mask.mul_(1 - squashed.square()).div_(2)
        # Adam by hand and in place, with torch.optim.Adam's bias correction; being elementwise, it keeps samples apart.
        first.lerp_(gradient, 0.9)
        second.mul_(0.1).addcmul_(gradient, gradient, value=0.9)
        root = (second / (1 - 0.1**step)).sqrt_().add_(1e-8)
        theta.addcdiv_(first, root, value=-lr / (1 - 0.1**step))
        squashed = theta.tanh()
        mask = (squashed + 1) / 2
        if step == len(colours) - averaged + 1:
            masks = torch.zeros_like(mask)
        if step > len(colours) - averaged:
            masks.add_(mask, alpha=1 / averaged)
            misfits.add_(keep.detach(), alpha=1 / averaged)
    # Where values are not finite the gradient is that of the mask's terms alone: a mask that looks sound and means nothing.
    return Distilled(masks.masked_fill(~finite[:, None, None, None], torch.nan), misfits)


def _norm(masks: Tensor, p: float) -> Tensor:
    """Each mask's p-norm, a sum over pixels, [n, 1, 1, 1]."""
    return masks.flatten(1).norm(p, dim=1)[:, None, None, None]


def total_variation(masks: Tensor) -> Tensor:
    """Total variation of each mask, float [n, 1, h, w] to [n]: squared differences of neighbours over all pixels.

    Squared, not absolute: the published code's definition.
    """
    vertical = (masks[:, :, 1:] - masks[:, :, :-1]).square().sum((1, 2, 3))
    horizontal = (masks[:, :, :, 1:] - masks[:, :, :, :-1]).square().sum((1, 2, 3))
    return (vertical + horizontal) / masks[0].numel()


def _variation_gradient(masks: Tensor) -> Tensor:
    """Derivative of `total_variation` with respect to the masks, [n, 1, h, w]."""
    gradient = torch.zeros_like(masks)
    # Each difference pulls its two pixels in opposite directions, by twice its size over the number of pixels.
    for axis in (2, 3):
        step = masks.diff(dim=axis).mul_(2 / masks[0].numel())
        length = masks.shape[axis] - 1
        gradient.narrow(axis, 1, length).add_(step)
        gradient.narrow(axis, 0, length).sub_(step)
    return gradient


def score(
    suspect: Suspect,
    *,
    seed: int = 0,
    steps: Count = 100,
    lr: Positive = 0.1,
    gamma: NonNegative = 0.01,
    beta: NonNegative = 10.0,
    layer: Literal["logits", "features"] = "logits",
    colours: Literal["random", "shared"] = "random",
    misfit: NonNegative = 0.0,
    deviations: NonNegative = 1.0,
) -> Scores:
    """Minus the mask's L1 norm, as a share of the image: a small mask is suspicious.

    Args:
        seed: seed for the colours.
        steps: steps of Adam per image; each one costs a forward and a backward pass.
        lr: learning rate of Adam.
        gamma: weight of the L1 norm, a sum over pixels: 0.01 at 32 px, 0.001 at 224 px.
        beta: weight of the total variation; 10 in the paper, 1 by default in the published code.
        layer: what a mask keeps: the logits, or the last feature map (CD-F of the paper, with gamma 0.001 and lr 0.05).
        colours: those that a mask hides pixels behind: `random`, as published, another for each image; or, for few steps, `shared`
            by all images, with the masks and misfits of the last `AVERAGED` steps averaged.
        misfit: what a change of the kept values by 1, their mean, adds to a mask's share of the image: masks of few steps are not
            done. 1 / (gamma * pixels) in the objective.
        deviations: how many standard deviations below the mean of trusted images the rule's threshold lies; 1 in the paper
            (section 4, gamma there), from 1 % of the clean training images.

    The rule's trusted images are `TRUSTED` of the reserve at most.
    """
    # To `frozen_for` a part of a classifier is like any other.
    watched: Any = suspect.model if layer == "logits" else _FeatureMap(suspect.model)
    network = Once(lambda: frozen_for(watched, suspect.data, pick_device()))
    channels = suspect.data.channels
    shared = shared_colours(steps, channels, torch_rng(seed, "cd/colours/shared"))

    def distilled(images: Tensor, *keys: int | str) -> tuple[Tensor, NDArray[np.float32]]:
        """Masks [n, h, w] in half precision, as stored, and how suspicious each image is."""
        drawn, averaged = shared, AVERAGED
        if colours == "random":
            # A generator per batch, named by its first sample: the colours do not depend on the batches before.
            drawn, averaged = random_colours(steps, len(images), channels, torch_rng(seed, "cd/colours", *keys)), 1
        masks, misfits = distill(network(), images, drawn, lr=lr, gamma=gamma, beta=beta, averaged=averaged)
        masks = masks[:, 0].half().cpu()
        return masks, -(masks.float().mean((1, 2)) + misfit * misfits.cpu()).numpy()

    step, count = batch_size(suspect.data.image_size, BATCH), len(suspect.data)

    def shard(number: int) -> Arrays:
        """Scores of a batch, and the masks that may be shown: never those of the whole set."""
        index = np.arange(number * step, min((number + 1) * step, count))
        masks, scores = distilled(to_float(suspect.data.tensor(index), pick_device()), int(index[0]))
        check_finite("cd", masks.numpy(), "masks")
        shown = np.array(_extremes(dict(zip(index.tolist(), scores.tolist(), strict=True))))
        return {"scores": scores, "index": shown, "masks": masks.numpy()[shown - index[0]]}

    settings = {
        "seed": seed,
        "steps": steps,
        "lr": lr,
        "gamma": gamma,
        "beta": beta,
        "layer": layer,
        "colours": colours,
    }
    about = {**suspect.made_from, **settings, "misfit": misfit, "code": digest_of(Path(__file__)), "machine": machine()}
    scores, masks_of = [], dict[int, NDArray[np.float16]]()
    for part in suspect.store.parts("cd", about, -(-count // step), shard):
        scores.append(part["scores"])
        masks_of |= dict(zip(part["index"].tolist(), part["masks"], strict=True))
    values = np.concatenate(scores)
    shown = _extremes({key: float(values[key]) for key in sorted(masks_of)})
    aux = {"index": np.array(shown), "masks": np.stack([masks_of[key] for key in shown])}
    chosen = np.sort(numpy_rng(seed, "cd/trusted").permutation(len(suspect.reserve))[:TRUSTED])
    flagged, rule = None, "none: a threshold needs two trusted images"
    if len(chosen) > 1:
        parts = batches(suspect.reserve, BATCH, device=pick_device(), what="cd, trusted", index=chosen)
        trusted = np.concatenate([distilled(images, "trusted", int(index[0]))[1] for index, images in parts])
        check_finite("cd", trusted, "masks of trusted images")
        flagged = values > trusted.mean() + deviations * trusted.std(ddof=1)
        rule = f"a mask {deviations:g} standard deviations smaller than the mean of {len(chosen)} trusted images"
    # Per step a forward pass, and a backward pass to the input, which costs as much.
    return Scores(values, forward_passes=1 + 2.0 * steps, aux=aux, caption=CAPTION, flagged=flagged, rule=rule)


class _FeatureMap(nn.Module):
    """A classifier up to its last feature map; otherwise one like any other."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model, self.traceable = model, model.traceable

    def forward(self, images: Tensor) -> Tensor:
        return self.model.feature_map(images)


class CognitiveDistillation:
    """The published class interface, for any network: masks of a batch of images.

    Args:
        lr: learning rate of Adam.
        p: order of the mask's norm, at least 1.
        gamma: weight of the norm, a sum over pixels.
        beta: weight of the total variation; 10 in the paper, 1 by default in the published code, as here.
        num_steps: steps of Adam.
        norm_only: whether each mask's norm is returned instead of the mask.
        seed: seed of the random colours; the same ones for every call.
    """

    def __init__(
        self,
        lr: float = 0.1,
        p: float = 1,
        gamma: float = 0.01,
        beta: float = 1.0,
        num_steps: int = 100,
        norm_only: bool = False,
        seed: int = 0,
    ) -> None:
        if not p >= 1:
            raise ParameterError(f"p: {p!r} given, allowed: 1 and more")
        self.lr, self.p, self.gamma, self.beta, self.num_steps = lr, p, gamma, beta, num_steps
        self.norm_only, self.seed = norm_only, seed

    def __call__(
        self, model: nn.Module, images: Tensor, preprocessor: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Masks, float [n, 1, h, w] in (0, 1), or their norms [n].

        Args:
            model: any network from images to values to keep [n, ...]; it comes back in the mode it was in.
            images: images, float [n, c, h, w] in [0, 1], on the network's device.
            preprocessor: normalisation between image and network, of masked images as well: the published code leaves
                these as they are.

        Raises:
            ParameterError: images of another shape or out of range.
        """
        if images.ndim != 4 or not (images.min() >= 0 and images.max() <= 1):
            raise ParameterError(
                f"images: {list(images.shape)} of {images.min():g} to {images.max():g} given, allowed: [n, c, h, w] of 0 to 1"
            )
        modes = [(module, module.training) for module in model.modules()]
        network = model if preprocessor is None else nn.Sequential(_Applied(preprocessor), model)
        try:
            colours = random_colours(
                self.num_steps, len(images), images.shape[1], torch_rng(self.seed, "cd/colours", 0)
            )
            masks, _ = distill(network.eval(), images, colours, lr=self.lr, gamma=self.gamma, beta=self.beta, p=self.p)
        finally:
            for module, mode in modes:
                module.training = mode
        return _norm(masks, self.p).flatten() if self.norm_only else masks


class _Applied(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


def _extremes(scores: dict[int, float]) -> list[int]:
    """The `KEPT` most suspicious and the `KEPT` least suspicious samples by score, by falling score, ties by `tie_break`."""
    ordered = sorted(scores, key=lambda key: (-scores[key], tie_break(key)))
    return ordered if len(ordered) <= 2 * KEPT else ordered[:KEPT] + ordered[-KEPT:]


DETECTOR = Detector(score=score, single_inputs=True, sharded=True)
