"""I-BAU (Zeng et al., "Adversarial Unlearning of Backdoors via Implicit Hypergradient", ICLR 2022).

A trigger is a perturbation that most images share, so minimise over the weights the worst that one perturbation can do:
min_w max_delta CE(f_w(x + delta), y). The worst perturbation moves with the weights; the hypergradient of section 3 counts
that in by the implicit function theorem, its inverse Hessian replaced by a few steps of a fixed-point iteration.

Published code: https://github.com/YiZeng623/I-BAU/blob/3f4a6e7/defense.py, whose networks take images in [0, 1], as here;
https://github.com/SCLBD/BackdoorBench/blob/3f4b1a9/defense/i-bau.py adds the perturbation to normalised images, where the same
rates move it by other amounts. Both keep batch norm's statistics and clip nothing, as here. What differs: the batches of the
steps are drawn anew in each round; and of a batch too small for its share of perturbed images there is one, where int(n * .01)
would be none and all that is left plain fine-tuning. The fixed-point iteration has no tolerance to end it early (1e-10 there).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from ..compute.device import autocast
from ..core.hyperparameters import Count, Epochs, Fraction, NonNegative, Positive
from ..core.progress import progress
from ..data.imageset import ImageSet
from ..models.classifier import Classifier
from ..training.optimizer import Optimizer
from ..training.recipe import AugmentationName, Rate, Recipe
from .batches import Batches, check_purified, on_device
from .purifier import Purifier

BilevelLoss = Callable[[Tensor, Sequence[Tensor]], Tensor]
"""(perturbation, weights) -> loss, a scalar that autograd can follow to both"""
Labelled = tuple[Tensor, Tensor]


class TwiceDifferentiable(TorchFunctionMode):
    """Within the block the hard sigmoid (MobileNetV3) is computed by operations that have second derivatives in torch.

    The only layer without one that torchvision's and timm's networks have, beside attention's fused kernels.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.hardsigmoid:
            return F.relu6(args[0] + 3) / 6
        return func(*args, **(kwargs or {}))


def purify(
    model: Classifier,
    reserve: ImageSet,
    *,
    seed: int = 0,
    rounds: Epochs = 5,
    batch_size: Count = 256,
    lr: Positive = 1e-4,
    share: Fraction = 0.01,
    inner_lr: Positive = 10.0,
    penalty: NonNegative = 0.001,
    iterations: Count = 5,
    map_lr: Positive = 0.1,
    augment: list[AugmentationName] | tuple[AugmentationName, ...] = (),
) -> Classifier:
    """Unlearn the worst perturbation of the trusted reserve, round after round; a new model is returned.

    Args:
        model: the backdoored classifier, left as it was.
        reserve: trusted, labelled images.
        seed: seed for the order of the images, by which those that are perturbed are drawn, and their augmentation.
        rounds: rounds, each with a pass that finds a perturbation and one that unlearns it. 5 in BackdoorBench and in the
            authors' code, whose README runs 3.
        batch_size: images per step. 256 in BackdoorBench, 100 in the authors' code.
        lr: learning rate of Adam on the weights. 1e-4 in BackdoorBench, 1e-3 in the authors' code.
        share: share of a batch that carries the perturbation in a step on the weights, at least one image unless it is 0.
        inner_lr: learning rate of SGD on the perturbation.
        penalty: weight of the perturbation's squared norm.
        iterations: steps of the fixed-point iteration.
        map_lr: rate of the gradient descent whose fixed point the perturbation is taken for.
        augment: augmentations by name, in order, out of `training.augment`; none in the authors' code, [crop, flip] in
            BackdoorBench's.
    """
    network = on_device(deepcopy(model), "i_bau").eval()
    optimizer = Optimizer(Recipe(optimizer="adam", lr=lr, weight_decay=0.0), network.parameters())
    batches = Batches(reserve, batch_size, seed=seed, purpose="i_bau", augment=augment)
    for each in progress(range(rounds), what="i_bau", unit="round", total=rounds):
        delta = torch.zeros(reserve.channels, *reserve.image_size, device=batches.device)
        for images, _ in batches.epoch(2 * each):
            with torch.no_grad(), autocast(batches.device):
                predicted = network(images).argmax(1)
            delta.requires_grad_()
            (slope,) = torch.autograd.grad(inner_loss(network, images, predicted, delta, penalty), delta)
            delta = delta.detach().sub_(slope, alpha=inner_lr)
        first = None
        for batch in batches.epoch(2 * each + 1):
            # The fixed-point map is that of the pass's first batch throughout, as published.
            first = first or batch

            def outer(delta: Tensor, _: Sequence[Tensor], batch: Labelled = batch) -> Tensor:
                return outer_loss(network, *batch, delta, share)

            def inner(delta: Tensor, _: Sequence[Tensor], batch: Labelled = first) -> Tensor:
                with TwiceDifferentiable(), sdpa_kernel(SDPBackend.MATH):
                    return inner_loss(network, *batch, delta, penalty)

            weights = optimizer.parameters
            gradients = hypergradient(outer, inner, delta, weights, iterations=iterations, map_lr=map_lr)
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient
            optimizer.step(Rate(lr, 0.9))
    optimizer.zero_grad()
    check_purified(network, reserve, "i_bau", lr)
    return network


