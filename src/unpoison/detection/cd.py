"""Cognitive Distillation (Huang et al., "Distilling Cognitive Backdoor Patterns within an Image", ICLR 2023).

The smallest mask that keeps the model's logits: a poisoned image needs little more than its trigger, so its mask is small.
The published code's masks depend on the batch's size, these do not: they rank images alike (docs/detection.md).

Published code: https://github.com/HanxunH/CognitiveDistillation/blob/6aba6f9/detection/cognitive_distillation.py
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..compute.device import autocast, pick_device
from ..compute.inference import batches, frozen
from ..core.hyperparameters import Count, NonNegative, Positive
from ..core.seeding import torch_rng
from ..data.features import Features
from ..data.imageset import ImageSet
from ..data.ranks import tie_break
from ..data.scores import Scores
from ..models.classifier import Classifier
from .detector import Detector, check_finite

BATCH = 256  # images of 32 px; the random colours are drawn per batch, so another size means other colours
CAPTION = "Blue: pixels that Cognitive Distillation keeps. Grey: no mask was kept for this sample."
KEPT = 8  # masks of the most and least suspicious samples kept for the report


def distill_masks(
    network: nn.Module,
    images: Tensor,
    generator: torch.Generator,
    *,
    steps: int,
    lr: float,
    gamma: float,
    beta: float,
) -> Tensor:
    """Masks of a batch, float [n, 1, h, w] in (0, 1): section 3.2 of the paper, in its logits variant.

    m = (tanh(theta) + 1) / 2, theta starting at 1; minimised, by Adam with both betas 0.1, is
    mean_k |f(x) - f(x * m + (1 - m) * delta)|_k + gamma * ||m||_1 + beta * TV(m), delta a random colour, new in each step.

    Args:
        network: frozen network in evaluation mode, from images in [0, 1] to the values to keep [n, k].
        images: images, float [n, c, h, w] in [0, 1]; one whose logits are not finite gets a mask of NaN.
        generator: CPU generator for delta, U[0, 1] per sample and channel.
        steps: steps of Adam.
        lr: learning rate of Adam.
        gamma: weight of the L1 norm.
        beta: weight of the total variation.
    """
    n, channels, height, width = images.shape
    # One channel, so the mask hides a pixel in all colours; theta = 1 starts it at 0.88, nearly open.
    theta = torch.ones(n, 1, height, width, device=images.device)
    first, second = torch.zeros_like(theta), torch.zeros_like(theta)
    with torch.no_grad(), autocast(images.device):
        target = network(images).float()
    finite = target.isfinite().all(1)
    for step in range(1, steps + 1):
        # What the mask hides shows one colour per image, another in each step, so that no colour can pass for content.
        delta = torch.rand(n, channels, 1, 1, generator=generator).to(images.device)
        squashed = theta.tanh()
        mask = (squashed + 1) / 2
        contrast = images - delta
        # x * m + (1 - m) * delta, written as delta + (x - delta) * m: one pass, and x - delta is needed again below.
        masked = torch.addcmul(delta, contrast, mask).contiguous(memory_format=torch.channels_last).requires_grad_()
        with autocast(images.device):
            logits = network(masked)
        finite &= logits.isfinite().all(1)
        # The sum over samples, not the published code's mean: as Adam divides by the gradient's size, only its eps feels the
        # difference, and a mask does not depend on how many others are made with it.
        keep = (logits.float() - target).abs().mean(1).sum()
        # Autograd runs through the network only; the terms of the mask are differentiated by hand, which saves a third:
        # the chain rule to m sums over channels, the L1 norm of a positive mask adds gamma to every pixel.
        (back,) = torch.autograd.grad(keep, masked)
        to_mask = (back * contrast).sum(1, keepdim=True).add_(gamma).add_(_variation_gradient(mask), alpha=beta)
        # From m on to theta: dm / dtheta = (1 - tanh(theta)^2) / 2.
        gradient = to_mask.mul_(1 - squashed.square()).div_(2)
        # Adam by hand and in place, with torch.optim.Adam's bias correction; being elementwise, it keeps samples apart.
        first.lerp_(gradient, 0.9)
        second.mul_(0.1).addcmul_(gradient, gradient, value=0.9)
        root = (second / (1 - 0.1**step)).sqrt_().add_(1e-8)
        theta.addcdiv_(first, root, value=-lr / (1 - 0.1**step))
    # Where logits are not finite the gradient is that of the mask's terms alone: a mask that looks sound and means nothing.
    return ((theta.tanh() + 1) / 2).masked_fill(~finite[:, None, None, None], torch.nan)


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
    model: Classifier,
    data: ImageSet,
    reserve: ImageSet,
    features: Features,
    *,
    seed: int = 0,
    steps: Count = 100,
    lr: Positive = 0.1,
    gamma: NonNegative = 0.01,
    beta: NonNegative = 10.0,
) -> Scores:
    """Minus the mask's L1 norm, as a share of the image: a small mask is suspicious.

    Args:
        model: the suspect classifier, left as it was.
        data: the suspect training set.
        reserve: not used.
        features: not used.
        seed: seed for the random colours.
        steps: steps of Adam per image; each one costs a forward and a backward pass.
        lr: learning rate of Adam.
        gamma: weight of the L1 norm, a sum over pixels: 0.01 at 32 px, 0.001 at 224 px.
        beta: weight of the total variation; 10 in the paper, 1 by default in the published code.
    """
    device = pick_device()
    network = frozen(model, device)
    values = np.empty(len(data), np.float32)
    kept: dict[int, NDArray[np.float16]] = {}
    for index, images in batches(data, BATCH, device=device, what="cd"):
        # A generator per batch, named by its first sample: the colours do not depend on the batches before.
        generator = torch_rng(seed, "cd/colours", int(index[0]))
        distilled = distill_masks(network, images, generator, steps=steps, lr=lr, gamma=gamma, beta=beta)
        # Scored in half precision, as stored: a figure of the masks and the scores then agree.
        masks = distilled[:, 0].half().cpu().numpy()
        check_finite("cd", masks, "masks")
        values[index] = -masks.astype(np.float32).mean((1, 2))
        # Memory holds the masks of the most and the least suspicious samples so far, never those of the whole set.
        kept |= dict(zip(index.tolist(), masks, strict=True))
        kept = {key: kept[key] for key in _extremes(values, sorted(kept))}
    shown = _extremes(values, sorted(kept))
    aux = {"index": np.array(shown), "masks": np.stack([kept[key] for key in shown])}
    # Per step a forward pass, and a backward pass to the input, which costs as much.
    return Scores(values, forward_passes=1 + 2.0 * steps, aux=aux, caption=CAPTION)


def _extremes(values: NDArray[np.float32], keys: list[int]) -> list[int]:
    """The `KEPT` most suspicious and the `KEPT` least suspicious of these samples, by falling score, ties by `tie_break`."""
    ordered = sorted(keys, key=lambda key: (-values[key], tie_break(key)))
    return ordered if len(ordered) <= 2 * KEPT else ordered[:KEPT] + ordered[-KEPT:]


DETECTOR = Detector(score=score)
