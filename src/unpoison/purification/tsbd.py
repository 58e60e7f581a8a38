"""TSBD (Lin et al., "Unveiling and Mitigating Backdoor Vulnerabilities based on Unlearning Weight Changes and Backdoor
Activeness", NeurIPS 2024).

What changes most while the network unlearns clean images also changes most while it would unlearn the backdoor (section 4.2):
clean unlearning, neurons ranked by the sum of their weights' absolute changes, the most changed weights of the first of them
set to zero, and fine-tuning with a penalty on the norm of the gradient, as neurons of a backdoor are the more active ones.

Published code: https://github.com/linweiii/TSBD/blob/3718c67/tsbd.py. It rounds the changes of neurons to four decimals before it
ranks them, leaves out convolutions in shortcuts, tries eleven shares of neurons from 0.01 to 0.9 and shows all, and fine-tunes for
an epoch more than it is told. Its unlearning ends at an accuracy of 0.1, of ten classes; here at chance. The bound on the loss that
is raised is added here.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Literal

import torch
from torch import Tensor, nn

from ..compute.device import autocast
from ..core.errors import ParameterError
from ..core.hyperparameters import Count, Epochs, Fraction, NonNegative, Positive
from ..core.progress import progress
from ..data.imageset import ImageSet
from ..models.classifier import Classifier
from ..training.loop import cross_entropy
from ..training.optimizer import Optimizer
from ..training.recipe import AugmentationName, Rate, Recipe
from ..training.sam import displaced
from .batches import Batches, check_batches, check_purified, on_device
from .clean_unlearning import unlearned
from .purifier import Purifier


def purify(
    model: Classifier,
    reserve: ImageSet,
    *,
    seed: int = 0,
    unlearn_epochs: Epochs = 1000,
    unlearn_lr: Positive = 1e-4,
    unlearn_bound: Positive | None = 20.0,
    layers: Literal["conv", "all"] = "conv",
    neurons: Fraction = 0.15,
    weights: Fraction = 0.7,
    epochs: Epochs = 20,
    batch_size: Count = 256,
    lr: Positive = 0.01,
    momentum: Fraction = 0.9,
    weight_decay: NonNegative = 0.0,
    radius: NonNegative = 0.05,
    alpha: Fraction = 0.7,
    augment: list[AugmentationName] | tuple[AugmentationName, ...] = (),
) -> Classifier:
    """Set the weights to zero that clean unlearning changes most, and tune the others with them; a new model is returned.

    Args:
        model: the backdoored classifier, left as it was.
        reserve: trusted, labelled images.
        seed: seed for the order of the images and their augmentation.
        unlearn_epochs: passes of clean unlearning at most; it ends with the first whose accuracy is at chance.
        unlearn_lr: learning rate of clean unlearning.
        unlearn_bound: loss of a sample beyond which unlearning raises it no further. With null, as published, it goes
            on; the accuracy is at chance long before.
        layers: layers whose neurons are ranked, `conv` for convolutions, or `all` for linear layers as well. A network of
            tokens needs `all`; projections into queries, keys and values that are no layer of their own are left out.
        neurons: share of all neurons, of the most changed ones, in which weights are set to zero. A neuron is a row of a
            weight, for one output channel.
        weights: share of these neurons' weights, of the most changed ones, that is set to zero.
        epochs: passes of fine-tuning.
        batch_size: images per step, of unlearning and of fine-tuning.
        lr: learning rate of fine-tuning, the same throughout.
        momentum: momentum of SGD in both.
        weight_decay: L2 penalty of fine-tuning; none in the published code.
        radius: way along the gradient to where its norm is looked at, in each weight tensor by itself.
        alpha: share of the gradient there in each step, which makes the penalty; the rest is the gradient here.
        augment: augmentations by name, in order, out of `training.augment`; [crop, flip] in the published code.

    Raises:
        ParameterError: a network without layers of the kind, batches of one image where batch norm needs more, an ascent or a
            training that diverges.
    """
    network = on_device(deepcopy(model), "tsbd")
    if not ranked(network, layers):
        raise ParameterError(
            f"layers: {layers} given, allowed for {model.description['name']}, without convolution: all"
        )
    check_batches(network, batch_size, reserve)
    batches = Batches(reserve, batch_size, seed=seed, purpose="tsbd", augment=augment)
    forgetful = unlearned(
        network,
        batches,
        reserve,
        what="tsbd",
        epochs=unlearn_epochs,
        lr=unlearn_lr,
        momentum=momentum,
        bound=unlearn_bound,
    )
    rows = [layer.weight for layer in ranked(network, layers)]
    zero_most_changed(rows, [layer.weight for layer in ranked(forgetful, layers)], neurons, weights)

    network.train()
    optimizer = Optimizer(Recipe(weight_decay=weight_decay), network.parameters())

    def differentiate(images: Tensor, labels: Tensor) -> None:
        with autocast(batches.device):
            _, losses = cross_entropy(network, images, labels)
        optimizer.zero_grad()
        losses.mean().backward()

    for epoch in progress(range(epochs), what="tsbd, fine-tuning", unit="epoch", total=epochs):
        for images, labels in batches.epoch(epoch):
            differentiate(images, labels)
            moved = [parameter for parameter in optimizer.parameters if parameter.grad is not None]
            here = [parameter.grad for parameter in moved if parameter.grad is not None]
            # The gradient of L + lambda |grad L| is, in first order, a mixture of the gradients here and a little further up
            # (Zhao et al., "Penalizing Gradient Norm for Efficiently Improving Generalization", ICML 2022, section 3.3).
            with displaced(network, moved, (radius * gradient / (gradient.norm() + 1e-12) for gradient in here)):
                differentiate(images, labels)
            for parameter, gradient in zip(moved, here, strict=True):
                parameter.grad = torch.lerp(gradient, parameter.grad, alpha)  # type: ignore[arg-type]
            optimizer.step(Rate(lr, momentum))
    optimizer.zero_grad()
    check_purified(network, reserve, "tsbd", lr)
    return network.eval()


def ranked(network: nn.Module, layers: Literal["conv", "all"]) -> list[nn.Conv2d | nn.Linear]:
    """The layers whose neurons are ranked, in the network's own order."""
    kinds = nn.Conv2d if layers == "conv" else (nn.Conv2d, nn.Linear)
    return [module for module in network.modules() if isinstance(module, kinds)]


