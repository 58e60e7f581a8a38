"""Frequency analysis (Zeng et al., "Rethinking the Backdoor Attacks' Triggers: A Frequency Perspective", ICCV 2021).

A trigger leaves traces in the high frequencies, whatever the model that it is meant for. A small network learns to tell the
cosine transform of clean images from that of images with made-up triggers; the suspect model is not looked at.

Published code, with Adadelta at a constant rate of 0.05 where this has Adam at a falling one; Cognitive Distillation's port
downloads a network that was trained on GTSRB:
https://github.com/YiZeng623/frequency-backdoor
https://github.com/HanxunH/CognitiveDistillation/blob/6aba6f9/detection/frequency.py
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..compute.device import pick_device
from ..compute.finite import check_finite
from ..compute.inference import logits_of
from ..core.arrays import Images, IntArray
from ..core.errors import ParameterError
from ..core.hyperparameters import Count, Epochs, Positive
from ..core.seeding import derive, numpy_rng
from ..data.imageset import ImageSet
from ..data.scores import Scores
from ..models.classifier import Backbone, Classifier
from ..training.loop import fit
from ..training.recipe import Recipe
from .detector import Detector, Suspect

LEAST = 20
"""Fewest trusted images that the network is trained on."""
SMALLEST = 8
"""Smallest side of an image, which is halved three times."""


def score(
    suspect: Suspect,
    *,
    seed: int = 0,
    rounds: Count = 5,
    epochs: Epochs = 10,
    lr: Positive = 1e-3,
) -> Scores:
    """How much rather a sample is manipulated than clean: the difference of the network's two logits.

    Args:
        seed: seed for the manipulations, the network's weights and its training.
        rounds: number of manipulated copies of each trusted image; 5 in the published code, one after the other there.
        epochs: passes over the copies, each with its clean image; 10 in the published code.
        lr: learning rate of Adam, which falls to 0 along a line.
    """
    data, reserve = suspect.data, suspect.reserve
    if len(reserve) < LEAST:
        raise ParameterError(
            f"frequency: {len(reserve)} images given, allowed: at least {LEAST} in the trusted reserve"
        )
    if min(data.image_size) < SMALLEST:
        height, width = data.image_size
        raise ParameterError(f"frequency: images of {height}x{width} given, allowed: {SMALLEST}x{SMALLEST} and larger")
    images = reserve.gather(np.arange(len(reserve)))
    drawn = [manipulated(images, numpy_rng(seed, "frequency/manipulations", number)) for number in range(rounds)]
    labels = np.repeat([0, 1], rounds * len(images))
    both = ImageSet(np.concatenate([*[images] * rounds, *drawn]), labels, ("clean", "manipulated"))
    recipe = Recipe(epochs=epochs, batch_size=64, optimizer="adam", lr=lr, weight_decay=1e-4, schedule="linear")
    device = pick_device()
    # The weights and the dropout's masks come from torch's own generator, which is put back.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive(seed, "frequency/weights"))
        network = _network(images.shape[3], data.image_size)
        fit(network, both, recipe, seed=seed, what="frequency")
    logits = logits_of(network, data, what="frequency").numpy()
    check_finite("frequency", logits, "predictions")
    values = logits[:, 1] - logits[:, 0]
    rule = "more likely manipulated than clean, to the network"
    return Scores(values, forward_passes=1, flagged=values > 0, rule=rule)


class CosineTransform(nn.Module):
    """The orthonormal type-II cosine transform of each channel, [n, c, h, w] to the same shape."""

    rows: Tensor
    columns: Tensor

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.from_numpy(_basis(height)), persistent=False)
        self.register_buffer("columns", torch.from_numpy(_basis(width)), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.rows @ images.contiguous() @ self.columns.T


def _basis(size: int) -> NDArray[np.float32]:
    """Basis vectors of the transform in rows, [size, size]."""
    frequency, place = np.mgrid[:size, :size]
    basis = np.cos(np.pi * frequency * (2 * place + 1) / (2 * size)) * np.sqrt(2 / size)
    basis[0] /= np.sqrt(2)
    return basis.astype(np.float32)


def _network(channels: int, size: tuple[int, int]) -> Classifier:
    """The published network: three stages of two convolutions, each with ELU and batch norm, on the cosine transform."""
    layers: list[nn.Module] = [CosineTransform(*size)]
    inner = channels
    for width, dropout in ((32, 0.2), (64, 0.3), (128, 0.4)):
        for _ in range(2):
            layers += [nn.Conv2d(inner, width, 3, padding=1), nn.ELU(), nn.BatchNorm2d(width)]
            inner = width
        layers += [nn.MaxPool2d(2), nn.Dropout(dropout)]
    features = inner * (size[0] // 8) * (size[1] // 8)
    description = {"name": "frequency", "mean": [0.0] * channels, "std": [1.0] * channels}
    return Classifier(Backbone(nn.Sequential(*layers), nn.Flatten()), nn.Linear(features, 2), description)


def manipulated(images: Images, rng: np.random.Generator) -> Images:
    """A copy of each image with a made-up trigger, one of five kinds by chance, uint8 [n, h, w, c].

    A white rectangle or one of noise (sides of 2 to 7 pixels at most 5 from a corner), noise all over (mean 25, variance 10
    to 70), a shadow over one side of a line, or 0.3 of another image on top.
    """
    result = images.astype(np.float32)
    count, height, width, _ = images.shape
    kinds: IntArray = rng.integers(5, size=(count,))
    for place, kind in enumerate(kinds):
        if kind < 2:
            area = tuple(_near_an_end(length, rng) for length in (height, width))
            patch = result[place][area]
            patch[...] = 255 if kind == 0 else rng.integers(0, 256, size=patch.shape)
        elif kind == 2:
            result[place] += rng.normal(25, np.sqrt(rng.uniform(10, 70)), size=images.shape[1:])
        elif kind == 3:
            angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-0.25, 0.25) * height
            y, x = np.mgrid[:height, :width] - np.array([height, width])[:, None, None] / 2
            result[place][np.cos(angle) * y + np.sin(angle) * x > offset] *= rng.uniform(0.3, 0.7)
        else:
            result[place] += 0.3 * images[rng.integers(count)]
    return np.clip(np.rint(result), 0, 255).astype(np.uint8)


def _near_an_end(length: int, rng: np.random.Generator) -> slice:
    """2 to 7 pixels of a side, at most 5 from one of its ends."""
    size, margin, last = (int(drawn) for drawn in rng.integers([2, 0, 0], [8, 6, 2]))
    start = max(0, length - size - margin if last else margin)
    return slice(start, start + size)


def _needs_trusted(**own: object) -> int:
    return LEAST


DETECTOR = Detector(score=score, needs_trusted=_needs_trusted)
