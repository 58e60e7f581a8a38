"""Feature Shift Tuning (Min et al., "Towards Stable Backdoor Purification through Feature Shift Tuning", NeurIPS 2023).

The head is drawn anew and kept away from the compromised one, so the features have to move: minimise
CE + alpha * <W, W_ori> subject to the head keeping its original norm, ||W||_F = ||W_ori||_F.

Published code: https://github.com/AISafety-HKUST/stable_backdoor_purification/blob/37d2ef5/fine_tune/ft.py
"""

from __future__ import annotations

from copy import deepcopy
from typing import Literal

import torch
from torch import Tensor

from ..compute.device import pick_device
from ..compute.finite import check_network
from ..core.hyperparameters import Count, Epochs, NonNegative, Positive
from ..core.seeding import torch_rng
from ..data.imageset import ImageSet
from ..models.classifier import Classifier
from ..training.loop import cross_entropy, fit
from ..training.recipe import AugmentationName, Recipe
from .purifier import Purifier


def purify(
    model: Classifier,
    reserve: ImageSet,
    *,
    seed: int = 0,
    epochs: Epochs = 10,
    batch_size: Count = 128,
    lr: Positive = 0.01,
    weight_decay: NonNegative = 0.0,
    alpha: NonNegative = 0.1,
    schedule_per: Literal["batch", "epoch"] = "batch",
    augment: list[AugmentationName] | tuple[AugmentationName, ...] = (),
) -> Classifier:
    """Tune all weights on the trusted reserve; a new model is returned.

    Args:
        model: the backdoored classifier, left as it was.
        reserve: trusted, labelled images.
        seed: seed for the new head, the order of the images and their augmentation.
        epochs: passes over the trusted reserve. 10 in the published code.
        batch_size: images per step. 128 in the published code.
        lr: learning rate of the first step, lowered along a cosine. 0.01 in the published code.
        weight_decay: L2 penalty of SGD, whose momentum is 0.9; none in the published code.
        alpha: weight of the inner product; 0.1 in the published example for CIFAR-10, 0.2 by default there.
        schedule_per: how often the learning rate moves, every `batch` or every `epoch`; epoch in the published code.
        augment: augmentations by name, in order, out of `training.augment`; [crop, flip] in the published code.
    """
    # The compromised head is kept apart before the copy's own is overwritten: both terms of the method refer to it.
    check_network(model, "fst")
    tuned = deepcopy(model).to(pick_device())
    head = tuned.head
    original = head.weight.detach().clone()
    norm = original.norm()
    # The new head knows nothing of the old one's classes, so the features have to be learned to fit it.
    _draw_anew(head, seed)

    def loss(network: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits, entropy = cross_entropy(network, images, labels)
        # The loop minimises the mean over samples, so what is added to every sample counts once.
        return logits, entropy + alpha * (network.head.weight * original).sum()

    def keep_norm(network: Classifier) -> None:
        # The constraint, as the published code enforces it: back onto the sphere after each step, momentum untouched. The
        # inner product alone could be minimised by an ever longer head.
        network.head.weight.mul_(norm / network.head.weight.norm())

    recipe = Recipe(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        schedule="cosine",
        schedule_per=schedule_per,
        augment=augment,
    )
    fit(tuned, reserve, recipe, seed=seed, what="fst", loss=loss, after_step=keep_norm)
    return tuned


@torch.no_grad()
def _draw_anew(head: torch.nn.Linear, seed: int) -> None:
    """New weights and bias, uniform in (-s, s), s = 1 / sqrt(number of features), as in the published code."""
    generator, bound = torch_rng(seed, "fst/head"), head.in_features**-0.5
    for parameter in head.parameters():
        parameter.copy_((torch.rand(parameter.shape, generator=generator) * 2 - 1) * bound)


PURIFIER = Purifier(purify=purify)
