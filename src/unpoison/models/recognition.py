"""Which network a state dict is of: the names and shapes of its tensors beside those of networks that are tried without memory.

This project's own networks and torchvision's are tried. timm has more than a thousand, some under the same names and shapes as
torchvision's: one of them is named by whoever has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import nn

from ..core.errors import UserError
from ..core.weights import Shapes, WithoutMemory, differences, shapes_of
from .networks import NETWORKS

# Features of a network of width 1, and the values of what its tensors' names do not say outright.
_OWN: dict[str, tuple[str, int, dict[str, tuple[Any, ...]]]] = {
    "resnet18": ("width", 8, {"stem": ("conv3", "conv3_pool")}),
    "resnet34": ("width", 8, {"stem": ("conv3", "conv3_pool")}),
    "resnet50": ("width", 32, {"stem": ("conv3", "conv3_pool")}),
    "preactresnet18": ("width", 8, {"final_norm": (True, False)}),
    "vgg19_bn": ("width", 8, {}),
    "densenet121": ("growth", 32, {}),
    "compact": ("width", 4, {}),
    "compact_resnet": ("width", 4, {}),
}
# Names of the heads of torchvision's families, where they are not `classifier`: what has no such head is not built to compare.
_HEADS = {
    **dict.fromkeys(("googlenet", "inception", "regnet", "resnet", "shufflenetv2"), "fc"),
    "swin_transformer": "head",
    "vision_transformer": "heads",
}
_COUNTERS = ".num_batches_tracked"
"""Batch norms' step counters, which old files lack."""


@dataclass(frozen=True)
class Recognised:
    """A network that a state dict fits.

    Attributes:
        name: as `build` takes it.
        arguments: its own.
        classes: number of classes of its head.
        prefix: what stands in front of every name in the file, as a wrapper leaves it, or "".
    """

    name: str
    arguments: Mapping[str, Any]
    classes: int
    prefix: str = ""

    @property
    def said(self) -> str:
        return " ".join([self.name, *(f"{key}={value}" for key, value in sorted(self.arguments.items()))])


def recognise(shapes: Shapes, image_size: tuple[int, int], channels: int, shown: str) -> Recognised:
    """The one network whose tensors have these names and shapes.

    Args:
        shapes: shape and type of each tensor of the file.
        image_size: height and width in pixels, on which a transformer's tensors depend.
        channels: channels of the images.
        shown: the file's name, for messages.

    Raises:
        UserError: none fits, or several.
    """
    found = [*_own(shapes, channels)]
    # Names of this project's own networks are no library's.
    found = found or [*_torchvision(shapes, image_size)]
    if len(found) == 1:
        return found[0]
    if found:
        names = "; ".join(each.said for each in found)
        raise UserError(f"{shown}: fits {len(found)} networks ({names}); allowed: one of them as NETWORK")
    first = ", ".join(list(shapes)[:3])
    raise UserError(
        f"{shown}: {len(shapes)} tensors ({first[:200]}, …) that fit none of this project's networks nor of torchvision's for "
        f"images of {image_size[0]}x{image_size[1]} px; allowed: such a network's state dict, or timm's with NETWORK=timm:NAME"
    )


def _own(shapes: Shapes, channels: int) -> Iterator[Recognised]:
    """This project's networks that fit; width and number of classes are read off the head."""
    heads = [(name, shape) for name, (shape, _) in shapes.items() if name.endswith("head.weight") and len(shape) == 2]
    if len(heads) != 1:
        return
    (name, (classes, features)) = heads[0]
    prefix = name.removesuffix("head.weight")
    for network, (key, multiple, others) in _OWN.items():
        if features % multiple or features // multiple < 8:
            continue
        for values in product(*others.values()):
            arguments = {key: features // multiple, **dict(zip(others, values, strict=True))}
            try:
                with torch.random.fork_rng(devices=[]), WithoutMemory():
                    backbone, _ = NETWORKS[network](channels, **arguments)
            except (RuntimeError, ValueError):
                continue
            expected = {f"backbone.{tensor}": about for tensor, about in shapes_of(backbone.state_dict()).items()}
            expected |= {"head.weight": ((classes, features), torch.float32), "head.bias": ((classes,), torch.float32)}
            if fits(without_prefix(shapes, prefix), expected):
                yield Recognised(network, arguments, classes, prefix)


def _torchvision(shapes: Shapes, image_size: tuple[int, int]) -> Iterator[Recognised]:
    """torchvision's networks that fit. Of each family one is built first, to compare the names of its parts."""
    import torchvision  # type: ignore[import-untyped]

    from .torchvision_networks import FAMILIES

    # What a wrapper leaves stands in front of every name; no network of torchvision has one part for all of its tensors.
    prefix, given = "", shapes
    while len(parts := _parts(given)) == 1 and all("." in name for name in given):
        prefix += f"{next(iter(parts))}."
        given = without_prefix(shapes, prefix)
    by_family: dict[str, list[str]] = {}
    for name in torchvision.models.list_models(module=torchvision.models):
        by_family.setdefault(str(torchvision.models.get_model_builder(name).__module__).rpartition(".")[2], []).append(
            name
        )
    for family, about in FAMILIES.items():
        if _HEADS.get(family, "classifier") not in _parts(given):
            continue
        arguments = dict(about.arguments)
        if about.square:
            if image_size[0] != image_size[1]:
                continue
            arguments["image_size"] = image_size[0]
        for number, name in enumerate(by_family.get(family, [])):
            network = _outline(name, arguments)
            if network is None:
                continue
            own = shapes_of(network.state_dict())
            if number == 0 and _parts(given) != _parts(own):
                break
            # The head is the last linear layer; auxiliary heads have as many classes.
            head = [each for each, module in network.named_modules() if isinstance(module, nn.Linear)][-1]
            known = given.get(f"{head}.weight")
            names = {each for each in own if not each.endswith(_COUNTERS)}
            if known is None or len(known[0]) != 2 or names != {each for each in given if not each.endswith(_COUNTERS)}:
                continue
            fitted = _outline(name, {**arguments, "num_classes": known[0][0]})
            if fitted is not None and fits(given, shapes_of(fitted.state_dict())):
                yield Recognised(f"torchvision:{name}", {}, known[0][0], prefix)


def _outline(name: str, arguments: Mapping[str, Any]) -> nn.Module | None:
    """A network of torchvision without memory for its weights; None where it cannot be made so, or not for the images' size."""
    import torchvision

    try:
        with torch.random.fork_rng(devices=[]), WithoutMemory():
            network: nn.Module = torchvision.models.get_model(name, weights=None, **arguments)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError):
        return None
    return network


def _parts(shapes: Shapes) -> set[str]:
    """The first parts of the tensors' names."""
    return {name.partition(".")[0] for name in shapes}


def without_prefix(shapes: Shapes, prefix: str) -> Shapes:
    """The same under names without what stands in front of all of them."""
    return {name.removeprefix(prefix): about for name, about in shapes.items()}


def fits(given: Shapes, expected: Shapes) -> bool:
    """Whether tensors are those of a network, whether or not they come with batch norms' step counters."""
    counters = {name: about for name, about in expected.items() if name.endswith(_COUNTERS) and name not in given}
    return not differences({**given, **counters}, expected)
