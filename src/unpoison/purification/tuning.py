"""Tuning on the trusted reserve: what the modes of FST's published code (Min et al., NeurIPS 2023) have in common.

The modes differ in which weights are tuned, whether the head is drawn anew first, what is added to the cross entropy, and
whether the head keeps its norm; each is a purifier of its own, with the defaults of its own.
https://github.com/AISafety-HKUST/stable_backdoor_purification/blob/37d2ef5/fine_tune/ft.py
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..compute.device import pick_device
from ..compute.finite import check_network
from ..core.errors import ParameterError
from ..core.seeding import torch_rng
from ..data.imageset import ImageSet
from ..models.classifier import Classifier
from ..training.loop import cross_entropy, fit
from ..training.recipe import AugmentationName, Recipe


def tune(
    model: Classifier,
    reserve: ImageSet,
    what: str,
    *,
    seed: int,
    epochs: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    schedule_per: Literal["batch", "epoch"],
    augment: Sequence[AugmentationName],
    label_smoothing: float,
    keep_head_norm: bool,
    tuned: Literal["all", "head", "body"] = "all",
    new_head: bool = False,
    alpha: float = 0.0,
    update_statistics: bool = True,
) -> Classifier:
    """A copy of the model, tuned by SGD with momentum 0.9 along a cosine.

    Args:
        model: the backdoored classifier, left as it was.
        reserve: trusted, labelled images.
        what: name of the purifier, for the progress bar, messages and random draws.
        seed: seed for a new head, the order of the images and their augmentation.
        epochs: passes over the trusted reserve.
        batch_size: images per step.
        lr: learning rate of the first step.
        weight_decay: L2 penalty of SGD.
        schedule_per: how often the learning rate moves.
        augment: augmentations by name, in order, out of `training.augment`.
        label_smoothing: share of each label that the other classes get, in equal parts.
        keep_head_norm: whether after each step the head's weight W is scaled back to ‖W_ori‖_F. Its bias and the momentum
            stay as they are. A frozen head gets that norm at the first step.
        tuned: the weights that are tuned; `body` is all but the head.
        new_head: whether the head is drawn anew first, weight and bias uniform in (-s, s) with s = 1 / sqrt(features).
        alpha: weight of <W, W_ori> beside the cross entropy; W_ori is the head's weight before anything changes.
        update_statistics: whether batch norm works in training mode; otherwise it normalises by the statistics that it has.

    Raises:
        ParameterError: more smoothing than makes all classes equal, or what `fit` raises.
        UserError: a network that is not finite.
    """
    check_network(model, what)
    # A copy, so the backdoored model can still be graded, and purified by other methods, beside this one.
    network = deepcopy(model).to(pick_device())
    head = network.head
    # Kept apart before the copy's own is overwritten: both the term and the constraint refer to the compromised head.
    original = head.weight.detach().clone()
    norm = original.norm()
    if new_head:
        _draw_anew(head, torch_rng(seed, f"{what}/head"))
    smoothing = smoothing_of_all(label_smoothing, head.out_features)
    still = [] if update_statistics else [module for module in network.modules() if isinstance(module, _BatchNorm)]

    def loss(network: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        # Here, as the loop has put the whole network into training mode.
        for module in still:
            module.eval()
        logits, entropy = cross_entropy(network, images, labels, label_smoothing=smoothing)
        # The loop minimises the mean over samples, so what is added to every sample counts once.
        return logits, entropy + alpha * (network.head.weight * original).sum() if alpha else entropy

    def keep_norm(network: Classifier) -> None:
        # The inner product alone could be minimised by an ever longer head.
        network.head.weight.mul_(norm / network.head.weight.norm())

    recipe = Recipe(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        schedule="cosine",
        schedule_per=schedule_per,
        augment=tuple(augment),
    )
    of_head = set(head.parameters())
    fixed = [p for p in network.parameters() if tuned != "all" and (p in of_head) != (tuned == "head")]
    with _fixed(fixed):
        fit(network, reserve, recipe, seed=seed, what=what, loss=loss, after_step=keep_norm if keep_head_norm else None)
    return network


@torch.no_grad()
def _draw_anew(head: nn.Linear, generator: torch.Generator) -> None:
    """New weights and bias, as in the published code."""
    bound = head.in_features**-0.5
    for parameter in head.parameters():
        parameter.copy_((torch.rand(parameter.shape, generator=generator) * 2 - 1) * bound)


def smoothing_of_all(label_smoothing: float, classes: int) -> float:
    """torch's smoothing, of which the label's own class gets its part too, for one that goes to the other classes alone."""
    most = 1 - 1 / classes
    if label_smoothing > most:
        raise ParameterError(
            f"label_smoothing: {label_smoothing} given, allowed for {classes} classes: 0 to {most:.4g}, which makes them equal"
        )
    return label_smoothing / most if label_smoothing else 0.0


@contextmanager
def _fixed(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Within the block these parameters need no gradient, so that no backward pass goes further than it has to."""
    held = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)
