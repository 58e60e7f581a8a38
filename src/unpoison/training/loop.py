"""The training loop that every stage uses: backdoored model, student, purification, robust training.

A method hands it a loss, the parameters to train, and what to do after a step; the loop knows about batches, devices,
precision, augmentation and the schedule. The data are one uint8 tensor on the device when they fit in a quarter of its
memory, and are gathered batch by batch from disk otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..data.augment import augment
from ..data.imageset import ImageSet
from ..models.classifier import AUXILIARY_WEIGHT, Classifier
from ..progress import progress
from ..seeding import torch_rng
from .device import autocast, pick_device, to_float
from .recipe import Recipe, make_optimizer, make_schedule

Loss = Callable[[Classifier, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(model, float images [b, c, h, w], labels int64 [b]) -> (logits [b, classes], loss of each sample [b])"""


@dataclass(frozen=True)
class History:
    """What training left behind.

    Attributes:
        epochs: one row per epoch: epoch (from 1), loss (mean), accuracy (on the labels given), lr (at its end).
        losses: float32 [epochs, n], each sample's loss at the moment it was trained on (augmented, training mode).
    """

    epochs: list[dict[str, float]]
    losses: NDArray[np.float32]


def cross_entropy(model: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy of the logits, and with `AUXILIARY_WEIGHT` that of each auxiliary head (Inception, GoogLeNet)."""
    logits, auxiliary = model.logits_and_auxiliary(images)
    each = F.cross_entropy(logits.float(), labels, reduction="none")
    for more in auxiliary:
        each = each + AUXILIARY_WEIGHT * F.cross_entropy(more.float(), labels, reduction="none")
    return logits, each


def fit(
    model: Classifier,
    data: ImageSet,
    recipe: Recipe,
    *,
    seed: int,
    what: str,
    loss: Loss = cross_entropy,
    parameters: Iterable[torch.nn.Parameter] | None = None,
    after_step: Callable[[Classifier], None] | None = None,
) -> History:
    """Train `model` in place; it ends on the device, in evaluation mode.

    Args:
        model: any classifier.
        data: what to train on; every label must be a class.
        recipe: optimiser, schedule, augmentation.
        seed: of order and augmentation; the purpose is `what`.
        what: a name for the progress bar and the random draws ("backdoored").
        loss: per-sample loss; the mean over the batch is minimised.
        parameters: those to train, default all.
        after_step: called with the model after each optimiser step, without gradients.
    """
    device = pick_device()
    model.to(device=device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    batches = _Batches(data, device)
    labels = torch.from_numpy(data.labels).to(device)
    generator = torch_rng(seed, f"fit/{what}")
    optimizer = make_optimizer(recipe, model.parameters() if parameters is None else parameters)
    schedule = make_schedule(recipe, optimizer, len(_split(torch.arange(len(data)), recipe.batch_size)))
    losses = torch.zeros(recipe.epochs, len(data), device=device)
    rows: list[dict[str, float]] = []
    for epoch in progress(range(recipe.epochs), what=what, unit="epoch", total=recipe.epochs):
        correct = torch.zeros((), device=device)
        for index in _split(torch.randperm(len(data), generator=generator), recipe.batch_size):
            images = augment(batches(index), recipe.augment, generator)
            where = index.to(device)
            with autocast(device):
                logits, each = loss(model, images, labels[where])
            optimizer.zero_grad(set_to_none=True)
            each.mean().backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                losses[epoch, where] = each.float()
                correct += (logits.argmax(1) == labels[where]).sum()
                if after_step is not None:
                    after_step(model)
        rows.append(
            {
                "epoch": epoch + 1,
                "loss": losses[epoch].mean().item(),
                "accuracy": correct.item() / len(data),
                "lr": float(schedule.get_last_lr()[0]),
            }
        )
    model.eval()
    return History(rows, losses.cpu().numpy())


def _split(order: Tensor, size: int) -> list[Tensor]:
    """Batches; a last one of a single sample joins the one before, as batch norm may have nothing to average over."""
    batches = list(order.split(size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


class _Batches:
    """Index tensors to float image batches, from a resident uint8 tensor or from disk."""

    def __init__(self, data: ImageSet, device: torch.device) -> None:
        self.data, self.device = data, device
        self.resident = data.tensor().to(device) if data.base.nbytes < _memory(device) // 4 else None

    def __call__(self, index: Tensor) -> Tensor:
        if self.resident is not None:
            return to_float(self.resident[index.to(self.device)], self.device)
        return to_float(self.data.tensor(index.numpy()), self.device)


def _memory(device: torch.device) -> int:
    """Bytes a resident data set may be measured against: the GPU's free memory, or 4 GiB of the host's."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 4 << 30
