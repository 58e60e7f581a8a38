"""Networks of torchvision and timm as the libraries make them, to compare with; what the tests of networks share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import timm
import torch
import torchvision

from unpoison import models

CLASSES = tuple("abcde")
AUXILIARY = {"torchvision:inception_v3": 1, "torchvision:googlenet": 2}


def images_of(side: int, channels: int = 3) -> torch.Tensor:
    return torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(0))


IMAGES = images_of(32)


@contextmanager
def nothing_drawn(*, tried_out: bool = True) -> Iterator[None]:
    """Networks that are built here keep whatever lay in memory for first weights, whose drawing takes half of the time.

    For those whose weights are replaced, or never looked at. `tried_out` False builds them without the trial passes.
    """
    with pytest.MonkeyPatch.context() as patch:
        if not tried_out:
            patch.setattr(models, "_try_out", lambda model: None)
        for draw in ("kaiming_normal_", "kaiming_uniform_", "normal_", "trunc_normal_", "uniform_", "xavier_uniform_"):
            patch.setattr(torch.nn.init, draw, lambda tensor, *_, **__: tensor)
        yield


def arguments_of(name: str, side: int, num_classes: int) -> dict[str, Any]:
    """What a library's own constructor is to be given for images of a side."""
    library, short = name.split(":")
    arguments: dict[str, Any] = {"num_classes": num_classes}
    if library == "timm":
        sized = timm.get_pretrained_cfg(short).fixed_input_size
        return arguments | {"in_chans": 3} | ({"img_size": (side, side)} if sized else {})
    arguments |= {"weights": None} | ({"image_size": side} if "vit" in short else {})
    return arguments | ({"aux_logits": True, "init_weights": True} if name in AUXILIARY else {})


def of_library(name: str, side: int, num_classes: int = 5, seed: int = 3) -> torch.nn.Module:
    """The library's own network, with the initial weights that the seed gives."""
    library, short = name.split(":")
    make = timm.create_model if library == "timm" else torchvision.models.get_model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(short, **arguments_of(name, side, num_classes)).eval()


@torch.no_grad()
def library_features(network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What the network's last linear layer is given, by hooks that are taken off again."""
    inputs: list[torch.Tensor] = []
    layers = [module for module in network.modules() if isinstance(module, torch.nn.Linear)]
    hooks = [layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0])) for layer in layers]
    network(images)
    for hook in hooks:
        hook.remove()
    return inputs[-1]


@torch.no_grad()
def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, as a share of the largest value: untrained networks' values differ by many decades."""
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))
