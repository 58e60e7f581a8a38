"""ABL, the isolation stage of Anti-Backdoor Learning (Li et al., "Anti-Backdoor Learning: Training Clean Models on Poisoned
Data", NeurIPS 2021).

Poison is learned first. A network is trained anew for a few epochs with a loss that is held at a floor (local gradient
ascent): easy samples fall below it, and among the lowest losses are the poisoned ones.

Published code: https://github.com/bboylyg/ABL, and a port that averages the losses before each epoch of a plain training:
https://github.com/HanxunH/CognitiveDistillation/blob/6aba6f9/train.py
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch.nn import functional as F

from .. import models
from ..compute.inference import logits_of
from ..core.arrays import Pixels
from ..core.hyperparameters import Count, Epochs, Fraction, NonNegative, Positive
from ..core.seeding import derive
from ..data.imageset import ImageSet
from ..data.ranks import order
from ..data.scores import Scores
from ..models.classifier import Classifier
from ..training.bounds import Ascent, held
from ..training.loop import fit
from ..training.recipe import Recipe
from .detector import Detector, Suspect


def score(
    suspect: Suspect,
    *,
    seed: int = 0,
    epochs: Epochs = 20,
    batch_size: Count = 64,
    lr: Positive = 0.1,
    weight_decay: NonNegative = 1e-4,
    ascent: Ascent = "lga",
    floor: NonNegative = 0.5,
    averaged: bool = False,
    isolated: Fraction = 0.01,
) -> Scores:
    """Minus a sample's loss in a network of the suspect's kind that is trained anew: a low loss is suspicious.

    Losses are measured in evaluation mode, without augmentation.

    Args:
        seed: seed for the weights and the order of the samples.
        epochs: passes over the suspect set; 20 in the paper.
        batch_size: images per step.
        lr: learning rate, constant, of SGD with momentum 0.9.
        weight_decay: L2 penalty of SGD.
        ascent: what holds a batch's mean loss at the floor: `lga`, whose sign turns below it; `flooding`, its distance
            from it; or `none`, plain training.
        floor: the loss at which it is held; 0.5 in the paper.
        averaged: whether the losses before every epoch count, as in the port; else those after the last one, as in the
            paper.
        isolated: share of all samples, of the smallest losses, that the rule flags; 0.01 in the paper.
    """
    data, losses = suspect.data, []
    model = models.fresh_copy(suspect.model, seed=derive(seed, "abl/weights"))
    recipe = Recipe(epochs=epochs, batch_size=batch_size, lr=lr, weight_decay=weight_decay, schedule="constant")
    steps, per_epoch = 0, -(-len(data) // batch_size)

    def measure(network: Classifier) -> None:
        losses.append(_losses(network, data))
        network.train()

    def after_step(network: Classifier) -> None:
        nonlocal steps
        steps += 1
        if averaged and steps % per_epoch == 0 and steps < epochs * per_epoch:
            measure(network)

    if averaged:
        measure(model)
    fit(
        model,
        data,
        recipe,
        seed=seed,
        what="abl",
        loss=partial(held, ascent=ascent, floor=floor),
        after_step=after_step,
    )
    if not averaged:
        measure(model)
    values = -np.mean(losses, axis=0).astype(np.float32)
    flagged = np.zeros(len(data), bool)
    flagged[order(values)[: int(isolated * len(data))]] = True
    rule = f"the {isolated:.0%} with the smallest losses"
    return Scores(values, forward_passes=3.0 * epochs + len(losses), flagged=flagged, rule=rule)


def _losses(model: Classifier, data: ImageSet) -> Pixels:
    """Cross entropy of each sample in evaluation mode, float32 [n]."""
    losses: Pixels = F.cross_entropy(
        logits_of(model, data, what="abl"), torch.from_numpy(data.labels), reduction="none"
    ).numpy()
    return losses


DETECTOR = Detector(score=score)
