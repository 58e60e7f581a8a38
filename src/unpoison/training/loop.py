"""The training loop that every stage uses: backdoored model, student, purification, robust training.

A method hands it a loss, the parameters to train, and what to do after a step; the loop knows about batches, devices,
precision, augmentation (`plan`), the schedule and the processes that train together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..compute.checkpoints import Checkpoints
from ..compute.device import autocast, compiled, pick_device
from ..compute.distributed import World, world
from ..compute.finite import check_network
from ..core.errors import UserError
from ..core.progress import progress
from ..core.seeding import derive, torch_rng
from ..data.imageset import ImageSet
from ..models.classifier import AUXILIARY_WEIGHT, Classifier
from .checks import check_batch_of_one, check_trained, diverged
from .hand import Hand, Loss, Objective
from .optimizer import Optimizer
from .plan import Plan
from .privacy import Private, PrivateRecipe
from .recipe import Recipe, rates
from .sam import at_the_worst_weights
from .whitening import whiten


@dataclass(frozen=True)
class History:
    """Record of a training run.

    Attributes:
        epochs: a row per epoch, with epoch (from 1), loss (mean), accuracy (on the labels given), lr (of the last step).
        losses: loss of each sample in the batch it was trained in (augmented, training mode), float32 [epochs, n]; NaN
            where the recipe's `drop_last`, or the draw of a private training, left the sample out; of one that was there
            several times the largest.
        found: what a method says of the data and of its model, by name.
        spent: what a private training has spent of its budget, by name (`Private.spent`).
    """

    epochs: list[dict[str, float]]
    losses: NDArray[np.float32]
    found: dict[str, float] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)

    @classmethod
    def none(cls) -> History:
        """The record of no training."""
        return cls([], np.zeros((0, 0), np.float32))

    @classmethod
    def in_turn(cls, *phases: History) -> History:
        """The record of trainings one after another, perhaps on different samples: epochs counted on, and no losses of samples."""
        rows = [row for phase in phases for row in phase.epochs]
        return cls([{**row, "epoch": epoch} for epoch, row in enumerate(rows, 1)], np.zeros((0, 0), np.float32))


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


def _seeded(epochs: Iterable[int], purpose: str, seed: int, here: World, device: torch.device) -> Iterator[int]:
    """The epochs, each begun with draws of its own for layers that draw, as dropout does: a resumed training draws the same."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for epoch in epochs:
            torch.manual_seed(derive(seed, purpose, epoch, here.rank))
            yield epoch


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
    hand: Hand | None = None,
    checkpoints: Checkpoints | None = None,
) -> History:
    """Train `model` in place; it ends on the device, in evaluation mode, and the same in every process.

    Args:
        model: any classifier; the same in every process.
        data: training set; every label must be a class.
        recipe: optimiser, schedule and augmentation; a `PrivateRecipe` is carried out by DP-SGD.
        seed: seed for the order of the samples and their augmentation.
        what: name of the run ("backdoored"), for the progress bar and as the purpose of its random draws.
        loss: loss of each sample, by default cross entropy with the recipe's smoothing; its mean over a batch is minimised.
        parameters: parameters to train, by default all.
        after_step: function called with the model after each step of the optimiser, without gradients.
        hand: a hand in training, of methods that stamp images there or change what is minimised; None: nobody's.
        checkpoints: written after every epoch: a training that was killed goes on from the last one and ends with the same bytes.
            The caller removes them, once he has kept what came of it. None, and of several processes: nothing is written.

    Raises:
        ParameterError: too few samples for one batch of the recipe, or batch norm over a single value; a loss, a weight, a
            statistic of batch norm or a logit that is not finite: training has diverged.
        UserError: no sample, too few for the number of processes, or a network that was not finite before; what `Private` refuses.
    """
    device, here = pick_device(), world()
    if isinstance(recipe, PrivateRecipe):
        # Nobody else may touch what its noise is measured by.
        if (loss, parameters, hand) != (None, None, None):
            raise UserError(
                f"{what}: a private recipe given, allowed: one without privacy, as it has a loss of its own"
            )
        hand = Private(recipe, len(data), seed=seed, what=what)
    hand = hand or Hand()
    if not len(data):
        raise UserError(f"{what}: 0 images given, allowed: at least 1 to train on")
    check_network(model, what)
    model.to(device=device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    # One generator for the order and the augmentation of the whole run, in the same state in every process.
    plan = Plan(data, recipe, here, device, torch_rng(seed, f"fit/{what}"), hand)
    if 1 in plan.sizes:
        check_batch_of_one(model, data, recipe)
    plain = loss or partial(cross_entropy, label_smoothing=recipe.label_smoothing)
    trained = list(model.parameters() if parameters is None else parameters)
    # Without its bias as well: what lies before the second layer then needs no backward pass.
    held = whiten(model, data).requires_grad_(False) if recipe.whiten else None
    optimizer = Optimizer(recipe, trained)
    schedule = rates(recipe, plan.steps_per_epoch)
    hand.check(recipe.epochs * plan.steps_per_epoch)
    fast = plain if hand.eager else compiled(plain)
    # On the device: reading a loss in each step would make the CPU wait for the GPU.
    losses = torch.zeros(recipe.epochs, len(data), device=device)
    hand.start(model, here)

    def differentiate(function: Loss, images: Tensor, labels: Tensor, samples: Tensor, total: int) -> Objective:
        """What is minimised of this process's share of a batch, and the gradients of the whole one."""
        with autocast(device):
            objective = hand.objective(function, model, images, labels, samples)
        optimizer.zero_grad()
        hand.backward(objective, optimizer.parameters, total, here)
        return objective

    rows: list[dict[str, float]] = []
    # Of several processes each has statistics of batch norm of its own until the end.
    kept = checkpoints if here.size == 1 else None
    if kept is not None:
        names = {parameter: f"moments.{name}" for name, parameter in model.named_parameters()}
        order_state = plan.generator.get_state()
        networks = {f"model.{name}": value for name, value in model.state_dict().items()}
        own = {f"hand.{name}": value for name, value in hand.tensors().items()}
        state = {**networks, **optimizer.tensors(names), **own, "losses": losses, "order": order_state}
        if rows := kept.load(state):
            plan.generator.set_state(order_state)
    done = len(rows)
    epochs = progress(range(done, recipe.epochs), what=what, unit="epoch", total=recipe.epochs, done=done)
    for epoch in _seeded(epochs, f"fit/{what}/layers", seed, here, device):
        correct = torch.zeros((), device=device)
        hand.start_epoch(epoch, recipe.epochs)
        order, batches = plan.epoch(epoch)
        # In the order of training, as a sample may be there several times.
        seen, start = torch.zeros(len(order), device=device), 0
        for step, (samples, images, labels, total) in enumerate(batches, epoch * plan.steps_per_epoch):
            # A batch of another size would be compiled anew, for one step per epoch.
            function = fast if total == recipe.batch_size else plain
            objective = differentiate(function, images, labels, samples, total)
            if radius := hand.sam or recipe.sam:
                # Kept are the losses above, of the weights as they are; the step follows the gradients of this pass, and what the
                # hand trains besides those of the first.
                with at_the_worst_weights(model, optimizer.parameters, radius):
                    differentiate(function, images.detach(), labels, samples, total)
            optimizer.step(schedule[step])
            hand.after_step()
            with torch.no_grad():
                seen[start + here.rank : start + total : here.size] = objective.losses.float()
                start += total
                correct += (objective.logits.argmax(1) == labels).sum()
                if after_step is not None:
                    after_step(model)
        # Each process has filled its own places; the others' are zeros there, so the sum is the whole row.
        here.sum(seen)
        here.sum(correct)
        # The one look at the loss in an epoch, and of all processes the same. Batches that are drawn can leave it without samples.
        trained_on = max(1, len(order))
        mean = seen.sum().item() / trained_on
        if not math.isfinite(mean):
            within = plan.first_bad(seen)
            lr = schedule[epoch * plan.steps_per_epoch + within].lr
            where = (
                f"in epoch {epoch + 1} of {recipe.epochs}, step {within + 1} of {plan.steps_per_epoch}, at lr {lr:.3g}"
            )
            hand.check_networks()
            raise diverged(recipe, what, f"the loss is not finite, first {where}")
        rows.append(
            {"epoch": epoch + 1, "loss": mean, "accuracy": correct.item() / trained_on, "lr": schedule[step].lr}
        )
        losses[epoch, plan.left_out(order)] = torch.nan
        # The largest, as that is the same in whatever order a GPU writes.
        losses[epoch].scatter_reduce_(0, order.to(device), seen, "amax", include_self=False)
        if kept is not None:
            order_state.copy_(plan.generator.get_state())
            kept.save(state, rows)
    if held is not None:
        held.requires_grad_()
    here.average_buffers(model)
    model.eval()
    hand.check_networks()
    check_trained(model, data, recipe, what)
    return History(rows, losses.cpu().numpy(), spent=dict(hand.spent))
