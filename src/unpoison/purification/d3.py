"""Distance-Driven Detoxification (Wei et al., "Backdoor Mitigation by Distance-Driven Detoxification", ICCV 2025).

Fine-tuning is content with a backdoored network that is right about clean images. Here the weights of the head have to move as
far as they can from where they were, while the loss stays within a bound (section 3.3): minimise
lambda * max(0, CE - epsilon) - |W - W_ori|_F subject to |W|_F = |W_ori|_F, without which a longer head would do. Only the
head's weights are in the distance and the constraint; all weights are trained.

Published code: https://github.com/shawkui/Distance_Driven_Detoxification/blob/ab96c36/defense/d3.py. It takes the hinge of each
sample and then their mean, as here; the paper takes the hinge of the mean. lambda is 10 in the paper and 0.5 in the code's file
of settings. The head's own norm is put back after every step, as there, momentum untouched.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Literal

import torch
from torch import Tensor, nn

from ..compute.device import pick_device
from ..compute.finite import check_network
from ..core.hyperparameters import Count, Epochs, Fraction, NonNegative, Positive
from ..core.seeding import torch_rng
from ..data.imageset import ImageSet
from ..models.classifier import Classifier
from ..training.loop import cross_entropy, fit
from ..training.recipe import AugmentationName, Recipe
from .purifier import Purifier

Start = Literal["random", "opposite", "zero", "original"]


def purify(
    model: Classifier,
    reserve: ImageSet,
    *,
    seed: int = 0,
    epochs: Epochs = 100,
    batch_size: Count = 256,
    lr: Positive = 0.01,
    momentum: Fraction = 0.9,
    weight_decay: NonNegative = 0.0,
    weight: NonNegative = 10.0,
    epsilon: NonNegative = 0.1,
    start: Start = "random",
    schedule_per: Literal["batch", "epoch"] = "epoch",
    augment: list[AugmentationName] | tuple[AugmentationName, ...] = (),
) -> Classifier:
    """Tune all weights on the trusted reserve, the head's away from where they were; a new model is returned.

    Args:
        model: the backdoored classifier, left as it was.
        reserve: trusted, labelled images.
        seed: seed for the head to start from, the order of the images and their augmentation.
        epochs: passes over the trusted reserve.
        batch_size: images per step.
        lr: learning rate of the first step, lowered along a cosine.
        momentum: momentum of SGD.
        weight_decay: L2 penalty of SGD; none in the published code.
        weight: weight of the loss against the distance, the paper's lambda. Above 1 both are divided by it plus 1, as in
            the published code, so that steps stay of one size.
        epsilon: loss of a sample that counts as none.
        start: weights of the head to start from. They are `random` of the original norm, the `opposite` of the original
            ones, `zero`, or the `original` ones, at which the distance has no slope.
        schedule_per: how often the learning rate moves, every `batch` or every `epoch`.
        augment: augmentations by name, in order, out of `training.augment`; [crop, flip] in the published code.
    """
    check_network(model, "d3")
    tuned = deepcopy(model).to(pick_device())
    original = tuned.head.weight.detach().clone()
    norm, scale = original.norm(), 1 / (weight + 1) if weight > 1 else 1.0
    _start(tuned.head, start, seed)

    def loss(network: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits, entropy = cross_entropy(network, images, labels)
        # The loop minimises the mean over samples, so what is added to every sample counts once.
        return logits, scale * (weight * (entropy - epsilon).relu() - (network.head.weight - original).norm())

    def keep_norm(network: Classifier) -> None:
        # A head of zeros that has not moved yet stays one.
        network.head.weight.mul_(norm / network.head.weight.norm().clamp(min=1e-12))

    recipe = Recipe(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        schedule="cosine",
        schedule_per=schedule_per,
        augment=augment,
    )
    fit(tuned, reserve, recipe, seed=seed, what="d3", loss=loss, after_step=keep_norm)
    return tuned


@torch.no_grad()
def _start(head: nn.Linear, start: Start, seed: int) -> None:
    """Put the weights to start from into the head; its bias stays."""
    if start == "random":
        # Uniform around 0, drawn on the CPU: a GPU sees the same numbers.
        drawn = (torch.rand(head.weight.shape, generator=torch_rng(seed, "d3/head")) - 0.5).to(head.weight.device)
        head.weight.copy_(drawn * (head.weight.norm() / drawn.norm()))
    elif start != "original":
        head.weight.mul_(-1 if start == "opposite" else 0)


PURIFIER = Purifier(purify=purify)
