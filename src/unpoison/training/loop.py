"""The training loop that every stage uses: backdoored model, student, purification, robust training.

A method hands it a loss, the parameters to train, and what to do after a step; the loop knows about batches, devices,
precision, augmentation, the schedule and the processes that train together. The images are one uint8 tensor on the device
where they fit in a quarter of its memory; otherwise they are read from disk batch by batch, one batch ahead.
"""

from __future__ import annotations

import math
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
from ..compute.finite import check_network
from ..core.errors import ParameterError, UserError
from ..core.progress import progress
from ..core.seeding import torch_rng
from ..data.imageset import ImageSet
from ..models.classifier import AUXILIARY_WEIGHT, Classifier
from .augment import Batch, apply, draw
from .checks import check_batch_of_one, check_trained, diverged
from .distributed import World, world
from .optimizer import Optimizer
from .recipe import Recipe, rates
from .sam import at_the_worst_weights
from .whitening import whiten

Loss = Callable[[Classifier, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(model, float images [b, c, h, w], labels int64 [b]) -> (logits [b, classes], loss of each sample [b])"""


class Poisoning(Protocol):
    """An attacker's hand in training, called with each batch: `poisoning.in_training.InTraining`.

    Attributes:
        after_augmentation: whether it sees the images after their augmentation, or before.
    """

    after_augmentation: bool

    def __call__(self, images: Tensor, labels: Tensor, samples: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """(float images [b, c, h, w] that may be written to, labels [b], samples [b], epoch) -> (images, labels)"""
        ...


@dataclass(frozen=True)
class History:
    """Record of a training run.

    Attributes:
        epochs: a row per epoch, with epoch (from 1), loss (mean), accuracy (on the labels given), lr (of the last step).
        losses: loss of each sample in the batch it was trained in (augmented, training mode), float32 [epochs, n]; NaN
            where the recipe's `drop_last` left the sample out.
    """

    epochs: list[dict[str, float]]
    losses: NDArray[np.float32]


def cross_entropy(
    model: Classifier, images: Tensor, labels: Tensor, *, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Logits, and the cross entropy of each sample; auxiliary heads (Inception, GoogLeNet) add theirs at `AUXILIARY_WEIGHT`."""
    logits, auxiliary = model.logits_and_auxiliary(images)
    entropy = partial(F.cross_entropy, target=labels, reduction="none", label_smoothing=label_smoothing)
    # In float32: under autocast the logits are bf16, too coarse to compute a loss from.
    losses = entropy(logits.float())
    for head_logits in auxiliary:
        losses = losses + AUXILIARY_WEIGHT * entropy(head_logits.float())
    return logits, losses


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
    """Train `model` in place; it ends on the device, in evaluation mode, and the same in every process.

    Args:
        model: any classifier; the same in every process.
        data: training set; every label must be a class.
        recipe: optimiser, schedule and augmentation.
        seed: seed for the order of the samples and their augmentation.
        what: name of the run ("backdoored"), for the progress bar and as the purpose of its random draws.
        loss: loss of each sample, by default cross entropy with the recipe's smoothing; its mean over a batch is minimised.
        parameters: parameters to train, by default all.
        after_step: function called with the model after each step of the optimiser, without gradients.
        poisoning: stamps and labels put on the images of each batch, for attacks that poison in training.

    Raises:
        ParameterError: too few samples for one batch of the recipe, or batch norm over a single value; a loss, a weight, a
            statistic of batch norm or a logit that is not finite: training has diverged.
        UserError: too few samples for the number of processes, or a network that was not finite before.
    """
    device, here = pick_device(), world()
    check_network(model, what)
    model.to(device=device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    # One generator for the order and the augmentation of the whole run, in the same state in every process.
    plan = Plan(data, recipe, here, device, torch_rng(seed, f"fit/{what}"), poisoning)
    if 1 in plan.sizes:
        check_batch_of_one(model, data, recipe)
    plain = loss or partial(cross_entropy, label_smoothing=recipe.label_smoothing)
    trained = list(model.parameters() if parameters is None else parameters)
    # Without its bias as well: what lies before the second layer then needs no backward pass.
    held = whiten(model, data).requires_grad_(False) if recipe.whiten else None
    optimizer = Optimizer(recipe, trained)
    schedule = rates(recipe, plan.steps_per_epoch)
    fast = compiled(plain, device, recipe.epochs * len(data))
    # On the device: reading a loss in each step would make the CPU wait for the GPU.
    losses = torch.zeros(recipe.epochs, len(data), device=device)

    def differentiate(function: Loss, images: Tensor, labels: Tensor, total: int) -> tuple[Tensor, Tensor]:
        """Logits and losses of this process's share of a batch, and the gradients of the whole one."""
        with autocast(device):
            logits, batch_losses = function(model, images, labels)
        optimizer.zero_grad()
        # Over the whole batch, not this process's share of it: the summed gradients are then those of the mean.
        (batch_losses.sum() / total).backward()
        here.sum_gradients(optimizer.parameters)
        return logits, batch_losses

    rows: list[dict[str, float]] = []
    for epoch in progress(range(recipe.epochs), what=what, unit="epoch", total=recipe.epochs):
        correct = torch.zeros((), device=device)
        order, batches = plan.epoch(epoch)
        for step, (samples, images, labels, total) in enumerate(batches, epoch * plan.steps_per_epoch):
            # A batch of another size would be compiled anew, for one step per epoch.
            function = fast if total == recipe.batch_size else plain
            logits, batch_losses = differentiate(function, images, labels, total)
            if recipe.sam:
                # Kept are the losses above, of the weights as they are; the step follows the gradients of this pass.
                with at_the_worst_weights(model, optimizer.parameters, recipe.sam):
                    differentiate(function, images, labels, total)
            optimizer.step(schedule[step])
            with torch.no_grad():
                losses[epoch, samples] = batch_losses.float()
                correct += (logits.argmax(1) == labels).sum()
                if after_step is not None:
                    after_step(model)
        # Each process has filled its own samples; the others' are zeros there, so the sum is the whole row.
        here.sum(losses[epoch])
        here.sum(correct)
        # The one look at the loss in an epoch, and of all processes the same.
        mean = losses[epoch].sum().item() / len(order)
        if not math.isfinite(mean):
            within = plan.first_bad(losses[epoch][order.to(device)])
            lr = schedule[epoch * plan.steps_per_epoch + within].lr
            where = (
                f"in epoch {epoch + 1} of {recipe.epochs}, step {within + 1} of {plan.steps_per_epoch}, at lr {lr:.3g}"
            )
            raise diverged(recipe, what, f"the loss is not finite, first {where}")
        rows.append(
            {"epoch": epoch + 1, "loss": mean, "accuracy": correct.item() / len(order), "lr": schedule[step].lr}
        )
        # Only now, as NaN would have spoilt the mean.
        losses[epoch, plan.left_out(order)] = torch.nan
    if held is not None:
        held.requires_grad_()
    here.average_buffers(model)
    model.eval()
    check_trained(model, data, recipe, what)
    return History(rows, losses.cpu().numpy())


def _split(order: Tensor, size: int, *, drop_last: bool = False, least: int = 2) -> list[Tensor]:
    """Batches of `size`; a last one below `least` joins the one before, as batch norm needs something to average over."""
    batches = list(order.split(size))
    if drop_last and len(batches[-1]) < size:
        batches.pop()
    elif len(batches) > 1 and len(batches[-1]) < least:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


class Plan:
    """Order and augmentation of every epoch, drawn on the CPU and moved in one go, and the images of each batch.

    Attributes:
        labels: labels on the device, int64 [n].
        sizes: samples in each batch of an epoch.
        steps_per_epoch: batches in an epoch.
    """

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
        self.sizes = [len(batch) for batch in self._batches(torch.arange(len(data)))]
        self.steps_per_epoch = len(self.sizes)
        if not self.steps_per_epoch:
            raise ParameterError(
                f"batch_size: {recipe.batch_size} given, allowed with drop_last: 1 to {len(data)} images"
            )
        # Two samples per process are the least that batch norm can average over.
        least = min(recipe.batch_size, len(data))
        if here.size > max(1, least // 2):
            raise UserError(
                f"{here.size} processes given, allowed for batches of {least} images: 1 to {least // 2 or 1}"
            )

    def epoch(self, epoch: int) -> tuple[Tensor, Iterator[tuple[Tensor, Tensor, Tensor, int]]]:
        """The samples in order; and per batch this process's samples, images and labels, and the whole batch's size."""
        batches = self._batches(torch.randperm(len(self.data), generator=self.generator))
        names, size = self.recipe.augment, self.data.image_size
        # Drawn for whole batches, so the numbers do not depend on how many processes share them; what this process needs of
        # an epoch's numbers then goes to the device as one tensor per augmentation.
        drawn = [draw(names, Batch(index, epoch, size, self.generator)) for index in batches]
        shares = [self.here.share(index) for index in batches]
        numbers = [torch.cat([self.here.share(rows[i]) for rows in drawn]).to(self.device) for i in range(len(names))]
        return torch.cat(batches), self._load(epoch, batches, shares, numbers)

    def first_bad(self, losses: Tensor) -> int:
        """The first step of an epoch whose losses, in the order of training, or their sum so far are not finite."""
        bad = (~losses.double().cumsum(0).isfinite()).nonzero()
        place = int(bad[0]) if len(bad) else len(losses) - 1
        return int(np.searchsorted(np.cumsum(self.sizes), place, side="right"))

    def left_out(self, order: Tensor) -> Tensor:
        """Mask of the samples that are not in `order`, bool [n]."""
        missing = torch.ones(len(self.data), dtype=torch.bool)
        missing[order] = False
        return missing.to(self.device)

    def _batches(self, order: Tensor) -> list[Tensor]:
        return _split(order, self.recipe.batch_size, drop_last=self.recipe.drop_last, least=2 * self.here.size)

    def _load(
        self, epoch: int, batches: list[Tensor], shares: list[Tensor], numbers: list[Tensor]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, int]]:
        # An epoch's samples and numbers lie on the device as a whole; `split` cuts them into batches without a copy.
        indices = torch.cat(shares).to(self.device)
        sizes = [len(share) for share in shares]
        parts = zip(indices.split(sizes), *(rows.split(sizes) for rows in numbers), strict=True)
        stamp, names = self.poisoning, self.recipe.augment
        for batch, loaded, (samples, *drawn) in zip(batches, self._images(shares, indices, sizes), parts, strict=True):
            images, labels = to_float(loaded, self.device), self.labels[samples]
            # An attacker who poisons files stamps before the augmentation; one who controls the loop may stamp after it.
            if stamp is not None and not stamp.after_augmentation:
                images, labels = stamp(images, labels, samples, epoch)
            images = apply(images, names, drawn)
            if stamp is not None and stamp.after_augmentation:
                images, labels = stamp(images, labels, samples, epoch)
            yield samples, images, labels, len(batch)

    def _images(self, shares: list[Tensor], indices: Tensor, sizes: list[int]) -> Iterator[Tensor]:
        """Images of each share, uint8 [b, c, h, w]; from disk, the next ones are read while these are trained on."""
        if self.resident is not None:
            yield from (self.resident[samples] for samples in indices.split(sizes))
            return
        # One thread, so at most two batches are in memory and the disk is read in the order of the batches.
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(self.data.tensor, shares[0].numpy())
            for following in [*shares[1:], None]:
                images = ahead.result()
                if following is not None:
                    ahead = reader.submit(self.data.tensor, following.numpy())
                yield images


def _resident(data: ImageSet, device: torch.device) -> Tensor:
    """All images on the device, uint8 [n, c, h, w], copied in chunks so that the host never holds a second copy."""
    base, plain = data.base, data.overlay is None or not len(data.overlay.index)
    if device.type == "cpu" and plain and isinstance(base, np.ndarray) and base.flags.writeable:
        # In the host's memory already. What is mapped from disk read-only is no tensor.
        return torch.from_numpy(base).permute(0, 3, 1, 2)
    # Filled as [n, h, w, c], the layout on disk, and only viewed as [n, c, h, w].
    height, width, channels = data.base.shape[1:]
    images = torch.empty(len(data), height, width, channels, dtype=torch.uint8, device=device)
    for index in data.chunks():
        images[index[0] : index[-1] + 1] = torch.from_numpy(data.gather(index))
    return images.permute(0, 3, 1, 2)


def _memory(device: torch.device) -> int:
    """Memory that a resident data set is measured against, in bytes: the GPU's free memory, or 4 GiB of the host's."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 4 << 30
