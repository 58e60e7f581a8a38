"""Cognitive Distillation (Huang et al., "Distilling Cognitive Backdoor Patterns within an Image", ICLR 2023).

The smallest mask that keeps the model's logits: a poisoned image needs little more than its trigger, so its mask is small.
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
from ..data.scores import Scores
from ..models.classifier import Classifier
from .detector import Detector

BATCH = 256  # images of 32 px
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
    """The masks of a batch: section 3.2 of the paper, in its logits variant.

    m = (tanh(theta) + 1) / 2, theta starting at 1; minimise, by Adam with both betas 0.1,
    mean_k |f(x) - f(x * m + (1 - m) * delta)|_k + gamma * ||m||_1 + beta * TV(m), delta one random colour per step.

    Args:
        network: frozen, in evaluation mode; images in [0, 1] to the values to keep [n, k].
        images: float [n, c, h, w].
        generator: CPU generator for delta, U[0, 1] per sample and channel.

    Returns:
        float [n, 1, h, w] in (0, 1).
    """
    n, channels, height, width = images.shape
    theta = torch.ones(n, 1, height, width, device=images.device)
    first, second = torch.zeros_like(theta), torch.zeros_like(theta)
    with torch.no_grad(), autocast(images.device):
        target = network(images).float()
    for step in range(1, steps + 1):
        delta = torch.rand(n, channels, 1, 1, generator=generator).to(images.device)
        squashed = theta.tanh()
        mask = (squashed + 1) / 2
        contrast = images - delta
        masked = torch.addcmul(delta, contrast, mask).contiguous(memory_format=torch.channels_last).requires_grad_()
        with autocast(images.device):
            logits = network(masked)
        keep = (logits.float() - target).abs().mean(1).sum()
        # Autograd only through the network; the mask's own terms are differentiated by hand, which saves a third.
        (back,) = torch.autograd.grad(keep, masked)
        to_mask = (back * contrast).sum(1, keepdim=True).add_(gamma).add_(_variation_gradient(mask), alpha=beta)
        gradient = to_mask.mul_(1 - squashed.square()).div_(2)
        # Adam by hand, in place: samples are independent, and the bias correction is that of torch.optim.Adam.
        first.lerp_(gradient, 0.9)
        second.mul_(0.1).addcmul_(gradient, gradient, value=0.9)
        root = (second / (1 - 0.1**step)).sqrt_().add_(1e-8)
        theta.addcdiv_(first, root, value=-lr / (1 - 0.1**step))
    return (theta.tanh() + 1) / 2


def total_variation(masks: Tensor) -> Tensor:
    """Squared differences of neighbours, summed and divided by the number of pixels: float [n, 1, h, w] to [n]."""
    vertical = (masks[:, :, 1:] - masks[:, :, :-1]).square().sum((1, 2, 3))
    horizontal = (masks[:, :, :, 1:] - masks[:, :, :, :-1]).square().sum((1, 2, 3))
    return (vertical + horizontal) / masks[0].numel()


def _variation_gradient(masks: Tensor) -> Tensor:
    """The derivative of `total_variation` by the masks, [n, 1, h, w]."""
    gradient = torch.zeros_like(masks)
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
        reserve, features: not used.
        seed: of the random colours.
        steps, lr: of Adam (100, 0.1).
        gamma: weight of the L1 norm: 0.01 at 32 px, 0.001 at 224 (the norm is a sum over pixels).
        beta: weight of the total variation: 10 in the paper, 1 in the code's default.
    """
    device = pick_device()
    network = frozen(model, device)
    values = np.empty(len(data), np.float32)
    kept: dict[int, NDArray[np.float16]] = {}
    for index, images in batches(data, BATCH, device=device, what="cd"):
        generator = torch_rng(seed, "cd/colours", int(index[0]))
        distilled = distill_masks(network, images, generator, steps=steps, lr=lr, gamma=gamma, beta=beta)
        masks = distilled[:, 0].half().cpu().numpy()
        values[index] = -masks.astype(np.float32).mean((1, 2))
        kept |= dict(zip(index.tolist(), masks, strict=True))
        kept = {key: kept[key] for key in _extremes(values, sorted(kept))}
    shown = _extremes(values, sorted(kept))
    aux = {"index": np.array(shown), "masks": np.stack([kept[key] for key in shown])}
    return Scores(values, forward_passes=1 + 2.0 * steps, aux=aux, caption=CAPTION)


def _extremes(values: NDArray[np.float32], keys: list[int]) -> list[int]:
    """Of these samples the `KEPT` most suspicious ones, then the `KEPT` least suspicious, each by falling score."""
    ordered = sorted(keys, key=lambda key: (-values[key], key))
    return ordered if len(ordered) <= 2 * KEPT else ordered[:KEPT] + ordered[-KEPT:]


DETECTOR = Detector(score=score)