@torch.no_grad()
def zero_most_changed(before: list[Tensor], after: list[Tensor], neurons: float, weights: float) -> None:
    """Set to zero what has changed most: in the most changed neurons of all layers together, their most changed weights.

    Args:
        before: weights, [outputs, …] each, written to.
        after: the same weights after the change.
        neurons: share of all rows that weights are set to zero in.
        weights: share of the weights of those rows that is set to zero.
    """
    changes = [(new - old).abs().flatten(1) for old, new in zip(before, after, strict=True)]
    sums = torch.cat([change.sum(1) for change in changes])
    chosen = torch.zeros_like(sums, dtype=torch.bool)
    # Stable: of equal neurons the first, on any device.
    chosen[sums.argsort(descending=True, stable=True)[: int(len(sums) * neurons)]] = True
    parts = chosen.split([len(change) for change in changes])
    of_chosen = torch.cat([change[rows].flatten() for change, rows in zip(changes, parts, strict=True)])
    count = int(len(of_chosen) * weights)
    if not count:
        return
    # One threshold for all of them, not a share of each neuron.
    least = of_chosen.topk(count).values[-1]
    for weight, change, rows in zip(before, changes, parts, strict=True):
        weight.masked_fill_(((change >= least) & rows[:, None]).view(weight.shape), 0)


PURIFIER = Purifier(purify=purify)
