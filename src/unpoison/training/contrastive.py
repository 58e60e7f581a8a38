"""Contrastive training of a network's features: two views of an image are to be close, those of other images far.

SimCLR (Chen et al., ICML 2020) knows no labels; SupCon (Khosla et al., NeurIPS 2020) draws images of one class together as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..compute.checkpoints import Checkpoints
from ..compute.device import full_precision
from ..core.seeding import derive
from ..data.imageset import ImageSet
from ..models.classifier import Classifier
from .hand import Hand, Loss, Objective
from .loop import fit
from .recipe import Recipe
from .views import view

Same = Callable[[Tensor, Tensor], Tensor]
"""Labels int64 [b] and samples int64 [b] of a batch to which image counts which as its like, bool [b, b]."""


def contrastive_loss(first: Tensor, second: Tensor, same: Tensor, *, temperature: float) -> Tensor:
    """Loss of each image, float [b]: the mean over its two views of minus the mean log probability of a view's likes.

    The probability of another view is the softmax of the cosines over the temperature, over all other views of the batch.

    Args:
        first, second: outputs for two views of each image, float [b, k]; their lengths do not count.
        same: whose views (columns) are likes of an image (rows), bool [b, b]; the other view of an image always is its like.
        temperature: what cosines are divided by.
    """
    count = len(first)
    with full_precision(first.device):
        outputs = F.normalize(torch.cat([first, second]).float(), dim=1)
        itself = torch.eye(2 * count, dtype=torch.bool, device=first.device)
        logits = (outputs @ outputs.T / temperature).masked_fill(itself, -torch.inf)
        log_shares = logits - logits.logsumexp(1, keepdim=True)
    likes = (same | torch.eye(count, dtype=torch.bool, device=first.device)).repeat(2, 2) & ~itself
    # Not a product with the mask: minus infinity times 0 is no number.
    losses = -log_shares.masked_fill(~likes, 0).sum(1) / likes.sum(1)
    return (losses[:count] + losses[count:]) / 2


class _Contrast(Hand):
    """Two views of each image in the place of the batch, and the contrastive loss."""

    def __init__(self, same: Same | None, temperature: float, crop: float, weight: float) -> None:
        self.same, self.temperature, self.crop, self.weight = same, temperature, crop, weight

    def objective(self, plain: Loss, model: Classifier, images: Tensor, labels: Tensor, samples: Tensor) -> Objective:
        outputs = model(torch.cat([view(images, crop=self.crop), view(images, crop=self.crop)]))
        first, second = outputs.chunk(2)
        likes = torch.zeros(len(images), len(images), dtype=torch.bool, device=images.device)
        if self.same is not None:
            likes = self.same(labels, samples)
        losses = self.weight * contrastive_loss(first, second, likes, temperature=self.temperature)
        return Objective(first, losses)


def train_features(
    model: Classifier,
    data: ImageSet,
    recipe: Recipe,
    *,
    seed: int,
    what: str,
    temperature: float,
    crop: float = 0.2,
    same: Same | None = None,
    weight: float = 1.0,
    outputs: int = 128,
    checkpoints: Checkpoints | None = None,
) -> None:
    """Train a network's features in place; the head that it has stays as it is, and one of two layers stands in for it.

    Args:
        model: the classifier; it ends on the device, in evaluation mode.
        data: training images, whose labels count where `same` looks at them.
        recipe: recipe of the training. Views are all the augmentation there is, so its own is left out.
        seed: seed for the order, the views and the layers in the head's place.
        what: name of the run, for the progress bar and as the purpose of its random draws.
        temperature: what cosines are divided by.
        crop: least area of a view, as a share of the image's.
        same: which images of a batch are likes; None: none but the views of an image.
        weight: factor on the loss.
        outputs: size of what is compared.
        checkpoints: as those of `training.loop.fit`.

    Raises:
        ParameterError: as `training.loop.fit`.
    """
    head, width = model.head, model.head.in_features
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, f"{what}/projection"))
        projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs))
    model.head = projection.to(head.weight.device)  # type: ignore[assignment]
    try:
        fit(
            model,
            data,
            replace(recipe, augment=()),
            seed=seed,
            what=what,
            hand=_Contrast(same, temperature, crop, weight),
            checkpoints=checkpoints,
        )
    finally:
        model.head = head.to(next(model.parameters()).device)
