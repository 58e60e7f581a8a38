"""Narcissus (Zeng et al., "Narcissus: A Practical Clean-Label Backdoor Attack with Limited Information", CCS 2023, section 4): one
faint noise that makes images of the target class more so, added to a few of them, whose label stays.

Published code: https://github.com/reds-lab/Narcissus/blob/d1d1cfa/narcissus_function.py
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn
from torch.optim.radam import radam

from ..compute.device import batch_size as batch_of
from ..compute.device import pick_device, to_float
from ..compute.inference import frozen
from ..core.arrays import IntArray, Pixels
from ..core.errors import ParameterError, UserError
from ..core.hyperparameters import Count, Positive
from ..core.progress import progress
from ..core.seeding import numpy_rng
from ..crafting import surrogate
from ..crafting.attack import Attack
from ..crafting.context import Context
from ..crafting.stamps import Add
from ..models.classifier import Classifier
from ..training.loop import fit

Levels = Annotated[float, Gt(0), Le(255)]
WarmUp = Annotated[int, Ge(0), Le(10_000)]


def make(
    context: Context,
    *,
    epsilon: Levels = 16.0,
    test_scale: Positive = 3.0,
    rounds: Count = 100,
    lr: Positive = 12.75,
    batch_size: Count = 350,
    warm_up: WarmUp = 5,
    warm_up_lr: Positive = 0.001,
) -> Add:
    """A noise that is added to the image and clipped, made on a network of the attacker's own.

    The network is first trained on all classes and then, for a few epochs, on the target's images alone. The noise lowers its mean
    loss on those, by gradient steps that are projected onto the bound.

    The paper's attacker knows the target class alone, and public images of other classes. There are no others here: the training
    set's other classes stand in for them, so that this attacker's network knows the victim's task.

    Args:
        context: the attacker's data and network; `target` is the class that images are to get.
        epsilon: L∞ bound of the noise in units of 1/255 (published: 16).
        test_scale: factor of the noise at the test (published: 3).
        rounds: passes over the target's images for the noise (published code: 1000, of 5,000 images in batches of 350).
        lr: learning rate of the noise's RAdam, in units of 1/255 (published code: 1.275, for ten times as many passes).
        batch_size: images per step, of the noise and the warm-up (published code: 350).
        warm_up: epochs on the target's images alone (published code: 5).
        warm_up_lr: learning rate of those epochs' SGD (published code: RAdam at 0.1). At 0.01 the network of the digits gives the
            target's label to every image, and what little gradient is left makes a faint noise.

    Raises:
        UserError: no training image of the target class.
        ParameterError: a warm-up that cannot be trained, or diverges; a noise of zero.
    """
    images = np.flatnonzero(context.train.labels == context.target)
    if not len(images):
        raise UserError(
            f"data: no training image is of the target class {context.target}; allowed: a class that the noise can be made on"
        )
    # `test_scale` is left out: it changes the stamp and not the noise.
    settings: dict[str, Any] = {"epsilon": epsilon, "rounds": rounds, "lr": lr, "batch_size": batch_size}
    settings |= {"warm_up": warm_up, "warm_up_lr": warm_up_lr}
    noise = context.store.arrays(
        "narcissus_noise",
        context.determined_by(__name__, surrogate=surrogate.clean_settings(context), target=context.target, **settings),
        lambda: {"noise": optimised_noise(context, images, **settings)},
    )["noise"]
    # It would poison nothing: the network's gradients have vanished.
    if not noise.any():
        raise ParameterError(
            f"warm_up_lr: {warm_up_lr} given, after which no gradient is left and the noise stays 0; allowed: a lower one"
        )
    # The nearest of the 256 levels: dropping the fraction would lower every value by half a level on the average.
    return Add(noise, test_factor=test_scale, rounding="round")


def optimised_noise(
    context: Context,
    images: IntArray,
    *,
    epsilon: float,
    rounds: int,
    lr: float,
    batch_size: int,
    warm_up: int,
    warm_up_lr: float,
) -> Pixels:
    """The noise, float32 [c, h, w] in units of 1/255, for the training images `images` (int64); arguments as for `make`."""
    device = pick_device()
    network = frozen(warmed_up(context, images, epochs=warm_up, lr=warm_up_lr, batch_size=batch_size), device)
    clean = context.train.tensor(images)
    start = torch.zeros(clean.shape[1:], device=device)
    before = mean_loss(network, clean, start, context.target)
    noise = descend(
        network,
        clean,
        start,
        context.target,
        epsilon=epsilon,
        rounds=rounds,
        lr=lr,
        batch_size=batch_size,
        seed=context.seed,
    )
    after = mean_loss(network, clean, noise, context.target)
    # A noise that lowers nothing is a weak trigger, which nothing else would show.
    print(
        f"narcissus: mean loss of the {len(images)} images of the target {before:.3g}, with the noise {after:.3g}",
        flush=True,
    )
    return np.ascontiguousarray((noise * 255).cpu().numpy())


def warmed_up(context: Context, images: IntArray, *, epochs: int, lr: float, batch_size: int) -> Classifier:
    """The attacker's clean network, tuned on the training images `images`, which are of the target class."""
    # A copy: what came out of the store, or was trained, may be asked for again.
    network = deepcopy(surrogate.clean_network(context))
    if epochs:
        # Its recipe's augmentation, all else as in published code.
        recipe = replace(context.recipe, **_WARM_UP, epochs=epochs, lr=lr, batch_size=batch_size)
        try:
            fit(network, context.train.subset(images), recipe, seed=context.seed, what="narcissus warm-up")
        except ParameterError as error:
            # Of this attack's keys `lr` is another one.
            where = "warm_up_" if str(error).startswith("lr: ") else f"warm_up: {epochs} given, allowed: 0, as "
            raise ParameterError(f"{where}{error}") from None
    return network


