"""The loss around a model: over a plane of two random directions in the space of its weights.

Li et al., "Visualizing the Loss Landscape of Neural Nets" (2018), section 4: each filter of a random direction has the norm of the
model's own filter, so that pictures of networks of different scales compare; the weights into a neuron are a filter of a linear
layer. Biases and what batch norm has of its own stay as they are, and batch norm keeps its running statistics.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from numpy.typing import NDArray
from torch import Tensor

from ..compute.device import autocast, batch_size, pick_device, to_float
from ..compute.inference import BATCH
from ..core.errors import ParameterError
from ..core.hyperparameters import Count, Positive
from ..core.progress import progress
from ..core.seeding import torch_rng
from ..data.drawings import Drawing, Picture
from ..data.imageset import ImageSet
from ..models.classifier import Classifier
from . import plots
from .figure import Figure, Scene, csv_of, file_name

Direction = dict[str, Tensor]
Losses = NDArray[np.float64]


def draw(
    scene: Scene,
    *,
    seed: int = 0,
    images: Count = 100,
    points: Annotated[int, Ge(3), Le(101)] = 11,
    radius: Positive = 1.0,
) -> Drawing:
    """Two pictures for each model: the loss of clean images, and that of triggered ones for the attacker's labels.

    Args:
        seed: seed for the test images and the directions.
        images: test images of either kind, at most; the cost is their number times the square of `points`.
        points: places along either direction; an odd number has the model itself among them.
        radius: how far the plane reaches either way, in units of the weights' own norms.
    """
    if scene.has_trigger:
        clean, backdoor = scene.pairs(images, seed, "landscape/images").sets()
        kinds = {"clean": clean, "backdoor": backdoor}
    else:
        kinds = {"clean": scene.sample(images, seed, "landscape/images")}
    places = np.linspace(-radius, radius, points)
    pictures, tables = [], {}
    for name, model in scene.models.items():
        losses = surface(model, kinds, places, seed)
        low = max(plots.LEAST_LOSS, min(float(one.min()) for one in losses.values()))
        high = max(low, *(float(one.max()) for one in losses.values()))
        for kind, heights in losses.items():
            png = plots.heights(places, heights, low, high)
            caption = f"{name}: {kind} loss, {heights[points // 2, points // 2]:.3g} at the centre, {heights.max():.3g} at most"
            pictures.append(Picture(name=file_name(name, kind), png=png, caption=caption))
        first, second = np.meshgrid(places, places)
        columns = {"first": first.ravel(), "second": second.ravel()}
        tables[file_name(name)] = csv_of(columns | {kind: one.ravel() for kind, one in losses.items()})
    words = f"Cross-entropy over two filter-normalised random directions, of {len(kinds['clean']):,} test images; the cross is the "
    words += "model, and the colours of a model's pictures are the same losses."
    if scene.has_trigger:
        words += " Clean: for the true labels; backdoor: of the same images with the trigger, for the attacker's."
    return Drawing(caption=words, pictures=pictures, tables=tables)


def direction(model: Classifier, seed: int, which: str) -> Direction:
    """A random direction by the weight's name, each filter with the norm of the model's; biases and batch norm are not in it."""
    found: Direction = {}
    for name, weight in model.named_parameters():
        # One number per channel: a bias, or the scale of a norm.
        if weight.ndim < 2:
            continue
        drawn = torch.randn(weight.shape, generator=torch_rng(seed, "landscape/direction", which, name))
        filters = drawn.flatten(1)
        norms = weight.detach().float().cpu().flatten(1).norm(dim=1, keepdim=True)
        found[name] = (filters / filters.norm(dim=1, keepdim=True) * norms).view(weight.shape)
    return found


def surface(model: Classifier, kinds: dict[str, ImageSet], places: Losses, seed: int) -> dict[str, Losses]:
    """Mean cross-entropy of each set, float64 [k, k]: a row for each step along the second direction.

    Args:
        model: any classifier; it is left as it was.
        kinds: sets of images by name, with the labels that the loss is for.
        places: steps along either direction, float64 [k].
        seed: seed for the directions.

    Raises:
        ParameterError: a loss that is not finite, with `radius`.
    """
    device = pick_device()
    network: Any = deepcopy(model).to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    network.requires_grad_(False)
    first, second = (direction(model, seed, which) for which in ("first", "second"))
    weights = {name: weight for name, weight in network.named_parameters() if name in first}
    moved = [
        (weight, weight.clone(), first[name].to(weight), second[name].to(weight)) for name, weight in weights.items()
    ]
    losses = {kind: np.empty((len(places), len(places))) for kind in kinds}
    grid = [(row, column) for row in range(len(places)) for column in range(len(places))]
    for row, column in progress(grid, what="landscape", unit="place", total=len(grid)):
        for weight, own, along, across in moved:
            weight.copy_(own + float(places[column]) * along + float(places[row]) * across)
        for kind, data in kinds.items():
            losses[kind][row, column] = _loss(network, data, device)
    if not all(np.isfinite(one).all() for one in losses.values()):
        raise ParameterError(f"radius: {places[-1]:g} given, at which a loss is not finite; allowed: a smaller one")
    return losses


@torch.inference_mode()
def _loss(network: Classifier, data: ImageSet, device: torch.device) -> float:
    total = 0.0
    step = batch_size(data.image_size, BATCH)
    for start in range(0, len(data), step):
        index = np.arange(start, min(start + step, len(data)))
        with autocast(device):
            logits = network(to_float(data.tensor(index), device))
        labels = torch.from_numpy(data.labels[index]).to(device)
        total += float(F.cross_entropy(logits.double(), labels, reduction="sum"))
    return total / len(data)


FIGURE = Figure(draw=draw)
