"""Adversarial Neuron Pruning (Wu & Wang, "Adversarial Neuron Pruning Purifies Backdoored Deep Models", NeurIPS 2021).

A backdoored network falls into the backdoor when its batch norms' weights are pushed a little. Masks are trained that keep the
network right both as it is and under the worst such push, algorithm 1: what a mask has to close for that carries the backdoor.

Published code: https://github.com/csdongxian/ANP_backdoor/blob/85acbae/optimize_mask_cifar.py. Its push starts at random and
takes a step of eps from there, so that it may be twice as long as the paper allows; here it is put back into [-eps, eps]. Its
batches are drawn with replacement, and cropped and flipped.

Published thresholds are read off a sweep against the attack success rate on triggered test images, which no defender has. That
is not offered: a threshold is given, and what it leaves of the accuracy can be seen on the reserve.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.hyperparameters import Count, Fraction, Positive
from ..core.progress import progress
from ..core.seeding import torch_rng
from ..data.imageset import ImageSet
from ..models.classifier import Classifier
from ..training.optimizer import Optimizer
from ..training.recipe import AugmentationName, Rate, Recipe
from .batches import Batches, check_batches, on_device
from .channels import Masks
from .purifier import Purifier


def purify(
    model: Classifier,
    reserve: ImageSet,
    *,
    seed: int = 0,
    iterations: Count = 2000,
    batch_size: Count = 128,
    lr: Positive = 0.2,
    eps: Positive = 0.4,
    steps: Count = 1,
    alpha: Fraction = 0.2,
    threshold: Fraction = 0.2,
    augment: list[AugmentationName] | tuple[AugmentationName, ...] = (),
) -> Classifier:
    """Train masks of batch norm's weights on the trusted reserve and prune the channels with low ones; a new model is returned.

    Args:
        model: the backdoored classifier, left as it was.
        reserve: trusted, labelled images.
        seed: seed for the order of the images, their augmentation, and where each push starts.
        iterations: steps of the masks. 2000 in the published code.
        batch_size: images per step. 128 in the published code, 256 in BackdoorBench.
        lr: learning rate of the masks, whose momentum is 0.9. 0.2 in the published code.
        eps: how far the push may change a weight or bias, a share of it; 0.4 in the published code.
        steps: steps of the push, each `eps` over their number long; 1 in the published code.
        alpha: weight of the loss without the push, 1 less that of the loss under it; 0.2 in the published code.
        threshold: channels whose mask is at most this lose their weight, not their bias; published ones are around 0.2, chosen
            by the triggered test images.
        augment: augmentations by name, in order, out of `training.augment`; [crop, flip] in the published code.

    Raises:
        ParameterError: masks that are not finite; batches of one image where batch norm needs more.
        UserError: a network without batch norm, or one that is not finite.
    """
    pruned = on_device(deepcopy(model), "anp").eval()
    masks = Masks(deepcopy(pruned), "anp")
    check_batches(masks.network, batch_size, reserve)
    batches = Batches(reserve, batch_size, seed=seed, purpose="anp", augment=augment)
    optimizer, rate = Optimizer(Recipe(weight_decay=0.0), [masks.values]), Rate(lr, 0.9)
    generator = torch_rng(seed, "anp/push")

    def starts() -> Iterator[Tensor]:
        while True:
            # Drawn on the CPU: a GPU sees the same numbers. Moved at once: the CPU waits for it once in an epoch.
            drawn = [torch.rand(2, len(masks.values), generator=generator) for _ in batches.sizes]
            yield from ((torch.stack(drawn) * 2 - 1) * eps).to(batches.device)

    steps_taken = zip(range(iterations), batches.forever(), starts(), strict=False)
    for _, (images, labels), start in progress(steps_taken, what="anp", unit="step", total=iterations):
        push = worst_push(masks, images, labels, start, eps=eps, steps=steps)
        optimizer.zero_grad()
        differentiate(masks, images, labels, push, alpha=alpha)
        optimizer.step(rate)
        masks.clip()
    masks.check("lr", lr)
    masks.prune(pruned, threshold)
    return pruned


def worst_push(masks: Masks, images: Tensor, labels: Tensor, start: Tensor, *, eps: float, steps: int) -> Tensor:
    """A push of weights and biases that raises the loss: the inner maximisation, by signs of gradients.

    Args:
        masks: the masks, which stay as they are.
        images: float32 [b, c, h, w] in [0, 1].
        labels: int64 [b].
        start: where it starts, float32 [2, n]: the change of each weight's factor, then of each bias's.
        eps: its bound.
        steps: steps, each of eps / steps.

    Returns:
        The push, float32 [2, n] in [-eps, eps].
    """
    push = start
    for _ in range(steps):
        push.requires_grad_()
        logits = masks.logits(images, masks.values.detach() + push[0], 1 + push[1])
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels), push)
        push = (push.detach() + eps / steps * gradient.sign()).clamp(-eps, eps)
    return push


def differentiate(masks: Masks, images: Tensor, labels: Tensor, push: Tensor, *, alpha: float) -> None:
    """Add the masks' gradients of alpha CE + (1 - alpha) CE under the push, the outer minimisation."""
    # One after the other: the activations of one pass are in memory, not of two.
    clean = F.cross_entropy(masks.logits(images, masks.values), labels)
    (alpha * clean).backward()
    pushed = F.cross_entropy(masks.logits(images, masks.values + push[0], 1 + push[1]), labels)
    ((1 - alpha) * pushed).backward()


PURIFIER = Purifier(purify=purify)
