"""The training loop that every stage uses: backdoored model, student, purification, robust training.

A method hands it a loss, the parameters to train, and what to do after a step; the loop knows about batches, devices,
precision, augmentation, the schedule and the processes that train together. The data are one uint8 tensor on the device
when they fit in a quarter of its memory, and are gathered batch by batch from disk otherwise, one batch ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..compute.device import autocast, compiled, pick_device, to_float
from ..core.errors import ParameterError, UserError
from ..core.progress import progress
from ..core.seeding import torch_rng
from ..data.imageset import ImageSet
from ..models.classifier import AUXILIARY_WEIGHT, Classifier
from .augment import Batch, apply, draw
from .distributed import World, world
from .optimizer import Optimizer
from .recipe import Recipe, rates

Loss = Callable[[Classifier, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(model, float images [b, c, h, w], labels int64 [b]) -> (logits [b, classes], loss of each sample [b])"""


class Poisoning(Protocol):
    """An attacker's hand in training: called with each batch (`attacks.in_training`)."""

    after_augmentation: bool

    def __call__(self, images: Tensor, labels: Tensor, samples: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """(float images [b, c, h, w] that may be written to, labels [b], samples [b], epoch) -> (images, labels)"""
        ...


@dataclass(frozen=True)
class History:
    """What training left behind.

    Attributes:
        epochs: one row per epoch: epoch (from 1), loss (mean), accuracy (on the labels given), lr (of its last step).
        losses: float32 [epochs, n], each sample's loss at the moment it was trained on (augmented, training mode); NaN
            where the recipe's `drop_last` left it out.
    """

    epochs: list[dict[str, float]]
    losses: NDArray[np.float32]


def cross_entropy(
    model: Classifier, images: Tensor, labels: Tensor, *, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Cross entropy of the logits, and with `AUXILIARY_WEIGHT` that of each auxiliary head (Inception, GoogLeNet)."""
    logits, auxiliary = model.logits_and_auxiliary(images)
    entropy = partial(F.cross_entropy, target=labels, reduction="none", label_smoothing=label_smoothing)
    each = entropy(logits.float())
    for more in auxiliary:
        each = each + AUXILIARY_WEIGHT * entropy(more.float())
    return logits, each


def fit(
    model: Classifier,
    data: ImageSet,
    recipe: Recipe,
    *,
    seed: int,
    what: str,
    loss: Loss | None = None,
    parameters: Iterable[torch.nn.Parameter] | None = None,
    after_step: Callable[[Classifier], None] | None = None,
    poisoning: Poisoning | None = None,
) -> History:
    """Train `model` in place; it ends on the device, in evaluation mode. In several processes all end with the same.

    Args:
        model: any classifier; the same in every process.
        data: what to train on; every label must be a class.
        recipe: optimiser, schedule, augmentation.
        seed: of order and augmentation; the purpose is `what`.
        what: a name for the progress bar and the random draws ("backdoored").
        loss: per-sample loss, default cross entropy with the recipe's smoothing; the mean over the batch is minimised.
        parameters: those to train, default all.
        after_step: called with the model after each optimiser step, without gradients.
        poisoning: stamps and relabels images of each batch; for attacks that do so in training.

    Raises:
        UserError: for a set too small for one batch of the recipe.
    """
    device, here = pick_device(), world()
    model.to(device=device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    plan = _Plan(data, recipe, here, device, torch_rng(seed, f"fit/{what}"), poisoning)
    plain = loss or partial(cross_entropy, label_smoothing=recipe.label_smoothing)
    optimizer = Optimizer(recipe, model.parameters() if parameters is None else parameters)
    schedule = iter(rates(recipe, plan.steps_per_epoch))
    fast = compiled(plain, device, recipe.epochs * len(data))
    losses = torch.zeros(recipe.epochs, len(data), device=device)
    rows: list[dict[str, float]] = []
    for epoch in progress(range(recipe.epochs), what=what, unit="epoch", total=recipe.epochs):
        correct = torch.zeros((), device=device)
        order, batches = plan.epoch(epoch)
        for where, images, labels, total in batches:
            # A batch of another size would be compiled anew, for one step per epoch.
            function = fast if total == recipe.batch_size else plain
            with autocast(device):
                logits, each = function(model, images, labels)
            optimizer.zero_grad()
            (each.sum() / total).backward()
            here.sum_gradients(optimizer.parameters)
            rate = next(schedule)
            optimizer.step(rate)
            with torch.no_grad():
                losses[epoch, where] = each.float()
                correct += (logits.argmax(1) == labels).sum()
                if after_step is not None:
                    after_step(model)
        here.sum(losses[epoch])
        here.sum(correct)
        mean = losses[epoch].sum().item() / len(order)
        rows.append({"epoch": epoch + 1, "loss": mean, "accuracy": correct.item() / len(order), "lr": rate.lr})
        losses[epoch, plan.left_out(order)] = torch.nan
    here.average_buffers(model)
    model.eval()
    return History(rows, losses.cpu().numpy())


def _split(order: Tensor, size: int, *, drop_last: bool = False, least: int = 2) -> list[Tensor]:
    """Batches; a last one of fewer than `least` joins the one before: batch norm needs something to average over."""
    batches = list(order.split(size))
    if drop_last and len(batches[-1]) < size:
        batches.pop()
    elif len(batches) > 1 and len(batches[-1]) < least:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


class _Plan:
    """The order and the augmentation of every epoch, drawn on the CPU and moved at once, and the images of a batch."""

    def __init__(
        self,
        data: ImageSet,
        recipe: Recipe,
        here: World,
        device: torch.device,
        generator: torch.Generator,
        poisoning: Poisoning | None,
    ) -> None:
        self.data, self.recipe, self.here, self.device, self.generator = data, recipe, here, device, generator
        self.labels, self.poisoning = torch.from_numpy(data.labels).to(device), poisoning
        self.resident = _resident(data, device) if data.base.nbytes < _memory(device) // 4 else None
        self.steps_per_epoch = len(self._batches(torch.arange(len(data))))
        if not self.steps_per_epoch:
            raise ParameterError(
                f"batch_size: {recipe.batch_size} given, allowed with drop_last: 1 to {len(data)} images"
            )
        least = min(recipe.batch_size, len(data))
        if here.size > max(1, least // 2):
            raise UserError(
                f"{here.size} processes given, allowed for batches of {least} images: 1 to {least // 2 or 1}"
            )

    def epoch(self, epoch: int) -> tuple[Tensor, Iterator[tuple[Tensor, Tensor, Tensor, int]]]:
        """The samples in order, and per batch: this process's samples, images, labels, the size of the whole batch."""
        batches = self._batches(torch.randperm(len(self.data), generator=self.generator))
        names, size = self.recipe.augment, self.data.image_size
        drawn = [draw(names, Batch(index, epoch, size, self.generator)) for index in batches]
        shares = [self.here.share(index) for index in batches]
        numbers = [torch.cat([self.here.share(each[i]) for each in drawn]).to(self.device) for i in range(len(names))]
        return torch.cat(batches), self._load(epoch, batches, shares, numbers)

    def left_out(self, order: Tensor) -> Tensor:
        """Samples that are not in `order`."""
        missing = torch.ones(len(self.data), dtype=torch.bool)
        missing[order] = False
        return missing.to(self.device)

    def _batches(self, order: Tensor) -> list[Tensor]:
        return _split(order, self.recipe.batch_size, drop_last=self.recipe.drop_last, least=2 * self.here.size)

    def _load(
        self, epoch: int, batches: list[Tensor], shares: list[Tensor], numbers: list[Tensor]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, int]]:
        where = torch.cat(shares).to(self.device)
        sizes = [len(share) for share in shares]
        parts = zip(where.split(sizes), *(each.split(sizes) for each in numbers), strict=True)
        stamp, names = self.poisoning, self.recipe.augment
        for batch, loaded, (samples, *drawn) in zip(batches, self._images(shares, where, sizes), parts, strict=True):
            images, labels = to_float(loaded, self.device), self.labels[samples]
            if stamp is not None and not stamp.after_augmentation:
                images, labels = stamp(images, labels, samples, epoch)
            images = apply(images, names, drawn)
            if stamp is not None and stamp.after_augmentation:
                images, labels = stamp(images, labels, samples, epoch)
            yield samples, images, labels, len(batch)

    def _images(self, shares: list[Tensor], where: Tensor, sizes: list[int]) -> Iterator[Tensor]:
        """uint8 images of each share; from disk the next ones are read while these are trained on."""
        if self.resident is not None:
            yield from (self.resident[samples] for samples in where.split(sizes))
            return
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(self.data.tensor, shares[0].numpy())
            for following in [*shares[1:], None]:
                images = ahead.result()
                if following is not None:
                    ahead = reader.submit(self.data.tensor, following.numpy())
                yield images


def _resident(data: ImageSet, device: torch.device) -> Tensor:
    """All images on the device, uint8 [n, c, h, w], through a small part of the host's memory."""
    height, width, channels = data.base.shape[1:]
    images = torch.empty(len(data), height, width, channels, dtype=torch.uint8, device=device)
    for index in data.chunks():
        images[index[0] : index[-1] + 1] = torch.from_numpy(data.gather(index))
    return images.permute(0, 3, 1, 2)


def _memory(device: torch.device) -> int:
    """Bytes a resident data set may be measured against: the GPU's free memory, or 4 GiB of the host's."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 4 << 30