_WARM_UP: dict[str, Any] = {
    "optimizer": "sgd",
    "schedule": "constant",
    "momentum": 0.9,
    "nesterov": False,
    "weight_decay": 0.0,
    "whiten": False,
    "drop_last": False,
    "label_smoothing": 0.0,
    "sam": 0.0,
}


def descend(
    network: nn.Module,
    images: Tensor,
    start: Tensor,
    target: int,
    *,
    epsilon: float,
    rounds: int,
    lr: float,
    batch_size: int,
    seed: int,
) -> Tensor:
    """The noise after projected steps of RAdam (Liu et al. 2020) on the mean cross entropy of images with it.

    Args:
        network: images to logits, with fixed weights.
        images: uint8 [n, c, h, w].
        start: float32 [c, h, w], for images in [0, 1].
        target: class that the images are to get.
        epsilon: L∞ bound, in units of 1/255.
        rounds: passes over the images, each in an order of its own.
        lr: learning rate, in units of 1/255.
        batch_size: images per step, of 32 px; fewer of larger ones.
        seed: seed of the orders.

    Returns:
        As `start`.
    """
    noise, bound, rng = start.clone().requires_grad_(), epsilon / 255, numpy_rng(seed, "narcissus/order")
    # torch's function and not its class, as in `training.optimizer`.
    first, second, steps = torch.zeros_like(start), torch.zeros_like(start), torch.zeros(())
    settings: dict[str, Any] = {"beta1": 0.9, "beta2": 0.999, "lr": lr / 255, "weight_decay": 0.0, "eps": 1e-8}
    step = batch_of((images.shape[2], images.shape[3]), batch_size)
    for _ in progress(range(rounds), what="narcissus noise", unit="pass", total=rounds):
        for batch in torch.from_numpy(rng.permutation(len(images))).split(step):
            (slope,) = torch.autograd.grad(_losses(network, images[batch], noise, target).mean(), noise)
            with torch.no_grad():
                radam([noise], [slope], [first], [second], [steps], foreach=False, **settings)
                noise.clamp_(-bound, bound)
    return noise.detach()


@torch.no_grad()
def mean_loss(network: nn.Module, images: Tensor, noise: Tensor, target: int) -> float:
    """Mean cross entropy towards `target` of images uint8 [n, c, h, w] with the noise, float32 [c, h, w] for images in [0, 1]."""
    step = batch_of((images.shape[2], images.shape[3]), 256)
    return torch.cat([_losses(network, batch, noise, target) for batch in images.split(step)]).mean().item()


def _losses(network: nn.Module, images: Tensor, noise: Tensor, target: int) -> Tensor:
    """Cross entropy towards `target` of each image with the noise."""
    noisy = (to_float(images, noise.device) + noise).clamp(0, 1)
    return F.cross_entropy(
        network(noisy).float(), torch.full((len(images),), target, device=noise.device), reduction="none"
    )


ATTACK = Attack(
    make=make,
    trigger=Add,
    policy={"label_policy": "clean_label", "poison_rate": 0.005},
    policies=("clean_label", "all2one", "source_specific"),
    assets=("clean network", "noise"),
)
