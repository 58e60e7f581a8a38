"""The feature maps at the end of a network's stages, by hooks: for methods that compare what two networks look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..compute.device import autocast
from ..models.classifier import Classifier

LAST = ""  # the name of a network's last map, `Classifier.feature_map`


@torch.no_grad()
def stages_of(model: Classifier, image_size: tuple[int, int], most: int) -> list[str]:
    """The modules of the backbone that give the last map of each of its last resolutions.

    Of the modules whose output is a map of some resolution, the last one in the order of a pass that lies no deeper than any
    other: a ResNet's last block before the side is halved, not the layer of the next block that still works at that side.
    Networks of tokens, and those whose maps have their channels last, have the last map alone. A map of one position is left
    out: in it there is nowhere to look.

    Args:
        model: network in evaluation mode, on its device.
        image_size: height and width of its images.
        most: resolutions, from the last one backwards.

    Returns:
        Names of modules of the backbone, `most` or fewer, the largest maps first; `LAST` for the network's last map.
    """
    backbone, (height, width) = model.backbone, image_size
    names = {module: name for name, module in backbone.body.named_modules() if name}
    raws: list[Tensor] = []
    found: list[tuple[str, torch.Size]] = []

    def note(module: nn.Module, _: Any, out: Any) -> None:
        if module is backbone:
            raws.append(out)
        elif isinstance(out, Tensor) and out.ndim == 4 and not isinstance(module, nn.Identity):
            found.append((names[module], out.shape[2:]))

    hooks = [module.register_forward_hook(note) for module in (backbone, *names)]
    try:
        with autocast(model.mean.device):
            model(model.mean.expand(1, -1, height, width))
    finally:
        for hook in hooks:
            hook.remove()
    (raw,) = raws
    last, calls = backbone.spatial(raw).shape[2:], Counter(name for name, _ in found)
    chosen: dict[torch.Size, str] = {}
    for name, shape in found if raw.shape[2:] == last else []:
        # As wide for its height as the images are, which maps with channels last and tables of attention are not; and larger
        # than the last map, as squeeze and excitation has maps of one position on the way.
        proportional = abs(shape[0] * width - shape[1] * height) < max(height, width)
        deeper = shape in chosen and name.count(".") > chosen[shape].count(".")
        if proportional and shape.numel() > last.numel() and calls[name] == 1 and not deeper:
            chosen[shape] = name
    places = sorted([*chosen.items(), (last, LAST)], key=lambda place: -place[0].numel())
    return [name for shape, name in places if shape.numel() > 1][-most:]


@contextmanager
def recorded(model: Classifier, stages: list[str]) -> Iterator[dict[str, Tensor]]:
    """Within the block a dict holds the maps [n, d, h, w] of the latest pass of `model(images)` by the names of `stages_of`."""
    maps: dict[str, Tensor] = {}
    backbone = model.backbone

    def keep(name: str) -> Any:
        def hook(_: nn.Module, given: Any, out: Tensor) -> None:
            maps[name] = backbone.spatial(out) if name == LAST else out

        return hook

    modules = {name: backbone if name == LAST else backbone.body.get_submodule(name) for name in stages}
    hooks = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()
