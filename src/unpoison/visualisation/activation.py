"""Trigger-activated change: how much the trigger changes each channel of a layer.

Zheng et al., "Data-free Backdoor Removal based on Channel Lipschitzness" (2022): the norm of the difference between
a channel's maps of an image without and with the trigger, in the mean over images. BackdoorBench sums the absolute difference of
the mean maps, in which changes of opposite sign cancel, over every layer; here it is one layer, of every model.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ..compute.device import autocast, batch_size, pick_device, to_float
from ..compute.finite import check_finite
from ..compute.inference import BATCH
from ..core.hyperparameters import Count
from ..data.drawings import Drawing, Picture
from ..models.classifier import Classifier
from . import plots
from .figure import Figure, Pairs, Scene, csv_of

Layer = Literal["map", "penultimate"]
Channels = NDArray[np.float64]


def draw(scene: Scene, *, seed: int = 0, images: Count = 500, layer: Layer = "map") -> Drawing:
    """One picture: the channels of every model, sorted by their change.

    Args:
        seed: seed for the test images.
        images: test images with a trigger that are drawn, at most.
        layer: map (the last feature map) or penultimate (the features that the head reads).
    """
    pairs = scene.pairs(images, seed, "activation/images")
    curves: dict[str, Channels] = {}
    columns: dict[str, list[Any]] = {"model": [], "rank": [], "channel": [], "change": [], "clean": [], "triggered": []}
    for name, model in scene.models.items():
        change, clean, triggered = changes(model, pairs, layer)
        check_finite("activation", np.stack([change, clean, triggered], 1), f"changes of {name}", "channels")
        order = np.argsort(-change, kind="stable")
        curves[name] = change[order]
        columns["model"] += [name] * len(order)
        columns["rank"] += list(range(1, len(order) + 1))
        columns["channel"] += order.tolist()
        for key, values in (("change", change), ("clean", clean), ("triggered", triggered)):
            columns[key] += values[order].tolist()
    longest = max(map(len, curves.values()))
    of = {"map": "the last feature map", "penultimate": "the penultimate features"}[layer]
    png = plots.lines(
        np.arange(1.0, longest + 1), curves, "channel, by its change", "trigger-activated change", own_x=True
    )
    first = next(iter(curves))
    half = int(np.searchsorted(np.cumsum(curves[first]), curves[first].sum() / 2) + 1)
    caption = f"Change of {of} by channel; {first}: half of it lies in {half} of {len(curves[first])} channels"
    words = f"Trigger-activated change: how far apart the maps of {len(pairs):,} test images without and with the trigger lie, "
    words += (
        "channel by channel, in the mean over images. Few channels far above the others are what pruning looks for."
    )
    return Drawing(
        caption=words,
        pictures=[Picture(name="change", png=png, caption=caption)],
        tables={"change": csv_of(columns)},
    )


@torch.inference_mode()
def changes(model: Classifier, pairs: Pairs, layer: Layer) -> tuple[Channels, Channels, Channels]:
    """Change of each channel, and its mean value without and with the trigger: float64 [d] each.

    Args:
        model: any classifier.
        pairs: at least one pair of images.
        layer: as in `draw`.
    """
    device = pick_device()
    model.to(device).eval()
    of = model.feature_map if layer == "map" else model.features
    step = batch_size((pairs.clean.shape[1], pairs.clean.shape[2]), BATCH // 2)
    sums: list[Channels] = []
    for start in range(0, len(pairs), step):
        stop = start + step
        both = np.concatenate([pairs.clean[start:stop], pairs.triggered[start:stop]])
        with autocast(device):
            values = of(to_float(torch.from_numpy(both).permute(0, 3, 1, 2), device)).double()
        # Features are maps of one position.
        clean, triggered = values.flatten(2).chunk(2) if values.ndim > 2 else values[:, :, None].chunk(2)
        parts = ((triggered - clean).norm(dim=2), clean.mean(2), triggered.mean(2))
        sums.append(np.stack([part.sum(0).cpu().numpy() for part in parts]))
    change, clean_mean, triggered_mean = np.sum(sums, axis=0) / len(pairs)
    return change, clean_mean, triggered_mean


FIGURE = Figure(draw=draw, needs="trigger")
