"""Feature Shift Tuning (Min et al., "Towards Stable Backdoor Purification through Feature Shift Tuning", NeurIPS 2023).

The head is drawn anew and kept away from the compromised one, so the features have to move: minimise
CE + alpha * <W, W_ori> subject to the head keeping its original norm, ||W||_F = ||W_ori||_F.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor

from ..compute.device import pick_device
from ..core.hyperparameters import Count, NonNegative, Positive
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
    epochs: Count = 10,
    batch_size: Count = 128,
    lr: Positive = 0.01,
    weight_decay: NonNegative = 0.0,
    alpha: NonNegative = 0.1,
    augment: list[AugmentationName] | tuple[AugmentationName, ...] = (),
) -> Classifier:
    """Tune all weights on the trusted reserve; a new model is returned.

    Args:
        model: the backdoored classifier, left as it was.
        reserve: trusted, labelled images.
        seed: of the new head, order and augmentation.
        epochs, batch_size, lr: SGD with momentum 0.9 and a cosine to 0 (public code: 10, 128, 0.01).
        weight_decay: 0 in the public code.
        alpha: weight of the inner product; 0.1 in the paper's example for CIFAR-10, 0.2 the code's default.
        augment: names from `unpoison.data.augment`.
    """
    tuned = deepcopy(model).to(pick_device())
    head = tuned.head
    original = head.weight.detach().clone()
    norm = original.norm()
    _draw_anew(head, seed)

    def loss(network: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits, each = cross_entropy(network, images, labels)
        # A constant per batch: adding it to every sample adds it once to their mean.
        return logits, each + alpha * (network.head.weight * original).sum()

    def keep_norm(network: Classifier) -> None:
        network.head.weight.mul_(norm / network.head.weight.norm())

    recipe = Recipe(
        epochs=epochs, batch_size=batch_size, lr=lr, weight_decay=weight_decay, schedule="cosine", augment=augment
    )
    fit(tuned, reserve, recipe, seed=seed, what="fst", loss=loss, after_step=keep_norm)
    return tuned


@torch.no_grad()
def _draw_anew(head: torch.nn.Linear, seed: int) -> None:
    """Weights and bias uniform in (-s, s), s = 1 / sqrt(number of features), as in the public code."""
    generator, bound = torch_rng(seed, "fst/head"), head.in_features**-0.5
    for parameter in head.parameters():
        parameter.copy_((torch.rand(parameter.shape, generator=generator) * 2 - 1) * bound)


PURIFIER = Purifier(purify=purify)