def inner_loss(network: Classifier, images: Tensor, labels: Tensor, delta: Tensor, penalty: float) -> Tensor:
    """What the perturbation minimises: -CE(f(x + delta), labels), a mean, + penalty * |delta|^2.

    Args:
        network: network in evaluation mode.
        images: images, float32 [b, c, h, w] in [0, 1].
        labels: classes, int64 [b]: the network's own predictions to find a perturbation, the true ones in the map.
        delta: the perturbation of every image, float32 [c, h, w], in the images' units; their sum is not clipped.
        penalty: weight of the squared norm.
    """
    with autocast(images.device):
        logits = network(images + delta)
    return penalty * delta.square().sum() - F.cross_entropy(logits.float(), labels)


def outer_loss(network: Classifier, images: Tensor, labels: Tensor, delta: Tensor, share: float) -> Tensor:
    """What the weights minimise: the mean cross entropy of a batch in which int(b * share) images carry the perturbation.

    Args: as `inner_loss`, and the share, by which at least one image is perturbed unless it is 0.
    """
    count = max(1, int(len(images) * share)) if share else 0
    # The batches' order is random, so their first images are a random draw.
    carries = (torch.arange(len(images), device=images.device) < count).view(-1, 1, 1, 1)
    with autocast(images.device):
        logits = network(images + carries * delta)
    return F.cross_entropy(logits.float(), labels)


def hypergradient(
    outer: BilevelLoss,
    inner: BilevelLoss,
    delta: Tensor,
    weights: Sequence[Tensor],
    *,
    iterations: int,
    map_lr: float,
) -> list[Tensor | None]:
    """Gradient by the weights of outer(delta*, w), where delta* minimises inner(delta, w) and so moves with them.

    With the map Phi(delta, w) = delta - map_lr * d inner / d delta, whose fixed point is delta*: from v = 0,
    v <- v dPhi/ddelta + d outer/ddelta as often as `iterations` says, then d outer/dw + v dPhi/dw. In the limit
    v = d outer/ddelta (1 - dPhi/ddelta)^-1, the implicit function theorem. Products with the Jacobians, never these themselves.

    Args:
        outer: the loss that the weights minimise.
        inner: the loss that the perturbation minimises, with a second derivative.
        delta: the perturbation delta*, of any shape.
        weights: the weights, which require gradients.
        iterations: steps of the iteration, 1 or more; with 1, v is the outer slope itself.
        map_lr: rate of the map's gradient descent.

    Returns:
        A gradient for each of the weights, None for one that neither loss depends on.
    """
    delta = delta.detach().requires_grad_()
    by_delta, *direct = torch.autograd.grad(outer(delta, weights), [delta, *weights], allow_unused=True)
    if by_delta is None:  # no image carries it
        return direct
    # The one graph that is differentiated again: that of the inner slope.
    (slope,) = torch.autograd.grad(inner(delta, weights), delta, create_graph=True)
    v = by_delta  # the first step, from 0
    for _ in range(iterations - 1):
        # A scalar: the first gradient of a tensor with a given cotangent imports sympy, which takes two seconds.
        (curved,) = torch.autograd.grad((slope * v).sum(), delta, retain_graph=True, materialize_grads=True)
        v = v + by_delta - map_lr * curved
    through = torch.autograd.grad(-map_lr * (slope * v).sum(), weights, allow_unused=True)
    return [b if a is None else a if b is None else a + b for a, b in zip(direct, through, strict=True)]


PURIFIER = Purifier(purify=purify)
