"""FT-SAM (Zhu et al., "Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization", ICCV 2023).

Fine-tuning whose steps follow the gradient at the worst weights near by, each weight's share of the way in proportion to its
size (adaptive SAM, section 4.2): the neurons of a backdoor have large weights, and so move the most.

Published code: https://github.com/SCLBD/BackdoorBench/blob/1d5b8b3/defense/ft-sam.py. Its cosine is counted in batches, with a
period of 200 whatever the number of epochs; here one cosine spans the training. Its option to take away a part of the first
gradient (alpha) is off there, and left out here.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Literal

from torch import Tensor

from ..compute.device import autocast
from ..core.hyperparameters import Count, Epochs, Fraction, NonNegative, Positive
from ..core.progress import progress
from ..data.imageset import ImageSet
from ..models.classifier import Classifier
from ..training.loop import cross_entropy
from ..training.optimizer import Optimizer
from ..training.recipe import AugmentationName, Recipe, Smoothing, rates
from ..training.sam import at_the_worst_weights
from .batches import Batches, check_batches, check_purified, on_device
from .purifier import Purifier
from .tuning import smoothing_of_all


def purify(
    model: Classifier,
    reserve: ImageSet,
    *,
    seed: int = 0,
    epochs: Epochs = 100,
    batch_size: Count = 256,
    lr: Positive = 0.01,
    momentum: Fraction = 0.9,
    weight_decay: NonNegative = 5e-4,
    rho: Positive = 2.0,
    adaptive: bool = True,
    label_smoothing: Smoothing = 0.1,
    schedule_per: Literal["batch", "epoch"] = "batch",
    augment: list[AugmentationName] | tuple[AugmentationName, ...] = (),
) -> Classifier:
    """Tune all weights on the trusted reserve by sharpness-aware steps; a new model is returned.

    Args:
        model: the backdoored classifier, left as it was.
        reserve: trusted, labelled images.
        seed: seed for the order of the images and their augmentation.
        epochs: passes over the trusted reserve.
        batch_size: images per step.
        lr: learning rate of the first step, lowered along a cosine.
        momentum: momentum of SGD.
        weight_decay: L2 penalty of SGD.
        rho: length of the way to the worst weights, over all of them together. In the published code as well it takes in
            biases and batch norm, and stays the same throughout.
        adaptive: whether each weight's share of the way is in proportion to its size.
        label_smoothing: share of each label that is spread evenly over the other classes.
        schedule_per: how often the learning rate moves, every `batch` or every `epoch`.
        augment: augmentations by name, in order, out of `training.augment`; [crop, flip] in the published code.

    Raises:
        ParameterError: more smoothing than makes all classes equal, batches of one image where batch norm needs more, or a
            training that diverges.
    """
    network = on_device(deepcopy(model), "ft_sam").train()
    smoothing = smoothing_of_all(label_smoothing, network.head.out_features)
    check_batches(network, batch_size, reserve)
    batches = Batches(reserve, batch_size, seed=seed, purpose="ft_sam", augment=augment)
    recipe = Recipe(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        schedule="cosine",
        schedule_per=schedule_per,
    )
    optimizer, schedule = Optimizer(recipe, network.parameters()), iter(rates(recipe, len(batches)))

    def differentiate(images: Tensor, labels: Tensor) -> None:
        with autocast(batches.device):
            _, losses = cross_entropy(network, images, labels, label_smoothing=smoothing)
        optimizer.zero_grad()
        losses.mean().backward()

    for epoch in progress(range(epochs), what="ft_sam", unit="epoch", total=epochs):
        for images, labels in batches.epoch(epoch):
            differentiate(images, labels)
            with at_the_worst_weights(network, optimizer.parameters, rho, adaptive=adaptive):
                differentiate(images, labels)
            optimizer.step(next(schedule))
    optimizer.zero_grad()
    check_purified(network, reserve, "ft_sam", lr)
    return network.eval()


PURIFIER = Purifier(purify=purify)
