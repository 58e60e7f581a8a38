"""Networks by name, and checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..hyperparameters import check, choose
from .checkpoint import read_checkpoint, save
from .classifier import Classifier
from .resnet import resnet18, resnet34

__all__ = ["NETWORKS", "Classifier", "build", "fresh_copy", "load", "save"]

NETWORKS: dict[str, Callable[..., tuple[nn.Module, int]]] = {
    "resnet18": resnet18,
    "resnet34": resnet34,
}


def build(
    name: str,
    *,
    num_classes: int,
    image_size: tuple[int, int],
    channels: int = 3,
    mean: tuple[float, ...] = (0.5, 0.5, 0.5),
    std: tuple[float, ...] = (0.25, 0.25, 0.25),
    seed: int = 0,
    **arguments: Any,
) -> Classifier:
    """A freshly initialised network.

    Args:
        name: a key of `NETWORKS`.
        num_classes: number of logits.
        image_size: height and width in pixels.
        channels: input channels.
        mean, std: per-channel normalisation of images in [0, 1], inside the network.
        seed: of the initial weights; the global random state is left as it was.
        arguments: the network's own (`width`, `stem`).

    Raises:
        UserError: unknown name or argument.
    """
    body_of = choose(name, NETWORKS, where="model.name")
    arguments = check(arguments, body_of, where="model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body, width = body_of(channels, **arguments)
        head = nn.Linear(width, num_classes)
    description = {
        "name": name,
        "arguments": arguments,
        "num_classes": num_classes,
        "image_size": list(image_size),
        "channels": channels,
        "mean": list(mean)[:channels],
        "std": list(std)[:channels],
    }
    return Classifier(body, head, description)


def fresh_copy(model: Classifier, *, seed: int) -> Classifier:
    """The same network with new initial weights."""
    return _rebuild(model.description, seed)


def load(folder: Any) -> Classifier:
    """The network of a checkpoint folder, on the CPU, in evaluation mode.

    Raises:
        UserError: a missing or changed file, an unknown network, or weights of another architecture.
    """
    description, assign = read_checkpoint(folder)
    model = _rebuild(description, seed=0)
    assign(model)
    return model.eval()


def _rebuild(description: dict[str, Any], seed: int) -> Classifier:
    given: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in description.items()
    }
    arguments: Any = given.pop("arguments")
    return build(**given, seed=seed, **arguments)
