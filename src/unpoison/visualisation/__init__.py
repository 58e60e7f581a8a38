"""Figures of what a backdoor does in a model. One file per figure, each with a `Figure`."""

from __future__ import annotations

from . import activation, confusion, embedding, frequency, grad_cam, landscape, neurons
from .figure import Figure

FIGURES: dict[str, Figure] = {
    "embedding": embedding.FIGURE,
    "confusion": confusion.FIGURE,
    "grad_cam": grad_cam.FIGURE,
    "activation": activation.FIGURE,
    "landscape": landscape.FIGURE,
    "frequency": frequency.FIGURE,
    "neurons": neurons.FIGURE,
}
