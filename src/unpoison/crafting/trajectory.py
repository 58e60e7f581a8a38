"""Labels of clean images that lead a network the way that stamped images lead it: trajectory matching in the labels alone.

After FLIP (Jha, Hayase & Oh, "Label Poisoning is All You Need", NeurIPS 2023, section 3, algorithm 1), which takes matching from
dataset distillation (Cazenavette et al., CVPR 2022). Published code: https://github.com/SewoongLab/FLIP/tree/7b2c34c
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from .. import models
from ..compute.device import pick_device, to_float
from ..core.arrays import Arrays, Images, IntArray
from ..core.errors import ParameterError, UserError, file_of
from ..core.progress import progress
from ..core.seeding import derive, numpy_rng, torch_rng
from ..data.imageset import ImageSet
from ..models import Classifier
from ..training import loop
from ..training.augment import Batch, apply, draw
from .context import Context
from .surrogate import clean_settings

Weights = dict[str, Tensor]
_HELD = "held."
"""What stands before the name of a weight that training holds fixed, such as a whitening filter."""


@dataclass(frozen=True)
class Pairs:
    """The set that experts are trained on: the clean images, and behind them stamped copies of some with the target's label.

    Attributes:
        data: the images, and the labels that an expert learns; in memory.
        twins: for each the clean image that it is, or is a stamped copy of, int64 [len(data)].
    """

    data: ImageSet
    twins: IntArray


def pairs_of(context: Context, stamped: Callable[[Images, IntArray], Images], copies: int) -> Pairs:
    """The clean set with so many stamped copies, or as many as there are images to stamp.

    Args:
        context: data, seed, target and sources of the attacker.
        stamped: from images uint8 [k, h, w, c] and their keys int64 [k] to the stamped ones.
        copies: number of copies.

    Raises:
        UserError: no image to stamp.
    """
    train = context.train
    attacked = np.isin(train.labels, context.sources) if context.sources else train.labels != context.target
    if not attacked.any():
        raise UserError(
            f"data: every training image is of the target class {context.target}; allowed: other classes too"
        )
    drawn = numpy_rng(context.seed, "trajectory/stamped").permutation(np.flatnonzero(attacked))[:copies]
    twins = np.concatenate([np.arange(len(train)), np.sort(drawn)])
    images, labels, copied = train.gather(twins), train.labels[twins], np.arange(len(twins)) >= len(train)
    images[copied], labels[copied] = stamped(images[copied], twins[copied]), context.target
    return Pairs(ImageSet(images, labels, train.classes), twins)


def expert(
    context: Context, pairs: Pairs, determined_by: dict[str, Any], *, number: int, points: int, span: float
) -> Arrays:
    """The weights of an expert at places on its way, evenly spaced; trained or out of the store.

    Args:
        context: network, recipe, seed and store of the attacker.
        pairs: what it is trained on.
        determined_by: JSON values that the pairs depend on besides the data.
        number: number of the expert: each has a start and an order of its own.
        points: places; fewer where there are fewer steps.
        span: share of the training, from its start, that they lie in.

    Returns:
        By name, float32 [places, ...]; those that are not trained have `held.` before their name.
    """

    def train() -> Arrays:
        model, recipe, data = network_of(context, number), context.recipe, pairs.data
        steps = recipe.epochs * max(1, len(data) // recipe.batch_size)
        every, taken = max(1, int(span * steps / points)), itertools.count(1)
        kept: list[Weights] = []

        def after_step(model: Classifier) -> None:
            if next(taken) % every == 0 and len(kept) < points:
                kept.append(
                    {
                        name if weight.requires_grad else _HELD + name: weight.detach().to("cpu", copy=True)
                        for name, weight in model.named_parameters()
                    }
                )

        with file_of("attack.surrogate.train"):
            seed = derive(context.seed, "trajectory/training", number)
            history = loop.fit(model, data, recipe, seed=seed, what=f"expert {number}", after_step=after_step)
        # Matching an expert that has learnt nothing is useless, and nothing else would show it.
        print(f"expert {number}: {history.epochs[-1]['accuracy']:.0%} of its set right in its last epoch", flush=True)
        return {name: torch.stack([weights[name] for weights in kept]).contiguous().numpy() for name in kept[0]}

    settings = {**determined_by, "number": number, "points": points, "span": span, **clean_settings(context)}
    return context.store.arrays("flip_expert", context.determined_by(__name__, **settings), train)


def network_of(context: Context, number: int) -> Classifier:
    """The untrained network of an expert."""
    seed = derive(context.seed, "trajectory/initial", number)
    about: dict[str, Any] = {
        "num_classes": len(context.train.classes),
        "channels": context.train.channels,
        **context.network,
    }
    return models.build(**about, image_size=context.train.image_size, seed=seed)


def matched_logits(
    context: Context,
    pairs: Pairs,
    experts: Sequence[Arrays],
    *,
    passes: int,
    lr: float,
    momentum: float,
    temperature: float,
    batch_size: int,
) -> NDArray[np.float32]:
    """Soft labels, as logits, with which steps on clean images lead where the experts' steps on stamped ones lead.

    SGD on `step_distance`. A batch draws one place of one expert; both of a pair get the same augmentation, the recipe's.

    Args:
        context: data, network, recipe and seed of the attacker.
        pairs: what the experts were trained on.
        experts: of each the weights at its places, as `expert` gives them.
        passes: passes over the pairs.
        lr: learning rate of the logits.
        momentum: momentum of the logits.
        temperature: logit of the true label at the start; the others are 0.
        batch_size: pairs in a step; a last, smaller batch of a pass is left out.

    Returns:
        float32 [n, classes] for the n images of the clean set.

    Raises:
        ParameterError: logits that are not finite.
    """
    device, train, names = pick_device(), context.train, context.recipe.augment
    model = for_matching(network_of(context, 0).to(device))
    true = torch.from_numpy(train.labels).to(device)
    logits = F.one_hot(true, len(train.classes)).float() * temperature
    velocity = torch.zeros_like(logits)
    generator = torch_rng(context.seed, "trajectory/matching")
    twins, count = torch.from_numpy(pairs.twins), len(pairs.twins)
    steps, size = passes * max(1, count // batch_size), min(batch_size, count)
    order = itertools.chain.from_iterable(_batches(count, size, generator) for _ in range(passes))
    distances = []
    for step, index in enumerate(progress(order, what="labels", unit="step", total=steps)):
        arrays = experts[int(torch.randint(len(experts), (), generator=generator))]
        place = int(torch.randint(len(next(iter(arrays.values()))), (), generator=generator))
        weights = {name: torch.from_numpy(values[place]).to(device) for name, values in arrays.items()}
        drawn = draw(names, Batch(index, step * size // count, train.image_size, generator))
        numbers = [rows.to(device) for rows in drawn]
        rows = twins[index].to(device)
        stamped, clean = (
            apply(to_float(data.tensor(keys.numpy()), device), names, numbers)
            for data, keys in ((pairs.data, index), (train, twins[index]))
        )
        soft = logits[rows].softmax(1)
        labels = torch.from_numpy(pairs.data.labels[index.numpy()]).to(device)
        distance, slope = step_distance(model, weights, stamped, labels, clean, soft)
        # The softmax's own derivative; two twins in one batch are one logit's, so their slopes add up.
        slope = soft * (slope - (soft * slope).sum(1, keepdim=True))
        velocity.mul_(momentum).index_add_(0, rows, slope)
        logits.sub_(lr * velocity)
        distances.append(distance)
    if not logits.isfinite().all():
        raise ParameterError(f"lr: {lr} given, with which the labels diverge; allowed: less")
    tenth = max(1, len(distances) // 10)
    first, last = (float(torch.stack(part).mean()) for part in (distances[:tenth], distances[-tenth:]))
    print(f"labels: distance of the steps {first:.3g} at first, {last:.3g} at last", flush=True)
    return logits.cpu().numpy()


def for_matching(model: nn.Module) -> nn.Module:
    """The network with statistics of batch norm from each batch, as in training, and otherwise, dropout too, as at the test."""
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    return model


def step_distance(
    model: nn.Module, weights: Weights, stamped: Tensor, labels: Tensor, clean: Tensor, soft: Tensor
) -> tuple[Tensor, Tensor]:
    """Distance between a step on stamped images and one on clean ones with soft labels, and its slope in these.

    With g and h the gradients of the mean cross entropy of the two at the same weights, steps of plain gradient descent part by
    lr (h - g); over the expert's own step, squared, that is |h - g|² / |g|². As h is affine in the soft labels q, the slope in
    the label q_i of one of b images is the derivative of its logits along h - g, times -2 / (b |g|²): a pass in forward mode.

    Args:
        model: images to logits; its own weights are not used.
        weights: weights by name; those after `held.` are no part of a step.
        stamped: images of the expert, float [b, c, h, w] in [0, 1].
        labels: their labels, int64 [b].
        clean: images of the student, as `stamped`.
        soft: their soft labels, float [b, classes]; each sums to 1.

    Returns:
        The distance, float [], and its slope, as `soft`, but for a constant in each row, which no soft label is moved by.
    """
    trained = {name: w.detach().requires_grad_() for name, w in weights.items() if not name.startswith(_HELD)}
    held = {name.removeprefix(_HELD): w for name, w in weights.items() if name.startswith(_HELD)}

    def logits_of(moving: Weights, images: Tensor) -> Tensor:
        # Statistics that a batch leaves behind are dropped: they are read at the test alone.
        kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
        out: Tensor = functional_call(model, {**moving, **held, **kept}, (images,))
        return out

    def gradients(images: Tensor, given: Tensor) -> list[Tensor]:
        loss = F.cross_entropy(logits_of(trained, images), given)
        return list(torch.autograd.grad(loss, list(trained.values()), allow_unused=True, materialize_grads=True))

    g, h = gradients(stamped, labels), gradients(clean, soft)
    apart = [one - other for one, other in zip(h, g, strict=True)]
    own = sum_of_squares(g)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        # Fused attention has no forward mode.
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(forward_ad.dual_level())
        along = {
            name: forward_ad.make_dual(trained[name].detach(), way) for name, way in zip(trained, apart, strict=True)
        }
        turned = forward_ad.unpack_dual(logits_of(along, clean)).tangent
    assert turned is not None
    return sum_of_squares(apart) / own, -2 / (len(soft) * own) * turned


def sum_of_squares(tensors: Sequence[Tensor]) -> Tensor:
    """The squared length of all tensors together, float []."""
    return torch.stack([tensor.square().sum() for tensor in tensors]).sum()


def _batches(count: int, size: int, generator: torch.Generator) -> list[Tensor]:
    """The whole batches of a pass, in random order."""
    return [index for index in torch.randperm(count, generator=generator).split(size) if len(index) == size]
