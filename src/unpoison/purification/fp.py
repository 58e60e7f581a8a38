"""Fine-Pruning (Liu et al., "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks", RAID 2018).

What a backdoor uses may lie idle on clean images: channels are pruned from the least active up as long as the accuracy
bears it (section 4.1), and what is left is fine-tuned (section 4.2). The channels are those of the penultimate features, which
come from the last convolution and are there in every network; their columns of the head are set to zero and stay so, which
gives the same logits as taking the channels out.

Published code: https://github.com/SCLBD/BackdoorBench/blob/10cbda1/defense/fp.py, whose settings these are. It stops by the
accuracy on the test images, here trusted images that are held out decide, and the step that costs too much is undone.
"""

from __future__ import annotations

from copy import deepcopy
from math import ceil
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Gt, Le, Lt
from numpy.typing import NDArray

from ..compute.finite import check_network
from ..compute.inference import features_of
from ..core.errors import ParameterError
from ..core.hyperparameters import Count, Epochs, Fraction, NonNegative, Positive
from ..core.seeding import numpy_rng
from ..data.imageset import ImageSet
from ..models.classifier import Classifier
from ..training.loop import fit
from ..training.recipe import AugmentationName, Recipe
from .purifier import Purifier

LEAST = 2  # one image to rank by, one to stop by
Part = Annotated[float, Gt(0), Lt(1)]
Step = Annotated[float, Gt(0), Le(1)]


def purify(
    model: Classifier,
    reserve: ImageSet,
    *,
    seed: int = 0,
    accuracy_budget: Fraction = 0.1,
    step: Step = 0.01,
    held_out: Part = 0.2,
    epochs: Epochs = 100,
    batch_size: Count = 256,
    lr: Positive = 0.01,
    weight_decay: NonNegative = 5e-4,
    schedule_per: Literal["batch", "epoch"] = "epoch",
    augment: list[AugmentationName] | tuple[AugmentationName, ...] = (),
) -> Classifier:
    """Prune idle features and tune what is left on the trusted reserve; a new model is returned.

    Args:
        model: the backdoored classifier, left as it was.
        reserve: trusted, labelled images.
        seed: seed for the images that are held out, the order of the images and their augmentation.
        accuracy_budget: share of the accuracy on the images held out that pruning may cost.
        step: share of the features that are pruned before the accuracy is looked at again.
        held_out: share of the trusted images that the accuracy is taken from; the others rank the features. All are tuned on.
        epochs: passes over the trusted reserve. 100 in BackdoorBench.
        batch_size: images per step. 256 in BackdoorBench.
        lr: learning rate of the first step, lowered along a cosine. 0.01 in BackdoorBench.
        weight_decay: L2 penalty of SGD, whose momentum is 0.9.
        schedule_per: how often the learning rate moves, every `batch` or every `epoch`; epoch in BackdoorBench.
        augment: augmentations by name, in order, out of `training.augment`; [crop, flip] in BackdoorBench.

    Raises:
        ParameterError: fewer than two trusted images, or what `fit` raises.
        UserError: a network, its features or its logits that are not finite.
    """
    if len(reserve) < LEAST:
        raise ParameterError(f"held_out: {held_out} given for {len(reserve)} trusted images, allowed: {LEAST} or more")
    check_network(model, "fp")
    tuned = deepcopy(model)
    rows, head = features_of(tuned, reserve, what="fp, features"), tuned.head
    features, weight = np.asarray(rows.penultimate), head.weight.detach().float().cpu().numpy()
    order = numpy_rng(seed, "fp/held_out").permutation(len(reserve))
    some = min(max(1, round(held_out * len(reserve))), len(reserve) - 1)
    stop, rank = order[:some], order[some:]
    idle = np.argsort(features[rank].mean(0), kind="stable")
    count = how_many(
        features[stop],
        np.asarray(rows.logits)[stop],
        reserve.labels[stop],
        weight,
        idle,
        step=ceil(step * len(idle)),
        budget=accuracy_budget,
    )
    kept = torch.ones(len(idle), device=head.weight.device)
    kept[torch.from_numpy(idle[:count])] = 0

    def prune(network: Classifier) -> None:
        network.head.weight.mul_(kept)

    with torch.no_grad():
        prune(tuned)
    recipe = Recipe(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        schedule="cosine",
        schedule_per=schedule_per,
        augment=augment,
    )
    # After each step: the gradient of a column is not zero where its weights are.
    fit(tuned, reserve, recipe, seed=seed, what="fp", after_step=prune)
    return tuned


def how_many(
    features: NDArray[np.float32],
    logits: NDArray[np.float32],
    labels: NDArray[np.int64],
    weight: NDArray[np.float32],
    order: NDArray[np.int64],
    *,
    step: int,
    budget: float,
) -> int:
    """How many features can be pruned, in steps, before the accuracy has fallen by more than the budget.

    Args:
        features: penultimate features, float32 [n, d].
        logits: logits with all features, float32 [n, classes].
        labels: labels, int64 [n].
        weight: weight of the head, float32 [classes, d].
        order: features in the order of pruning, int64 [d].
        step: features per step.
        budget: share of the accuracy that may be lost.

    Returns:
        A multiple of `step`, less than d.
    """
    # The head is linear: each step takes its features' share out of the logits, and no image passes the network again.
    left = logits.astype(np.float64)
    least, pruned = (1 - budget) * np.mean(left.argmax(1) == labels), 0
    for end in range(step, len(order), step):
        columns = order[pruned:end]
        left -= features[:, columns].astype(np.float64) @ weight[:, columns].T
        if np.mean(left.argmax(1) == labels) < least:
            break
        pruned = end
    return pruned


PURIFIER = Purifier(purify=purify, needs_trusted=LEAST)
