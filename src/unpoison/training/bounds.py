"""Losses with a bound: held at a floor while they are lowered, or raised up to a ceiling."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ..models.classifier import Classifier
from .loop import cross_entropy

Ascent = Literal["lga", "flooding", "none"]
"""What holds a loss at a floor: local gradient ascent, flooding, nothing."""


def held(model: Classifier, images: Tensor, labels: Tensor, *, ascent: Ascent, floor: float) -> tuple[Tensor, Tensor]:
    """Logits, and losses of each sample whose mean is the batch's loss, held at a floor.

    Args:
        model: the network, in training mode.
        images: a batch, float [b, c, h, w] in [0, 1].
        labels: its labels, int64 [b].
        ascent: `lga`, whose sign turns below the floor (Li et al., "Anti-Backdoor Learning", NeurIPS 2021, equation 2);
            `flooding`, its distance from the floor (Ishida et al., ICML 2020); `none`, plain cross entropy.
        floor: the loss at which it is held.
    """
    logits, losses = cross_entropy(model, images, labels)
    mean = losses.mean()
    if ascent == "lga":
        losses = losses * (mean.detach() - floor).sign()
    elif ascent == "flooding":
        losses = ((mean - floor).abs() + floor).expand(len(losses))
    return logits, losses


def bounded(loss: Tensor, bound: float | None) -> Tensor:
    """A loss that is to be raised, but not beyond a bound: above it the value is the bound and the gradient 0.

    Args:
        loss: losses of samples, each bounded by itself, or one mean.
        bound: the bound; None for no bound.
    """
    return loss if bound is None else loss.clamp(max=bound)
